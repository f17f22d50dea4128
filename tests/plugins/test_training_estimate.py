"""Budgets and estimates: torch-free, but for the comparison with built models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from recipe_plugins.adapters.config import LoraAdapterConfig, QloraAdapterConfig
from recipe_plugins.training.config import Budget, TrainingConfig, micro_batch
from recipe_plugins.training.estimate import known_shape, shape_of_config
from recipe_plugins.training.footprint import activations, alternatives, footprint, training_memory
from recipe_plugins.training.known_models import KNOWN, unlike
from recipe_runner import Known, KnownInput, RecipeError
from recipe_runner.plan import make_plan
from recipe_runner.recipe import load
from recipe_runner.store import Store
from recipe_runner.testing.local import slot

RECIPES = Path(__file__).parents[2] / "recipes"
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


@pytest.mark.parametrize(("use", "kept"), [("adamw", 8), ("muon", 4)])
def test_a_plan_counts_what_an_optimizer_keeps_of_matrices(pretraining, use, kept):
    known = Known({"tokeniser": KnownInput(facts={"vocab_size": 100})})
    stage = slot("stage", {"use": "pretrain", **pretraining(optimizer=use)}).config
    shape = stage.architecture.config.shape(100)
    matrices = shape.matrices
    assert 0 < matrices < shape.parameters
    found = stage.estimate(known).memory["optimizer_states"]
    assert found == kept * matrices + 8 * (shape.parameters - matrices)


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
    exact = {name: n for name, n in found.memory.items() if name != "activations"}
    assert exact == {"weights": 131712, "gradients": 131712, "master_weights": 0, "optimizer_states": 263424}
    assert found.notes == [
        "16 bytes a parameter: weights 4 + gradients 4 + optimizer states 8",
        "1.55 tokens per parameter; Chinchilla's is 20",
    ]

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
    _built_as_said(slot("architecture", {"use": "llama", **SMALL, **changes}))


def _built_as_said(architecture):
    built = architecture.build().build(100)
    assert architecture.config.parameters(100) == sum(p.numel() for p in built.parameters())
    assert shape_of_config(built.config.to_dict()) == architecture.config.shape(100)
    return built


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": False}, {"intermediate_size": 40}])
def test_what_is_planned_of_gpt2_is_what_is_built(changes):
    gpt2 = slot("architecture", {"use": "gpt2", **SMALL, **changes})
    built = _built_as_said(gpt2)
    vectors = sum(p.numel() for p in built.parameters() if p.ndim == 1)
    attention = 12 * SMALL["num_hidden_layers"] * SMALL["hidden_size"] * 64
    head = 100 * SMALL["hidden_size"]
    matrices = sum(p.numel() for p in built.transformer.h.parameters() if p.ndim == 2)
    assert gpt2.config.shape(100).flops_per_token(64) == 6 * (matrices + vectors + head) + attention


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model_type", "changes"),
    [
        ("llama", {"attention_bias": True, "mlp_bias": True}),
        ("qwen2", {"num_key_value_heads": 2}),
        ("qwen3", {"head_dim": 16}),
        ("mistral", {"num_key_value_heads": 2}),
        ("gpt2", {}),
        ("gpt2", {"n_inner": 40, "n_positions": 20}),
        (
            "qwen3_moe",
            {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "mlp_only_layers": [0]},
        ),
    ],
)
@pytest.mark.parametrize("tied", [True, False])
def test_the_family_is_counted_as_transformers_builds_it(model_type, changes, tied):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from recipe_plugins.training.groups import param_groups

    config = AutoConfig.for_model(model_type, vocab_size=100, tie_word_embeddings=tied, **SMALL, **changes)
    with torch.device("meta"):
        built = AutoModelForCausalLM.from_config(config)
    shape = shape_of_config(config.to_dict())
    assert shape.parameters == sum(p.numel() for p in built.parameters())
    matrices = [p for group in param_groups(built) if group.role == "matrix" for p in group.params]
    assert shape.matrices == sum(p.numel() for p in matrices)


# ── models on the hub, before anything is fetched ────────────────────────────────────────────────────────────────

COUNTED = {
    "HuggingFaceTB/SmolLM2-135M": 134_515_008, "HuggingFaceTB/SmolLM2-1.7B": 1_711_376_384,
    "Qwen/Qwen2.5-0.5B": 494_032_768, "Qwen/Qwen2.5-1.5B": 1_543_714_304, "Qwen/Qwen2.5-7B": 7_615_616_512,
    "Qwen/Qwen3-0.6B": 596_049_920, "Qwen/Qwen3-8B": 8_190_735_360, "Qwen/Qwen3-8B-Base": 8_190_735_360,
    "meta-llama/Llama-3.1-8B": 8_030_261_248,
}  # fmt: skip
"""Parameters, tied ones once, as the safetensors indexes of these repositories count them."""


@pytest.mark.parametrize("name", KNOWN)
def test_the_shapes_that_are_shipped_have_the_parameters_that_the_hub_counts(name):
    counted = COUNTED[name.removesuffix("-Instruct").replace("0.6B-Base", "0.6B")]
    assert shape_of_config(KNOWN[name]).parameters == counted


def test_a_plan_knows_these_models_without_their_files_and_the_run_tells_where_they_differ(tmp_path):
    ref = "Qwen/Qwen2.5-7B@d149729398750b98c0af14eb82c78cfe92750796"
    assert known_shape(Known({"model": KnownInput(hub=ref)}), "model").parameters == 7_615_616_512
    assert known_shape(Known({"model": KnownInput(hub="org/other")}), "model") is None
    (tmp_path / "config.json").write_text(json.dumps({**QWEN_7B, "num_hidden_layers": 2}))
    here = known_shape(Known({"model": KnownInput(payload=tmp_path, hub=ref)}), "model")
    assert here.layers == 2, "the config that is there counts"
    assert unlike(ref, {**QWEN_7B, "vocab_size": 3}) == unlike("org/other", {}) == ""
    assert unlike(ref, {**QWEN_7B, "num_hidden_layers": 2}) == (
        f"the plan of {ref} was made for another shape: num_hidden_layers 2, planned 28"
    )


def test_qlora_of_seven_billion_is_planned_with_what_it_saves(tmp_path):
    """The shipped recipe, on a machine that has nothing of the model."""
    recipe = load(str(RECIPES / "qlora-7b.yaml"))
    found = {plan.stage: plan.estimate for plan in make_plan(recipe, Store(tmp_path))}["adapter"]
    assert (found.parameters, found.trainable) == (7_656_001_024, 40_384_512)
    assert 5e9 < found.memory["weights"] < 6e9, "half a byte a linear weight, 2 a weight of the tables"
    assert 1e9 < found.memory["activations"] < 4e9
    assert found.notes[0].startswith("all weights trained would take 122 GB before activations, 16 bytes a parameter;")


def test_a_merge_fits_where_it_can_do_without_comparing_whole_models():
    known = Known({"model": KnownInput(hub="Qwen/Qwen2.5-7B")})
    merge = {"use": "merge", "model": "Qwen/Qwen2.5-7B", "adapter": "adapter", "precision": "bf16"}
    found = slot("stage", merge).config.estimate(known)
    assert found.memory == {"block": 3 * 2**26}
    assert found.notes == [
        "whole models are compared where 18.3 GB are free, else weights only; one trained on 4 bits then needs `base:` "
        "to name what it is merged into"
    ]
    asked = slot("stage", {**merge, "gate": "logits"}).config.estimate(known)
    assert (asked.memory, asked.notes) == ({"weights": int(1.2 * 2 * 7_615_616_512)}, [])


def test_pairs_and_groups_are_counted_in_a_forward_pass():
    settings = {"model": "m", "corpus": "c", "batch_size": 64, "sequence_length": 1024, "budget": {"steps": 1}}
    rows = {use: micro_batch(slot("stage", {"use": use, **settings}).config, 1)[0] for use in ("preference", "reward")}
    grpo = {"use": "grpo", **settings, "group": 8, "rewards": {"exact": "exact-match"}}
    assert rows | {"grpo": micro_batch(slot("stage", grpo).config, 1)[0]} == {"preference": 4, "reward": 4, "grpo": 1}


def test_what_judges_whole_answers_holds_all_logits_and_a_reward_model_none():
    shape = shape_of_config(QWEN_7B)
    settings = {"model": "m", "corpus": "c", "batch_size": 4, "sequence_length": 2048, "budget": {"steps": 1}}

    def held(use, **changes):
        config = slot("stage", {"use": use, **settings, "precision": "bf16", **changes}).config
        found = activations(config, shape, whole=True)
        assert found is not None
        return found

    tokens = 4 * 2048  # of two pairs, or of four rows
    all_logits = held("preference") - held("reward")
    assert all_logits == 10 * tokens * 152064
    assert held("sft") - held("reward") == 10 * 2**26 < all_logits


def test_checkpoints_on_the_disk_are_bounded_by_what_is_kept(pretraining):
    def disk(**changes):
        config = slot("stage", {"use": "pretrain", **pretraining(**changes)}).config
        found = config.estimate(Known({"tokeniser": KnownInput({"vocab_size": 384})}))
        return found.disk / found.parameters

    kept = {"keep_checkpoints": 2}
    assert disk(execution=kept) == 12 * 4, "two, one while saving, and the branch"
    assert disk(execution=kept, evaluation={"every": 5, "keep": "best"}) == 12 * 5
    assert disk(execution=kept, precision="bf16-master") == 14 * 4, "weights in 16 bits, masters and moments in 32"


# ── memory ───────────────────────────────────────────────────────────────────────────────────────────────────────


def memory(shape=None, trained=1000, **changes):
    return footprint(training(**changes), shape, trained=trained, state_bytes=8 * trained)


def test_what_fsdp_shards_is_divided_among_the_processes():
    four = {"processes": 4, "strategy": "fsdp"}
    whole = memory()
    assert memory(execution=four) == {name: n // 4 for name, n in whole.items()}
    part = memory(execution={**four, "shard": "optimizer-and-gradients"})
    assert part == {name: n if name == "weights" else n // 4 for name, n in whole.items()}
    assert memory(execution={**four, "strategy": "ddp"}) == whole


def test_alternatives_take_less_and_less_and_only_what_is_less_is_told():
    shape = shape_of_config(QWEN_7B)
    config = training(precision="bf16", sequence_length=2048, execution={"micro_batch": 8})
    count = shape.parameters
    found = alternatives(config, shape, count, 8 * count, None)
    assert list(found) == [
        "gradient_checkpointing: true", "gradient_checkpointing: true, execution.micro_batch: 1",
        "these and lora on a frozen bf16 base", "these and qlora on a frozen NF4 base",
    ]  # fmt: skip
    totals = [sum(footprint(config, shape, trained=count, state_bytes=8 * count).values()), *found.values()]
    assert totals == sorted(set(totals), reverse=True)
    least = training(precision="bf16", gradient_checkpointing=True, execution={"micro_batch": 1})
    lora, nf4 = LoraAdapterConfig().trainable(shape), QloraAdapterConfig().base_bytes(shape, 2)
    assert alternatives(least, shape, lora, 8 * lora, nf4) == {}


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3"])
def test_activations_are_within_a_sixth_of_what_autograd_keeps(model_type, precision):
    """Of a layer: the difference of models of two and of four, without the 16-bit copies of their weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    keys = {
        "hidden_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 172,
        "head_dim": 16,
    }
    kept, told, copies = [], [], []
    for layers in (2, 4):
        config = AutoConfig.for_model(model_type, vocab_size=64, num_hidden_layers=layers, **keys)
        model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").train()
        own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        found: dict[int, torch.Tensor] = {}

        def keep(tensor, own=own, found=found):
            if tensor.untyped_storage().data_ptr() not in own:
                found[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        mixed = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), mixed:
            model.model(input_ids=torch.zeros(2, 128, dtype=torch.long), use_cache=False)
        shape = shape_of_config(config.to_dict())
        stage = training(batch_size=2, sequence_length=128, precision=precision, execution={"micro_batch": 2})
        kept.append(sum(tensor.untyped_storage().nbytes() for tensor in found.values()))
        told.append(activations(stage, shape, whole=True))
        copies.append(2 * shape.multiplied)
    assert 6 / 7 < (told[1] - told[0]) / (kept[1] - kept[0]) < 7 / 6
    assert precision == "fp32" or told[1] - told[0] > copies[1] - copies[0]
