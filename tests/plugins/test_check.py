"""What `check` and `plan` say: files that are not there, models that are not, and rows of several answers."""

from __future__ import annotations

from typing import Any

import pytest

from recipe_runner import Known
from recipe_runner.errors import InvalidRecipe
from recipe_runner.recipe import load


def test_files_that_are_not_there_are_problems_of_check(tmp_path):
    (tmp_path / "there.jsonl").write_text("{}")
    source = "stages.corpus.sources.web={use: jsonl, path: %s}"
    load("recipes/tiny.yaml", [source % (tmp_path / "there.jsonl")])
    load("recipes/tiny.yaml", [source % "s3://elsewhere/pages.jsonl"])
    with pytest.raises(InvalidRecipe) as caught:
        load("recipes/tiny.yaml", [source % (tmp_path / "tere.jsonl")])
    (problem,) = caught.value.problems
    assert (problem.path, problem.next) == ("stages.corpus.sources.web.path", "did you mean 'there.jsonl'?")


def test_a_folder_without_such_a_file_is_told_from_one_that_is_not_there(tmp_path):
    (tmp_path / "in").mkdir()
    for held, said in (("", "it holds nothing"), (".hidden", "it holds .hidden")):
        if held:
            (tmp_path / "in" / held).write_text("")
        with pytest.raises(InvalidRecipe) as caught:
            load("recipes/tiny.yaml", [f"stages.corpus.sources.web={{use: text, path: {tmp_path}/in}}"])
        (problem,) = caught.value.problems
        assert (problem.what, problem.next) == (f"no file in the folder {tmp_path}/in", said)


def test_a_fork_keeps_some_where_its_parent_kept_all(tmp_path):
    """`keep` is a word or a block; layers merge a block over a word as if it named a component."""
    classifier = "{use: quality-classifier, keep: all, positives: {domains: [web]}, negatives: {domains: [code]}}"
    parent = FIELDS.replace("STEP", classifier)
    parent = parent.replace("WEIGHTS", "{web: 1, code: 1}").replace("      MIX\n", "")
    (tmp_path / "parent.yaml").write_text(parent)
    change = "stages: {corpus: {steps: {step: {keep: {top: 0.1}}}}}"
    (tmp_path / "t.yaml").write_text(f"schema: 1\nname: fork\nextends: parent.yaml\n{change}\n")
    config: Any = load(str(tmp_path / "t.yaml")).config("corpus")
    assert config.steps["step"].config.keep.top == 0.1


def test_domains_that_no_source_is_called_are_problems_of_check():
    """Of the recipe's own corpus; before, the curation and the tokeniser were paid for first."""
    select = "stages.base.select={good: {domain: cdoe, where: score >= 1}}"
    with pytest.raises(InvalidRecipe) as caught:
        load("recipes/tiny.yaml", ["stages.annealed.mix.refrence=0.5", select, "stages.base.mix.good=1"])
    assert {(problem.path, problem.what, problem.next) for problem in caught.value.problems} == {
        ("stages.annealed.mix.refrence", "corpus has no domain 'refrence'", "did you mean 'reference'?"),
        ("stages.base.select.good.domain", "corpus has no domain 'cdoe'", "did you mean 'code'?"),
    }


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("{use: jsonl, path: ROWS, format: {use: text, keep: [score]}}", None),
        ("{use: jsonl, path: ROWS, format: {use: text, keep: [scores]}}", None),
        ("{use: jsonl, path: ROWS, format: text}", "problem"),
        ("{use: text, path: ROWS}", "problem"),
        ("{use: jsonl, path: ROWS}", "hint"),
    ],
)
@pytest.mark.parametrize("shipped", ["pretrain-125m", "pretrain-125m-muon", "pretrain-1b", "moe-1b"])
def test_ones_own_file_takes_one_override_and_one_without_scores_is_told_before_a_base_is_paid_for(
    shipped, source, found, tmp_path
):
    (tmp_path / "mine.jsonl").write_text('{"text": "a", "score": 4.0}')
    override = f"stages.corpus.sources.web={source.replace('ROWS', str(tmp_path / 'mine.jsonl'))}"
    if found == "problem":
        with pytest.raises(InvalidRecipe) as caught:
            load(f"recipes/{shipped}.yaml", [override])
        (problem,) = caught.value.problems
    else:
        problem = next(iter(load(f"recipes/{shipped}.yaml", [override]).hints), None)
    assert (problem is None) == (found is None)
    if problem is not None:
        assert problem.path == "stages.annealed.select.best.where"
        assert problem.what == "nothing gives the documents of 'web' a score 'score'"


def test_a_score_that_a_text_or_a_step_has_is_no_problem(tmp_path):
    (tmp_path / "mine.txt").write_text("a")
    own = f"stages.corpus.sources.web={{use: text, path: {tmp_path / 'mine.txt'}}}"
    assert not load("recipes/pretrain-125m.yaml", [own, "vars.best=words >= 100 and diversity > 0.5"]).hints
    kept = "stages.corpus.steps.score={use: gopher-quality, keep_scores: true}"
    assert not load("recipes/pretrain-125m.yaml", [own, kept]).hints


@pytest.mark.parametrize(
    ("overrides", "path", "what"),
    [
        (["schedule={warmup: 300, decay: 10}", "budget={steps: 300, tokens: null}"], "schedule", "do not fit into 300"),
        (["schedule.warmup={tokens: 1B}"], "schedule", "do not fit into"),
        (["schedule={warmup: 0.6, decay: 50%}"], "schedule", "0.6 and a decay of 0.5 are more than all steps"),
        (["execution.processes=3"], "batch_size", "cannot be divided among 3 processes"),
        (["attention=flex"], "attention", "has no backward pass on cpu"),
        (["attention=flash2", "execution.device=cuda"], "attention", "computes in 16 bits only"),
    ],
)
def test_what_cannot_train_by_its_settings_alone_is_a_problem_of_check(overrides, path, what):
    """Before the corpus, the tokeniser and the stages before it are paid for."""
    with pytest.raises(InvalidRecipe) as caught:
        load("recipes/tiny.yaml", [f"stages.base.{override}" for override in overrides])
    (problem,) = caught.value.problems
    assert (problem.path, what in problem.what) == (f"stages.base.{path}", True)


@pytest.mark.parametrize(
    ("overrides", "why"),
    [
        (["base.schedule={use: cosine}"], "its schedule, cosine, has no stable phase"),
        (["base.schedule={use: inverse-sqrt, warmup: 50}"], "its schedule, inverse-sqrt, has no stable phase"),
        (["annealed.model=org/name"], "it comes from outside, without the optimizer state of a stable phase"),
        (["again={use: anneal, model: annealed, corpus: corpus, batch_size: 8, sequence_length: 64, "
          "budget: {steps: 1}}"], "its stage keeps no stable phase"),
        (["base.schedule={use: constant}"], None),
        (["base.schedule={use: cosine}", "annealed.fresh_optimizer={use: adamw, lr: 1e-4}"], None),
    ],
)  # fmt: skip
def test_what_cannot_be_annealed_is_told_before_it_is_pretrained(overrides, why):
    given = [f"stages.{override}" for override in overrides]
    if why is None:
        load("recipes/tiny.yaml", given)
        return
    with pytest.raises(InvalidRecipe) as caught:
        load("recipes/tiny.yaml", given)
    (problem,) = caught.value.problems
    assert problem.path in ("stages.annealed.model", "stages.again.model")
    assert (why in problem.what, "fresh_optimizer" in problem.next) == (True, True)


def test_an_adapter_where_a_model_goes_is_told_in_english():
    with pytest.raises(InvalidRecipe) as caught:
        load("recipes/tiny.yaml", ["stages.chat.model=adapter"])
    assert "stage 'adapter' makes an adapter, but a model goes here" in str(caught.value)


@pytest.mark.parametrize("word", ["on", "off", "auto"])
def test_a_switch_is_written_as_it_is_called(word):
    """YAML reads `on` as true."""
    config: Any = load("recipes/tiny.yaml", [f"stages.base.chunked_loss={word}"]).config("base")
    assert config.chunked_loss == word


def test_a_schedule_that_fits_once_the_steps_are_known_is_no_problem_of_check():
    """An epoch's steps are the run's to count."""
    load("recipes/tiny.yaml", ["stages.base.schedule.warmup=3000", "stages.base.budget={tokens: null, epochs: 1}"])


@pytest.mark.parametrize(
    ("shipped", "source"), [("continue-pretrain", "corpus.sources.domain"), ("tiny-chars", "corpus.sources.text")]
)
def test_ones_own_file_takes_one_override(shipped, source, tmp_path):
    (tmp_path / "mine.txt").write_text("a")
    own = f"stages.{source}={{use: text, path: {tmp_path / 'mine.txt'}}}"
    assert not load(f"recipes/{shipped}.yaml", [own]).hints


@pytest.mark.parametrize(
    ("recipe", "stage"), [("sft-full-1b", "chat"), ("lora-8b", "adapter"), ("dpo-8b", "preferred")]
)
def test_a_model_that_is_not_here_costs_nobody_knows_what(recipe, stage):
    known: Any = Known({})
    assert "unknown" in load(f"recipes/{recipe}.yaml").config(stage).estimate(known).notes[0]


def test_a_row_of_a_stage_with_judged_answers_is_as_many_as_it_stands_for():
    def rows(recipe: str, stage: str, *overrides: str) -> float:
        config: Any = load(f"recipes/{recipe}.yaml", overrides).config(stage)
        return config.tokens_per_step / config.sequence_length / config.batch_size

    assert rows("dpo-8b", "preferred") == 2
    assert rows("dpo-8b", "preferred", "stages.preferred.objective=kto") == 1
    assert rows("grpo-tiny", "brief", "stages.brief.group=12") == 12


FIELDS = """schema: 1
name: t
stages:
  corpus:
    use: curation
    sources:
      web: {use: text, path: .}
      code: {use: text, path: .}
    steps:
      step:
        STEP
    mix:
      weights: WEIGHTS
      MIX
"""


@pytest.mark.parametrize(
    ("said", "line", "path"),
    [
        ({"STEP": "{use: gopher-quality, only: {domain: [web, coed]}}"}, 11, "steps.step.only.domain.1"),
        ({"WEIGHTS": "{web: 1, coed: 1}"}, 13, "mix.weights.coed"),
        ({"WEIGHTS": "{web: 1}"}, 13, "mix.weights"),
        ({"WEIGHTS": "{}", "MIX": "upsample: {coed: 2}"}, 14, "mix.upsample.coed"),
        ({"WEIGHTS": "{}", "MIX": "bytes_per_token: {web: 4}"}, 14, "mix.bytes_per_token"),
        ({"MIX": "upsample: {web: 2}"}, 14, "mix.upsample"),
        ({"STEP": "{use: length, min_words: 9, max_words: 3}"}, 11, "steps.step.min_words"),
        ({"STEP": "{use: regex, pattern: a, action: replace, replacement: '\\1'}"}, 11, "steps.step.replacement"),
        ({"STEP": "{use: score, where: quality}"}, 11, "steps.step.where"),
        (
            {"STEP": "{use: quality-classifier, keep: all, positives: {domains: [web]}, negatives: {domains: [coed]}}"},
            11, "steps.step.negatives.domains.0",
        ),
        ({"      step:": "      mix:"}, 10, "steps.mix"),
        ({"use: text, path: .}\n    st": "use: text, path: ., fields: {text: a}}\n    st"}, 8, "sources.code.fields"),
        (
            {"use: text, path: .}\n    st": "use: text, path: ., format: {fields: {text: a}}}\n    st"},
            8, "sources.code.format.fields.text",
        ),
    ],
)  # fmt: skip
def test_what_spans_fields_is_shown_where_the_wrong_one_is_written(tmp_path, said, line, path):
    text = FIELDS
    usual = {"STEP": "use: exact-dedup", "WEIGHTS": "{web: 1, code: 1}", "MIX": "temperature: 1"}
    for mark, value in {**usual, **said}.items():
        text = text.replace(mark, value)
    (tmp_path / "t.yaml").write_text(text)
    with pytest.raises(InvalidRecipe) as caught:
        load(str(tmp_path / "t.yaml"))
    (problem,) = caught.value.problems
    assert (problem.origin.line, problem.path) == (line, f"stages.corpus.{path}")
    assert "coed" not in problem.what or problem.next == "did you mean 'code'?"


@pytest.mark.parametrize(
    ("override", "path"),
    [
        ("stages.base.select={best: {domain: code, where: score >= 1}}", "base.select.best"),
        ("stages.evaluation.models={a/b: base}", "evaluation.models.a/b"),
        ("stages.evaluation.expect={better: {metric: bsae.bits_per_byte.code, below: 3}}", "evaluation.expect.better"),
    ],
)
def test_other_stages_show_the_field_too(override, path):
    with pytest.raises(InvalidRecipe) as caught:
        load("recipes/tiny.yaml", [override])
    assert f"stages.{path}" in {problem.path for problem in caught.value.problems}


ONE_SIZE = """
schema: 1
name: sized
stages:
  corpus: {use: curation, sources: {web: python-reference}}
  base:
    use: pretrain
    corpus: corpus
    tokeniser: org/name
    architecture: {WORDS}
    budget: {steps: 1}
    batch_size: 1
    sequence_length: 8
"""


def sized(folder, layers: list[str], overrides: list[str]) -> Any:
    """The architecture of a recipe whose `layers`, each a child of the one before, give words for its size."""
    for number, words in enumerate(layers):
        child = f"schema: 1\nextends: {number - 1}.yaml\nstages: {{base: {{architecture: {{{words}}}}}}}\n"
        first = words if "use" in words else f"use: llama, {words}"
        (folder / f"{number}.yaml").write_text(child if number else ONE_SIZE.replace("WORDS", first))
    given = [f"stages.base.architecture.{override}" for override in overrides]
    return load(str(folder / f"{len(layers) - 1}.yaml"), given).config("base").architecture.config  # type: ignore


@pytest.mark.parametrize(
    ("layers", "overrides", "size"),
    [
        (["size: 30M", "parameters: 40M"], [], 40_000_000),
        (["parameters: 30M", "size: 40M"], [], 40_000_000),
        (["size: 30M", "parameters: 40M", "size: 50M"], [], 50_000_000),
        (["size: 30M"], ["parameters=40M"], 40_000_000),
        (["size: 30M, use: llama", "parameters: 40M, use: llama"], [], 40_000_000),
        (["size: 30M", "parameters: null, depth: 2"], [], None),
    ],
)
def test_of_two_words_for_a_size_the_childs_counts(layers, overrides, size, tmp_path):
    assert sized(tmp_path, layers, overrides).size == size


@pytest.mark.parametrize(
    "layers",
    [
        ["size: 30M, parameters: 30M"],
        ["size: 30M, use: llama, parameters: 30M"],
        ["size: 1M", "size: 30M, parameters: 40M"],
        ["parameters: 1M, size: 2M"],
    ],
)
def test_two_words_for_a_size_in_one_layer_are_a_problem(layers, tmp_path):
    with pytest.raises(InvalidRecipe) as caught:
        sized(tmp_path, layers, [])
    (problem,) = caught.value.problems
    assert (problem.what, problem.next) == ("size and parameters are words for the same", "write one of them")
    assert problem.path.startswith("stages.base.architecture.")
    assert problem.origin.file.endswith(f"{len(layers) - 1}.yaml")
