"""Evaluation while training: what it measures, what follows from it, and that it changes nothing."""

from __future__ import annotations

import json

import pytest

from recipe_runner import Interrupted, RecipeError
from recipe_runner.testing import LocalContext
from recipe_runner.testing.local import slot

pytestmark = pytest.mark.slow

HELD_OUT = {"every": 4, "samples": 3, "sample_tokens": 5}


@pytest.fixture
def run(tmp_path, tiny_corpus, tiny_tokeniser, pretraining):
    """Runs a pretraining in a context, whose folder may hold an earlier attempt; stopped after a step if asked."""

    def go(name: str, stop: int = 0, corpus=tiny_corpus, **changes) -> LocalContext:
        inputs = {"corpus": corpus, "tokeniser": tiny_tokeniser}
        config = pretraining(**changes)
        config["execution"] = {"device": "cpu", "threads": 1, "checkpoint_every": 5, **changes.get("execution", {})}
        context = LocalContext(tmp_path / name, inputs=inputs)
        kept = context.metrics

        def metrics(step, **values):
            kept(step, **values)
            context.stop = step == stop

        context.metrics = metrics
        slot("stage", {"use": "pretrain", **config}).build().run(context)
        return context

    return go


def weights(context):
    from safetensors.torch import load_file

    return load_file(context.payload / "model.safetensors")


def same(one, other) -> bool:
    return all((one[name] == other[name]).all() for name in one)


def test_evaluating_changes_no_loss_and_says_what_it_found(run):
    plain, evaluated = run("plain"), run("evaluated", evaluation=HELD_OUT)
    strip = {"tokens_per_second", "bits_per_byte/prose", "bits_per_byte/code"}
    rows = [
        [{k: v for k, v in row.items() if k not in strip} for row in context.rows] for context in (plain, evaluated)
    ]
    assert rows[0] == rows[1]
    assert same(weights(plain), weights(evaluated))
    found = json.loads((evaluated.folder / "evaluations.json").read_text())
    assert [entry["step"] for entry in found] == [4, 8, 12]
    assert found[-1]["measured"] == evaluated.facts["bits_per_byte"] == plain.facts["bits_per_byte"]
    row = next(row for row in evaluated.rows if row["step"] == 8)
    assert row["bits_per_byte/code"] == found[1]["measured"]["code"]
    assert [len(sample["answers"]) for sample in evaluated.facts["samples"]] == [3, 3, 3]
    assert evaluated.facts["tables"][1]["rows"][2][0] == "12"


def test_the_best_is_kept_and_training_ends_when_there_is_no_better(run):
    """With a rate that ruins the model at once, the first evaluation is the best."""
    settings = {"every": 2, "keep": "best", "early_stopping": 3, "samples": 0}
    changes = {"optimizer": {"lr": 0.5}, "budget": {"steps": 40}, "schedule": {"use": "wsd", "warmup": 0.5}}
    context = run("best", evaluation=settings, **changes)
    found = json.loads((context.folder / "evaluations.json").read_text())
    means = [sum(entry["measured"].values()) / 2 for entry in found]
    best = found[means.index(min(means))]
    assert context.facts["kept_step"] == best["step"]
    assert context.facts["bits_per_byte"] == best["measured"]
    assert context.facts["steps"] == best["step"] + 6 < 40
    losses = {row["step"]: row["loss"] for row in context.rows}
    assert context.facts["loss"] == losses[best["step"]] != losses[best["step"] + 6]
    assert context.facts["last_step"] == {"step": best["step"] + 6, "loss": losses[best["step"] + 6]}
    assert context.facts["last_evaluation"] == {"step": found[-1]["step"], "bits_per_byte": found[-1]["measured"]}
    kept = weights(context)
    from safetensors.torch import load_file

    saved = load_file(context.work / "checkpoints" / f"step-{best['step']}" / "trained.safetensors")
    assert same(saved, kept)


def test_the_last_step_may_be_the_best(run):
    """It is measured though it is none of every so many: where the rate falls to zero, it mostly is the best."""
    settings = {"every": 5, "keep": "best", "samples": 0}
    best, last = run("best", evaluation=settings), run("last")
    found = json.loads((best.folder / "evaluations.json").read_text())
    assert [entry["step"] for entry in found] == [5, 10, 12]
    assert best.facts["kept_step"] == best.facts["steps"] == 12
    assert same(weights(best), weights(last))


def test_best_and_patience_survive_a_stop_exactly(run):
    settings = {"every": 2, "keep": "best", "early_stopping": 3, "samples": 1}
    changes = {"optimizer": {"lr": 0.5}, "budget": {"steps": 40}, "schedule": {"use": "wsd", "warmup": 0.5}}
    straight = run("straight", evaluation=settings, **changes)
    last = straight.rows[-1]["step"]
    with pytest.raises(Interrupted):
        run("stopped", stop=last - 3, evaluation=settings, **changes)
    again = run("stopped", evaluation=settings, **changes)
    for name in ("kept_step", "steps", "loss", "last_step", "last_evaluation", "bits_per_byte", "samples"):
        assert again.facts[name] == straight.facts[name]
    assert same(weights(straight), weights(again))
    files = [(context.folder / "evaluations.json").read_bytes() for context in (straight, again)]
    assert files[0] == files[1]
    finished = run("stopped", evaluation=settings, **changes)  # it had stopped early: nothing is trained any more
    assert finished.rows == []
    assert same(weights(straight), weights(finished))


@pytest.mark.parametrize(("warmup", "kept"), [(1, True), (0.9, False)])
def test_a_stable_phase_that_is_stopped_early_ends_there_and_keeps_its_branch_point(run, warmup, kept, tiny_corpus):
    """Annealing goes on from the last step, whatever step was the best; a warm-up has none to go on from."""
    from safetensors.torch import load_file

    from recipe_runner import Model

    schedule = {"use": "wsd", "warmup": warmup, "decay": 0.1}
    settings = {"every": 2, "keep": "best", "early_stopping": 2, "samples": 0}
    context = run("base", evaluation=settings, optimizer={"lr": 0.5}, budget={"steps": 40}, schedule=schedule)
    last = context.facts["last_step"]["step"]
    assert last < 30
    model = Model(context.folder, "base", {"facts": context.facts})
    branch = model.branch_point()
    if not kept:
        assert branch is None
        with pytest.raises(RecipeError, match=f"it ended after step {last} of 40, in no stable phase"):
            _annealed(model, tiny_corpus, context.folder.with_name("annealed"))
        return
    assert branch is not None
    assert (branch.step, branch.phase, branch.lr) == (last, "stable", pytest.approx(0.5))
    saved = load_file(context.work / "checkpoints" / f"step-{last}" / "trained.safetensors")
    assert same(saved, load_file(branch.path / "trained.safetensors"))
    assert not same(saved, weights(context))


def _annealed(model, corpus, folder):
    from recipe_runner.testing import make

    config = {
        "model": "model", "corpus": "corpus", "mix": {"prose": 1.0}, "batch_size": 8, "sequence_length": 64,
        "budget": {"steps": 2}, "execution": {"device": "cpu", "threads": 1},
    }  # fmt: skip
    return make("anneal", config, folder, inputs={"model": model, "corpus": corpus})


def test_a_kill_while_the_branch_is_kept_loses_no_branch(run, monkeypatch):
    from recipe_plugins.training import checkpoints

    class Killed(BaseException):
        pass

    def killed(*given, **notes):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "keep", killed)
        with pytest.raises(Killed):
            run("cut")
    again = run("cut")
    assert sorted(path.name for path in (again.folder / "branch").iterdir()) == [
        "branch.json", "optimizer.json", "optimizer.pt", "trained.safetensors",
    ]  # fmt: skip


def test_what_cannot_be_measured_is_refused(run, write_corpus, tmp_path):
    with pytest.raises(ValueError, match="set `every`"):
        run("never", evaluation={"keep": "best"})
    nothing = write_corpus(tmp_path / "corpus", {"prose": ["a b c"] * 40}, heldout_every=100)
    (nothing.payload / "heldout" / "prose" / "00000.jsonl").write_text("")
    index = json.loads((nothing.payload / "corpus.json").read_text())
    index["domains"]["prose"].pop("heldout")
    (nothing.payload / "corpus.json").write_text(json.dumps(index))
    with pytest.raises(RecipeError, match="the corpus has none"):
        run("nothing", corpus=nothing, mix={}, evaluation=HELD_OUT)
    short = write_corpus(tmp_path / "short", {"prose": ["a"] * 200})
    with pytest.raises(RecipeError, match="no document of it has a second token"):
        run("short", corpus=short, mix={}, evaluation=HELD_OUT)


def test_a_loss_that_is_not_a_number_names_the_documents(run, tiny_corpus, monkeypatch):
    from recipe_plugins.training.trainer import RecipeTrainerMixin

    summed = RecipeTrainerMixin._summed
    monkeypatch.setattr(RecipeTrainerMixin, "_summed", lambda *given: tuple(x * float("nan") for x in summed(*given)))
    with pytest.raises(RecipeError, match="step 1: the loss is nan") as error:
        run("nan")
    ids = {f"{domain}/{record.id}" for domain in ("prose", "code") for record in tiny_corpus.read(domain)}
    named = error.value.what.split("it had read ")[1].split(" and ")[0].split(", ")
    assert named
    assert set(named) <= ids
