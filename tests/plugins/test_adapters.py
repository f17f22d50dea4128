"""Adapters of every kind begin at nothing, move, apply to the original base, and refuse what they cannot do."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from recipe_runner import Adapter, Model, RecipeError, Ref
from recipe_runner.errors import InvalidRecipe
from recipe_runner.identity import digest_of, folder_files
from recipe_runner.recipe import load
from recipe_runner.testing import make, slot

slow = pytest.mark.slow
KINDS = {
    "lora": {"use": "lora", "r": 4},
    "lora-modules": {"use": "lora", "r": 4, "modules": ["embed_tokens", "lm_head"]},
    "lora-head": {"use": "lora", "r": 4, "modules": ["lm_head"]},
    "lora-rows": {"use": "lora", "r": 4, "rows": "turn-tokens"},
    "rslora": {"use": "rslora", "r": 8, "alpha": 8},
    "dora": {"use": "dora", "r": 4, "targets": ["q_proj", "down_proj"]},
    "pissa": {"use": "pissa", "r": 4, "alpha": 4},
    "pissa-exact": {"use": "pissa", "r": 4, "alpha": 4, "iterations": 0, "modules": ["embed_tokens"]},
    "loha": {"use": "peft", "method": "LOHA", "keys": {"r": 4, "alpha": 8}},
    "ia3": {"use": "peft", "method": "ia3"},
    "qlora": {"use": "qlora", "r": 4},
    "qlora-dora": {"use": "qlora", "r": 4, "method": "dora"},
    "qlora-rslora": {"use": "qlora", "r": 4, "method": "rslora", "modules": ["embed_tokens"]},
}
WITH_TABLES = ("lora-head", "lora-modules", "lora-rows", "qlora-rslora")
"""For these it matters whether the tables are one."""

EXPERTS = {
    "use": "lora", "r": 4, "targets": "attention", "target_parameters": ["gate_up_proj", "experts.down_proj"],
}  # fmt: skip
CONTEXT = SimpleNamespace(allow_remote_code=False)


def model_of(name: str, folder, tokeniser) -> Model:
    """A random model of 32 × 2, saved: `tied`, `untied` or `experts`."""
    import torch
    from transformers import AutoTokenizer

    from recipe_plugins.training.loading import save_model

    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    if name == "experts":
        shape |= {"use": "qwen3-moe", "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
        shape.pop("intermediate_size")
        shape |= {"head_dim": 8, "tie_word_embeddings": False}
    else:
        shape |= {"use": "llama", "tie_word_embeddings": name == "tied"}
    tokenizer = AutoTokenizer.from_pretrained(tokeniser.payload)
    torch.manual_seed(3)
    save_model(slot("architecture", shape).build().build(len(tokenizer)), tokenizer, folder / "payload")
    return Model(folder, digest_of(folder_files(folder / "payload")), {"type": "model"})


@pytest.fixture(scope="module")
def models(tiny_tokeniser, tmp_path_factory):
    names = ("tied", "untied", "experts")
    return {name: model_of(name, tmp_path_factory.mktemp(name), tiny_tokeniser) for name in names}


def train(method: dict, base: Model, folder, *, steps: int = 3, dtype: str = "float32"):
    """An adapter after a few steps, as it is saved; and the logits that it had."""
    import numpy as np
    import torch

    from recipe_plugins.adapters.attaching import attach, logits
    from recipe_plugins.adapters.saving import load_base, save_adapter
    from recipe_plugins.training.loading import load_tokenizer

    component = slot("adapter", method).build()
    stored = component.quantisation()
    frozen = load_base(CONTEXT, base, stored, dtype=getattr(torch, dtype), device=torch.device("cpu"))
    tokenizer = load_tokenizer(CONTEXT, base)
    row = {"input_ids": np.arange(2, 60)}
    model = attach(component, frozen, tokenizer, row, seed=1)
    moved = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    assert {str(p.dtype) for p in moved.values()} == {"torch.float32"}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    for _ in range(steps):
        ids = torch.from_numpy(row["input_ids"])[None]
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype != "float32"):
            model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert any(not torch.equal(p, moved[n]) for n, p in model.named_parameters() if n in moved)
    save_adapter(model, tokenizer, folder / "payload", Ref("base"), base)
    facts = {
        "base": base.digest, "base_dtype": dtype, "quantisation": stored.as_json() if stored else None,
    }  # fmt: skip
    manifest = {"type": "adapter", "facts": facts}
    return Adapter(folder, digest_of(folder_files(folder / "payload")), manifest), logits(model.eval(), row), row


def loaded(adapter, base):
    import torch

    from recipe_plugins.adapters.saving import load_adapted

    return load_adapted(CONTEXT, adapter, base, device=torch.device("cpu"))


@slow
@pytest.mark.parametrize(
    ("kind", "base"), [*((kind, "tied") for kind in sorted(KINDS)), *((kind, "untied") for kind in WITH_TABLES)]
)
def test_an_adapter_as_saved_computes_on_the_original_base_what_it_did_and_so_does_the_merged(
    models, base, kind, tmp_path
):
    if "qlora" in kind:
        pytest.importorskip("bitsandbytes")
    from recipe_plugins.adapters.attaching import logits

    adapter, before, row = train(KINDS[kind], models[base], tmp_path / "adapter")
    model = loaded(adapter, models[base])
    assert (logits(model, row) - before).abs().max() < 1e-4 * before.abs().max()
    with model.disable_adapter():
        assert (logits(model, row) - before).abs().max() > 1e-3 * before.abs().max(), "it moved what is computed"
    if base == "tied" and "modules" in KINDS[kind]:
        inner = model.get_base_model()
        tables = (inner.get_input_embeddings(), inner.get_output_embeddings())
        assert tables[0].modules_to_save["default"].weight is tables[1].modules_to_save["default"].weight
    merged = merge(models[base], adapter, tmp_path / "merged", min_effect=5e-4)  # three steps move some by little
    far = (logits(merged, row) - before).abs().max()
    assert far < (0.05 if "qlora" in kind else 1e-4) * before.abs().max()
    assert (merged.lm_head.weight is merged.model.embed_tokens.weight) == (base == "tied")


def merge(base: Model, adapter: Adapter, folder, **settings):
    """The model that the stage `merge` makes, whose own gate has compared it."""
    import torch
    from transformers import AutoModelForCausalLM

    config = {"model": "model", "adapter": "adapter", "execution": {"device": "cpu", "threads": 1}, **settings}
    made = make("merge", config, folder, inputs={"model": base, "adapter": adapter})
    return AutoModelForCausalLM.from_pretrained(made.payload, dtype=torch.float32).eval()


PAIRS = [
    ("tied", "lora", "rslora"),
    ("tied", "dora", "lora-rows"),
    ("tied", "pissa", "lora-modules"),
    ("tied", "lora-rows", "lora-rows"),
    ("untied", "lora-head", "lora-modules"),
    ("tied", "qlora", "qlora-rslora"),
]


@slow
@pytest.mark.parametrize(("base", "one", "two"), PAIRS)
def test_several_adapters_add_what_each_changes_by_its_weight(models, base, one, two, tmp_path):
    """What PEFT makes of the base by each adapter alone, minus the base, weighted and added to it."""
    import torch

    if "qlora" in one:
        pytest.importorskip("bitsandbytes")
    weights = {"one": 0.7, "two": -0.4}
    made = {
        name: train(KINDS[kind], models[base], tmp_path / name, steps=2 + number)[0]
        for number, (name, kind) in enumerate(zip(weights, (one, two), strict=True))
    }
    expected = plain = _state(models[base])
    for name, adapter in made.items():
        adapter_on_16_bits = Adapter(adapter.path, "", {"facts": {**adapter.facts, "quantisation": None}})
        alone = loaded(adapter_on_16_bits, models[base]).merge_and_unload().state_dict()
        expected = {t: w + weights[name] * (alone[t] - plain[t]) for t, w in expected.items()}
    config = {"adapters": {name: {"adapter": name, "weight": weight} for name, weight in weights.items()}}
    forced = {"base": "original", "relative_tolerance": 1.0} if "qlora" in one else {}
    found = several(models[base], made, tmp_path / "merged", block=4096, **{**config, **forced})
    written = _state(found)
    assert max(float((written[t] - w).abs().max()) for t, w in expected.items()) < 1e-6
    assert any(float((written[t] - w).abs().max()) > 1e-4 for t, w in plain.items())
    assert found.facts["merge"]["adapters"] == weights
    if "qlora" not in one:
        assert found.facts["merge"]["difference"] < 1e-4 < 1e-2 < found.facts["merge"]["adapter_effect"]
        card = (found.path / "README.md").read_text()
        assert all(part.digest[:12] in card for part in made.values())
    assert torch.equal(written["lm_head.weight"], written["model.embed_tokens.weight"]) == (base == "tied")


def several(model: Model, made: dict[str, Adapter], folder, **settings):
    config = {"model": "model", "execution": {"device": "cpu", "threads": 1}, "min_effect": 5e-4, **settings}
    return make("merge", config, folder, inputs={"model": model, **made})


def _state(model):
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(model.payload, dtype=torch.float32).state_dict()


@slow
def test_weights_of_adapters_go_by_tensor_and_one_whole_adapter_is_the_same_as_ever(models, tmp_path):
    import torch

    made = {"one": train(KINDS["lora"], models["tied"], tmp_path / "one")[0]}
    pattern = {"weight": {"*.q_proj.*": 0.5, "*.mlp.*": 2, "*": 0}}
    found = _state(several(models["tied"], made, tmp_path / "a", adapters={"one": {"adapter": "one", **pattern}}))
    plain, whole = _state(models["tied"]), several(models["tied"], made, tmp_path / "b", adapters={"one": "one"})
    for name, weight in plain.items():
        factor = 0.5 if ".q_proj." in name else 2 if ".mlp." in name else 0
        assert torch.allclose(found[name] - weight, factor * (_state(whole)[name] - weight), atol=1e-6)
    assert whole.digest == several(models["tied"], made, tmp_path / "c", adapter="one").digest
    with pytest.raises(RecipeError, match="no tensor takes the pattern 'lm_haed'"):
        several(
            models["tied"], made, tmp_path / "d", adapters={"one": {"adapter": "one", "weight": {"lm_haed": 1, "*": 1}}}
        )


@slow
def test_adapters_that_do_not_belong_together_are_refused(models, tmp_path):
    pytest.importorskip("bitsandbytes")
    kinds = {
        "lora": "tied",
        "qlora": "tied",
        "loha": "tied",
        "dora": "untied",
        "lora-modules": "tied",
        "lora-rows": "tied",
    }
    made = {kind: train(KINDS[kind], models[base], tmp_path / kind, steps=1)[0] for kind, base in kinds.items()}
    for kind, said in {
        "dora": "trained on another base", "qlora": "stored in different ways", "loha": "only PEFT knows",
    }.items():  # fmt: skip
        with pytest.raises(RecipeError, match=said):
            several(models["tied"], made, tmp_path / f"with-{kind}", adapters={"lora": "lora", kind: kind})
    with pytest.raises(RecipeError, match="changed by lora-rows in another way"):
        several(
            models["tied"],
            made,
            tmp_path / "tables",
            adapters={"lora-modules": "lora-modules", "lora-rows": "lora-rows"},
        )


@slow
def test_experts_are_adapted_through_their_stacked_weights(models, tmp_path):
    from recipe_plugins.adapters.attaching import logits

    adapter, before, row = train(EXPERTS, models["experts"], tmp_path / "adapter")
    model = loaded(adapter, models["experts"])
    assert (logits(model, row) - before).abs().max() < 1e-5
    adapted = {name for name, _ in model.named_parameters() if ".experts." in name and "lora_" in name}
    assert len(adapted) == 2 * 2 * 2, "A and B of two stacked weights in each of two layers"
    merged = merge(models["experts"], adapter, tmp_path / "merged")
    assert (logits(merged, row) - before).abs().max() < 1e-5


@slow
@pytest.mark.parametrize("base", ["tied", "untied"])
@pytest.mark.parametrize("method", [{"modules": ["embed_tokens", "lm_head"]}, {"rows": "new-tokens"}], ids=str)
def test_an_adapter_that_brings_tokens_resizes_its_base_wherever_it_goes(models, base, method, tmp_path):
    """Base, adapter and tokeniser give the same logits after loading and after merging in blocks."""
    import numpy as np
    import torch

    from recipe_plugins.adapters.attaching import attach, logits
    from recipe_plugins.adapters.saving import load_base, save_adapter
    from recipe_plugins.training import resize_embeddings
    from recipe_plugins.training.loading import load_tokenizer

    known, more = (load_tokenizer(CONTEXT, models[base]) for _ in range(2))
    more.add_tokens(["gneiss", "schist"])
    frozen = load_base(CONTEXT, models[base], None, dtype=torch.float32, device=torch.device("cpu"))
    new = resize_embeddings(frozen, more, known)
    row = {"input_ids": np.array([5, 6, new[0], 7, new[1], 8])}
    method = slot("adapter", {"use": "rslora", "r": 4, **method}).build()
    model = attach(method, frozen.requires_grad_(False), more, row, seed=1, new_tokens=new)
    ids = torch.from_numpy(row["input_ids"])[None]
    model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0).step()
    save_adapter(model, more, tmp_path / "adapter" / "payload", Ref("base"), models[base])
    facts = {"base": models[base].digest, "base_dtype": "float32", "quantisation": None}
    adapter = Adapter(tmp_path / "adapter", "", {"type": "adapter", "facts": facts})
    before = logits(model.eval(), row)
    assert (logits(loaded(adapter, models[base]), row) - before).abs().max() < 1e-5
    merged = merge(models[base], adapter, tmp_path / "merged", block=4096)
    assert (logits(merged, row) - before).abs().max() < 1e-5
    assert merged.config.vocab_size == merged.model.embed_tokens.weight.shape[0] == before.shape[-1]
    assert before.shape[-1] % 64 == 0


@slow
@pytest.mark.parametrize("kind", ["dora", "lora", "pissa"])
def test_a_base_in_bf16_begins_where_it_was(models, kind, tmp_path):
    train(KINDS[kind], models["tied"], tmp_path, steps=1, dtype="bfloat16")


@slow
@pytest.mark.parametrize("method", ["dora", "pissa", "rslora", "lora"])
def test_the_sizes_are_what_trains(models, method):
    import torch

    from recipe_plugins.adapters.saving import load_base
    from recipe_plugins.training.estimate import shape_of_folder
    from recipe_plugins.training.loading import load_tokenizer

    for base in (models["tied"], models["untied"]):
        use = slot("adapter", {"use": method, "r": 4, "modules": ["embed_tokens", "lm_head"]})
        frozen = load_base(CONTEXT, base, None, dtype=torch.float32, device=torch.device("cpu"))
        model = use.build().attach(frozen, load_tokenizer(CONTEXT, base), 1)
        trains = sum(p.numel() for p in model.parameters() if p.requires_grad)
        assert use.config.trainable(shape_of_folder(base.payload)) == trains


@slow
def test_the_sizes_of_named_targets_are_what_trains(models):
    import torch

    from recipe_plugins.adapters.saving import load_base
    from recipe_plugins.training.estimate import shape_of_folder
    from recipe_plugins.training.loading import load_tokenizer

    base = models["untied"]
    for targets in (["lm_head"], ["self_attn.q_proj", "mlp.down_proj"], ["q_proj", "lm_head"], "attention"):
        use = slot("adapter", {"use": "dora", "r": 4, "targets": targets})
        frozen = load_base(CONTEXT, base, None, dtype=torch.float32, device=torch.device("cpu"))
        model = use.build().attach(frozen, load_tokenizer(CONTEXT, base), 1)
        trains = sum(p.numel() for p in model.parameters() if p.requires_grad)
        assert use.config.trainable(shape_of_folder(base.payload)) == trains
    for targets in (["layers.0.self_attn.q_proj"], ["nothing"]):
        one = slot("adapter", {"use": "lora", "r": 4, "targets": targets}).config
        assert one.trainable(shape_of_folder(base.payload)) is None, "not 0"


@slow
@pytest.mark.parametrize(
    ("method", "says"),
    [
        ({"use": "lora", "r": 32}, "no wider than 32"),
        ({**EXPERTS, "r": 24, "targets": ["q_proj"]}, "no wider than 24"),
        ({**EXPERTS, "target_parameters": ["gate_up_porj"]}, "did you mean 'gate_up_proj'"),
        ({"use": "lora", "rows": "new-tokens"}, "every token is the model's own"),
        ({"use": "peft", "method": "LOHAA"}, "did you mean 'LOHA'"),
        ({"use": "peft", "method": "PREFIX_TUNING"}, "adapts no layers"),
        ({"use": "peft", "method": "LOHA", "keys": {"rnak": 4}}, "no key 'rnak'"),
        ({"use": "peft", "method": "LOHA", "keys": {"target_modules": ["q"]}}, "set by `targets`"),
        ({"use": "peft", "method": "VERA", "keys": {"projection_prng_key": "x"}}, "VERA"),
        ({"use": "peft", "method": "LORA", "keys": {"init_lora_weights": "olora"}}, "put on other weights"),
        ({"use": "peft", "method": "LORA", "keys": {"init_lora_weights": "pissa_niter_4"}}, "`use: pissa`"),
    ],
)
def test_what_an_adapter_cannot_do_is_refused(models, method, says, tmp_path):
    base = models["experts" if "target_parameters" in method else "tied"]
    with pytest.raises(RecipeError) as caught:
        train(method, base, tmp_path)
    assert says in caught.value.render()


@slow
def test_a_stage_trains_any_method_of_peft(chat, facts, tuning, tmp_path):
    settings = {"budget": {"steps": 2}, "adapter": {"use": "peft", "method": "LOHA", "keys": {"r": 2, "alpha": 4}}}
    config = {**tuning, "model": "chat", "corpus": "facts", **settings}
    made = make("lora", config, tmp_path, inputs={"chat": chat, "facts": facts})
    assert json.loads((made.payload / "adapter_config.json").read_text())["peft_type"] == "LOHA"


@slow
def test_the_embedding_may_learn_more_slowly():
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from recipe_plugins.training.groups import param_groups

    keys = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=32, tie_word_embeddings=False, **keys))
    scales = {group.role: group.lr_scale for group in param_groups(model, 0.25)}
    assert scales == {"matrix": 1.0, "embedding": 0.25, "head": 0.25, "vector": 1.0}
    built = slot("optimizer", {"use": "adamw", "lr": 0.5}).build().build(param_groups(model, 0.25))
    assert sorted(group["lr"] for group in built.param_groups) == [0.125, 0.125, 0.5, 0.5]
    assert isinstance(built, torch.optim.Optimizer)


@pytest.mark.parametrize(
    ("method", "says"),
    [
        ({"use": "lora", "modules": ["lm_head"], "rows": "turn-tokens"}, "modules trains every row"),
        ({"use": "dora", "target_parameters": ["gate_up_proj"]}, "no magnitudes"),
        ({"use": "lora", "dropout": 0.1, "target_parameters": ["gate_up_proj"]}, "no dropout"),
    ],
)
def test_settings_that_exclude_each_other(method, says):
    with pytest.raises(ValueError, match=says):
        slot("adapter", method)


@pytest.mark.parametrize("shape", ["", "size: 2M"])
def test_a_rank_at_the_width_of_a_model_that_the_recipe_makes_is_told_before_the_model_is_paid_for(shape):
    """A problem where the shape is given; a hint where it follows from a size, which depends on the real vocabulary."""
    given = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "num_key_value_heads")
    nothing = ", ".join(f"{name}: null" for name in given)
    sized = [f"stages.base.architecture={{{shape}, {nothing}}}"] if shape else []
    base: Any = load("recipes/tiny.yaml", sized).config("base").architecture.config  # type: ignore[attr-defined]
    width = base.shape(2048).linear["k_proj"][0]
    for rank, told in ((width - 1, False), (width, True)):
        ranked = [*sized, f"stages.adapter.adapter.r={rank}", f"stages.adapter.adapter.alpha={rank}"]
        try:
            found = load("recipes/tiny.yaml", ranked).hints
        except InvalidRecipe as error:
            found = error.problems
        assert [problem.what.partition(",")[0] for problem in found] == [f"r is {rank}"] * told
        assert all(problem.hint == bool(shape) for problem in found)


def test_check_hints_at_what_is_out_of_the_usual():
    usual = load("recipes/qlora-7b.yaml")
    assert usual.hints == []
    odd = load("recipes/qlora-7b.yaml", ["stages.adapter.adapter.alpha=4", "stages.adapter.optimizer.lr=2e-6"])
    found = {hint.path: hint.what for hint in odd.hints}
    assert found.keys() == {"stages.adapter.adapter", "stages.adapter.optimizer"}
    assert "alpha / r is 0.25" in found["stages.adapter.adapter"]
    for rank, names, hinted in ((511, "all-linear", 0), (512, "all-linear", 1), (512, "[q_proj]", 0)):
        ranked = [f"stages.adapter.adapter.{key}={value}" for key, value in
                  {"r": rank, "alpha": rank, "targets": names}.items()]  # fmt: skip
        wide = load("recipes/qlora-7b.yaml", ranked)  # its keys and values are 4 heads of 128
        assert [hint.what.partition(",")[0] for hint in wide.hints] == [f"r is {rank}"] * hinted
    for share, hinted in ((0.1, False), (0.5, False), (1.0, True), (0.05, True)):
        tables = load("recipes/continue-pretrain.yaml", [f"stages.continued.embedding_lr={share}"])
        assert [hint.path for hint in tables.hints] == ["stages.continued.embedding_lr"] * hinted
    high = load("recipes/sft-full-1b.yaml", ["stages.chat.optimizer.lr=2e-3"])
    assert ["is one of adapters" in hint.what for hint in high.hints] == [True]
