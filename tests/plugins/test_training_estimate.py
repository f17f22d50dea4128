"""Budgets and estimates: torch-free, but for the comparison with built models."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from recipe_plugins.training.config import Budget, TrainingConfig, micro_batch
from recipe_plugins.training.estimate import shape_of_config, training_memory
from recipe_runner import Known, KnownInput, RecipeError
from recipe_runner.testing.local import slot

QWEN_7B = {
    "model_type": "qwen2", "hidden_size": 3584, "num_hidden_layers": 28, "num_attention_heads": 28,
    "num_key_value_heads": 4, "intermediate_size": 18944, "vocab_size": 152064, "tie_word_embeddings": False,
}  # fmt: skip
SMALL = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 80}


def training(**changes):
    return TrainingConfig.model_validate({"budget": {"steps": 5}, "batch_size": 16, "sequence_length": 256, **changes})


@pytest.mark.parametrize(
    ("budget", "steps"),
    [
        ({"steps": 7}, 7),
        ({"tokens": "1.6M"}, 391),
        ({"tokens": "1.6M", "scale": 0.1}, 39),
        ({"tokens": 1}, 1),
        ({"epochs": 2}, 13),
        ({"tokens_per_parameter": 20}, 49),
        ({"flops": 1e12}, 5),
        ({"minutes": 2, "scale": 0.5}, 40),
    ],
)
def test_budgets_become_steps(budget, steps):
    known = {"rows": 100, "parameters": 10_000, "flops_per_token": 5e7, "seconds_per_step": 1.5}
    assert training(budget=budget).steps(**known) == steps


def test_a_budget_that_depends_on_the_unknown_is_unknown():
    assert training(budget={"epochs": 2}).steps(rows=None, parameters=1) is None
    assert training(budget={"tokens_per_parameter": 20}).steps(rows=1, parameters=None) is None
    for unit in ("flops", "minutes"):
        assert training(budget={unit: 1}).steps(rows=1, parameters=1) is None
        with pytest.raises(RecipeError, match=f"a budget in {unit} cannot be turned into steps here"):
            training(budget={unit: 1}).resolved_steps(rows=1, parameters=1)


@pytest.mark.parametrize("written", [{}, {"steps": 1, "tokens": 1}, {"steps": 0}, {"steps": 1, "scale": 0}])
def test_a_budget_has_one_unit(written):
    with pytest.raises(ValidationError):
        Budget(**written)


def test_micro_batches_cover_the_step():
    assert micro_batch(training(), 1) == (16, 1)
    assert micro_batch(training(execution={"micro_batch": 3}), 2) == (3, 3)
    assert micro_batch(training(sequence_length=4096), 1) == (2, 8)
    with pytest.raises(RecipeError, match="16 rows cannot be divided among 3"):
        micro_batch(training(), 3)


def test_seven_billion_take_112_gb_in_both_layouts():
    adamw = slot("optimizer", "adamw").config
    billion = 10**9

    def gigabytes(layout):
        state = adamw.state_bytes(7 * billion)
        return [n / billion for n in training_memory(7 * billion, layout=layout, state_bytes=state).values()]

    assert gigabytes("bf16") == [28, 28, 0, 56]
    assert gigabytes("bf16-master") == [14, 14, 28, 56]


def test_qwen_is_counted_right():
    shape = shape_of_config(QWEN_7B)
    assert shape.parameters == 7_615_616_512  # as its model card and safetensors index say
    assert shape.multiplied == shape.parameters - 152064 * 3584


def test_flops_follow_the_formula():
    shape = shape_of_config({**SMALL, "model_type": "llama", "vocab_size": 100, "tie_word_embeddings": True})
    table = 100 * 48
    assert shape.flops_per_token(64) == 6 * (shape.parameters - table + table) + 12 * 3 * 48 * 64


def test_an_unknown_model_type_is_named():
    with pytest.raises(RecipeError, match="'mamba'"):
        shape_of_config({"model_type": "mamba"})


def test_the_chain_is_estimated_before_anything_exists(pretraining, tmp_path):
    config = pretraining(budget={"tokens": 51_200})
    base = slot("stage", {"use": "pretrain", **config}).config
    found = base.estimate(Known({"tokeniser": KnownInput({"vocab_size": 384})}))
    assert found.parameters == 32928
    assert (found.steps, found.tokens) == (100, 51_200)
    assert found.memory == {"weights": 131712, "gradients": 131712, "master_weights": 0, "optimizer_states": 263424}
    assert found.notes == ["1.55 tokens per parameter; Chinchilla's is 20"]

    shared = {key: config[key] for key in ("corpus", "batch_size", "sequence_length", "budget")}
    anneal = slot("stage", {"use": "anneal", "model": "base", **shared}).config
    after = anneal.estimate(Known({"model": KnownInput(found.facts)}))
    assert (after.parameters, after.memory, after.flops) == (found.parameters, found.memory, found.flops)

    assert base.estimate(Known()).parameters is None
    assert anneal.estimate(Known()).memory == {}
    (tmp_path / "config.json").write_text(json.dumps(QWEN_7B))
    hub = anneal.estimate(Known({"model": KnownInput(payload=tmp_path)}))
    assert hub.parameters == 7_615_616_512


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": False}, {"num_key_value_heads": 2}])
def test_llama_has_exactly_the_parameters_it_says(changes):
    llama = slot("architecture", {"use": "llama", **SMALL, **changes})
    built = llama.build().build(100)
    assert llama.config.parameters(100) == sum(p.numel() for p in built.parameters())
    assert shape_of_config(built.config.to_dict()) == llama.config.shape(100)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model_type", "changes"),
    [
        ("llama", {"attention_bias": True, "mlp_bias": True}),
        ("qwen2", {"num_key_value_heads": 2}),
        ("qwen3", {"head_dim": 16}),
        ("mistral", {"num_key_value_heads": 2}),
    ],
)
@pytest.mark.parametrize("tied", [True, False])
def test_the_family_is_counted_as_transformers_builds_it(model_type, changes, tied):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(model_type, vocab_size=100, tie_word_embeddings=tied, **SMALL, **changes)
    with torch.device("meta"):
        built = AutoModelForCausalLM.from_config(config)
    assert shape_of_config(config.to_dict()).parameters == sum(p.numel() for p in built.parameters())
