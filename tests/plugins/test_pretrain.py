"""The stages `pretrain` and `anneal`, and bits per byte."""

from __future__ import annotations

import json
import math

import pytest

from recipe_runner import Model, RecipeError, Record
from recipe_runner.testing import LocalContext, make
from recipe_runner.testing.local import slot

pytestmark = pytest.mark.slow


@pytest.fixture
def pretrain(tmp_path, tiny_corpus, tiny_tokeniser, pretraining):
    def run(name="base", **changes):
        inputs = {"corpus": tiny_corpus, "tokeniser": tiny_tokeniser}
        return make("pretrain", pretraining(**changes), tmp_path / name, inputs=inputs)

    return run


@pytest.fixture
def anneal(tmp_path, tiny_corpus, annealing):
    def run(base, name="annealed", **changes):
        return make("anneal", annealing(**changes), tmp_path / name, inputs={"corpus": tiny_corpus, "base": base})

    return run


def weights(path):
    from safetensors.torch import load_file

    return load_file(path)


def test_the_base_learns_and_says_what_it_did(tiny_base, tiny_tokeniser):
    facts = tiny_base.facts
    untrained = math.log2(384) / tiny_tokeniser.facts["bytes_per_token"]["prose"]
    assert facts["bits_per_byte"]["prose"] < untrained - 0.5
    assert set(facts["bits_per_byte"]) == {"prose", "code"}
    assert facts["tokens"] == facts["training"]["tokens"] == 30 * 8 * 64
    assert facts["parameters"] == 32928
    assert facts["tokens_per_parameter"] == pytest.approx(0.466, abs=1e-3)
    assert facts["chinchilla_minutes"] == pytest.approx(20 * 32928 / facts["tokens_per_second"] / 60)
    assert {name: part["rows"] for name, part in facts["mix"].items()} == {"prose": 144, "code": 96}


@pytest.mark.parametrize(("weight", "told"), [(1e-6, ["code"]), (0.4, [])])
def test_a_domain_too_light_for_a_row_is_warned_of(pretraining, tiny_corpus, tiny_tokeniser, tmp_path, weight, told):
    config = pretraining(mix={"prose": 0.6, "code": weight}, budget={"steps": 9})
    made = make("pretrain", config, tmp_path, inputs={"corpus": tiny_corpus, "tokeniser": tiny_tokeniser})
    found = [text for text in made.manifest["warnings"] if text.startswith("nothing is read of")]
    assert [text.split()[4].rstrip(":") for text in found] == told


def test_the_model_loads_from_the_path(tiny_base):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tiny_base.payload)
    tokenizer = AutoTokenizer.from_pretrained(tiny_base.payload)
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id == 0
    assert model.config.use_cache
    assert tokenizer.chat_template


def test_the_branch_point_is_the_end_of_the_stable_phase(pretrain, tiny_base):
    branch = tiny_base.branch_point()
    assert (branch.step, branch.tokens, branch.phase, branch.lr) == (30, 30 * 512, "stable", 3e-3)
    kept, final = weights(branch.path / "trained.safetensors"), weights(tiny_base.payload / "model.safetensors")
    assert all((kept[name] == final[name]).all() for name in kept)
    early = pretrain(schedule={"use": "wsd", "warmup": 3, "decay": 0.5}).branch_point()
    assert (early.step, early.tokens, early.phase, early.lr) == (6, 6 * 512, "stable", 3e-3)
    assert pretrain("cosine", schedule={"use": "cosine"}).branch_point() is None


def test_seed_and_inputs_decide_the_payload(pretrain):
    assert pretrain("one").digest == pretrain("two", execution={"device": "cpu", "threads": 1}).digest
    assert pretrain("three", seed=7).digest != pretrain("four", seed=8).digest


def test_a_budget_in_flops_is_what_the_steps_cost(pretrain, tiny_base):
    each = tiny_base.facts["shape"]
    from recipe_plugins.training.estimate import Shape

    a_step = Shape(**each).flops_per_token(64) * 8 * 64
    made = pretrain(budget={"flops": 5.4 * a_step})
    assert made.facts["steps"] == 5
    per_token = a_step / (8 * 64)
    assert made.facts["budget"] == {"flops": 5.4 * a_step, "scale": 1.0, "flops_per_token": per_token, "steps": 5}


def test_a_budget_in_minutes_is_timed_once_and_leaves_the_model_alone(tmp_path, pretrain, monkeypatch):
    from recipe_plugins.training import text

    taken = []
    timed = text.seconds_per_step

    def measured(*given, **more):
        taken.append(timed(*given, **more))
        return 0.5

    monkeypatch.setattr(text, "seconds_per_step", measured)
    made = pretrain(budget={"minutes": 0.05})
    assert made.facts["steps"] == 6
    assert 0 < taken[0] < 10
    assert "depends on it" in made.manifest["warnings"][0]
    assert made.digest == pretrain("given", budget={"steps": 6}).digest
    assert len(taken) == 1


def test_annealing_goes_on_without_a_jump(anneal, tiny_base):
    annealed = anneal(tiny_base)
    assert annealed.facts["lr_joint"] == {"before": 3e-3, "first": 3e-3}
    for domain, before in tiny_base.facts["bits_per_byte"].items():
        assert annealed.facts["bits_per_byte"][domain] < before
    assert annealed.facts["training"]["optimizer"]["lr"] == 3e-3
    assert annealed.branch_point() is None


def test_annealing_takes_weights_state_and_rate_from_the_branch(tmp_path, pretrain, anneal, tiny_corpus):
    """Not from the end: a base that decayed after its branch point anneals exactly like one that stopped there."""
    import shutil

    decayed = pretrain(schedule={"use": "wsd", "warmup": 3, "decay": 0.5})
    moved = tmp_path / "moved"
    shutil.copytree(decayed.path, moved)
    final = weights(moved / "payload" / "model.safetensors")
    from safetensors.torch import save_file

    zeros = {name: tensor * 0 for name, tensor in final.items()}
    save_file(zeros, moved / "payload" / "model.safetensors", {"format": "pt"})
    zeroed = Model(moved, "zeroed", decayed.manifest)
    assert anneal(zeroed, "one").digest == anneal(decayed, "two").digest

    state = decayed.branch_point().path / "optimizer.pt"
    import torch

    saved = torch.load(state, weights_only=True)
    for entry in saved["optimizer"]["state"].values():
        entry["exp_avg"].zero_()
    torch.save(saved, moved / "branch" / "optimizer.pt")
    assert anneal(zeroed, "three").digest != anneal(decayed, "four").digest


def test_annealing_what_has_no_stable_phase_is_an_error_that_says_how(anneal, pretrain, tiny_base):
    annealed = anneal(tiny_base)
    with pytest.raises(RecipeError, match=r"keeps no state of a stable phase .*linear left none") as error:
        anneal(annealed, "again")
    assert "fresh_optimizer" in error.value.next
    foreign = Model(annealed.payload, "", {})
    with pytest.raises(RecipeError, match="comes from outside"):
        anneal(foreign, "foreign")
    allowed = anneal(annealed, "allowed", fresh_optimizer={"use": "adamw", "lr": 1e-4})
    assert allowed.facts["lr_joint"] == {"before": None, "first": 1e-4}


def test_another_tokeniser_is_refused(tmp_path, tiny_base, tiny_corpus, annealing):
    small = make("tokeniser", {"corpus": "c", "vocab_size": 300}, tmp_path / "t", inputs={"c": tiny_corpus})
    inputs = {"corpus": tiny_corpus, "base": tiny_base, "small": small}
    with pytest.raises(RecipeError, match="the tokeniser is not the model's own: 84 entries"):
        make("anneal", annealing(tokeniser="small"), tmp_path / "a", inputs=inputs)


def test_bits_per_byte_of_a_model_that_knows_nothing(tmp_path, tiny_tokeniser, tiny_corpus):
    import torch

    from recipe_plugins.training.bits import bits_per_byte, heldout_records
    from recipe_plugins.training.loading import load_tokenizer

    tokenizer = load_tokenizer(LocalContext(tmp_path), tiny_tokeniser)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = slot("architecture", {"use": "llama", **shape}).build().build(len(tokenizer))
    with torch.no_grad():
        model.get_input_embeddings().weight.zero_()  # tied: every token is equally likely
    text = "def f(x):\n    return x\n" * 9
    ids = tokenizer(text)["input_ids"]
    first = len(tokenizer.decode(ids[:1]).encode())
    expected = math.log2(384) * (len(ids) - 1) / (len(text.encode()) - first)
    records = {"code": [Record("a", text)], "none": [Record("b", "x")]}
    for length in (8, 50, 4000):  # however it is cut
        found = bits_per_byte(model, tokenizer, records, length, "cpu")
        assert found == {"code": pytest.approx(expected, rel=1e-6)}
    records = heldout_records(tiny_corpus, size=2000)
    assert set(records) == {"prose", "code"}
    assert sum(r.size for r in records["code"][:-1]) < 2000 <= sum(r.size for r in records["code"])
    assert {r.id for r in records["code"]} <= {r.id for r in tiny_corpus.read("code", "heldout")}


def test_the_manifest_is_json(tiny_base):
    json.dumps(tiny_base.manifest, allow_nan=False)
