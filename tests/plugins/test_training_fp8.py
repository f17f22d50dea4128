"""fp8: which layers compute in it, what is refused and when, and that the model has its own layers back.

What needs torchao is tested where it is installed (extra `fp8`), on any device, since it can compute the same from
rounded operands. On a GPU that has fp8: `recipe run pretrain-125m stages.base.precision=fp8 --until base`.
"""

from __future__ import annotations

import importlib.util

import pytest

from recipe_runner import RecipeError
from recipe_runner.testing import make, slot

pytestmark = pytest.mark.slow

SHAPE = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 32}


def llama(**changes):
    import torch

    torch.manual_seed(0)
    return slot("architecture", {"use": "llama", "intermediate_size": 48, **SHAPE, **changes}).build().build(64)


def names(model):
    from recipe_plugins.training.float8 import rounded_layers

    return [name.rpartition(".")[2] for name in rounded_layers(model)]


ATTENTION, MLP = ["q_proj", "k_proj", "v_proj", "o_proj"], ["gate_proj", "up_proj", "down_proj"]


@pytest.mark.parametrize("tied", [True, False])
def test_the_head_and_odd_shapes_are_left_out(tied):
    assert names(llama(tie_word_embeddings=tied)) == ATTENTION + MLP
    assert names(llama(intermediate_size=40, tie_word_embeddings=tied)) == ATTENTION
    assert names(llama(hidden_size=24, intermediate_size=48, tie_word_embeddings=tied)) == []


def test_models_without_a_layer_for_it_are_refused():
    from recipe_plugins.training.float8 import instead

    with (
        pytest.raises(RecipeError, match="multiple of 16, and LlamaForCausalLM has none"),
        instead(llama(hidden_size=24)),
    ):
        pass
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 16}
    mixture = slot("architecture", {"use": "qwen3-moe", **SHAPE, **experts}).build().build(64)
    with pytest.raises(RecipeError, match="does not take a mixture of experts"), instead(mixture):
        pass


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"execution": {"device": "cpu"}, "compile": True}, "needs a GPU that has it, and execution.device is cpu"),
        ({"compile": False}, "slower than bf16 without torch.compile: set compile: true"),
    ],
)
def test_check_refuses_what_it_can_know(changes, says):
    from recipe_plugins.training import TrainingConfig

    settings = {"budget": {"steps": 1}, "batch_size": 1, "sequence_length": 8, "precision": "fp8"}
    with pytest.raises(ValueError, match=says):
        TrainingConfig.model_validate({**settings, **changes})


def test_an_adapter_in_fp8_is_refused_by_check(tuning):
    fp8 = {"precision": "fp8", "compile": True, "execution": {}}
    for use, more in (("lora", {}), ("grpo", {"adapter": "lora", "rewards": {"right": "exact-match"}})):
        with pytest.raises(Exception, match="fp8 is for training in full"):
            slot("stage", {"use": use, **tuning, **fp8, "model": "a", "corpus": "b", **more})


@pytest.mark.parametrize("stage", ["pretrain", "sft"])
def test_a_device_without_it_is_refused_before_anything_is_prepared(
    stage, tmp_path, pretraining, tuning, tiny_corpus, tiny_tokeniser, tiny_base, monkeypatch
):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    fp8 = {"precision": "fp8", "compile": True, "execution": {"device": "auto", "threads": 1}}
    config = pretraining(**fp8) if stage == "pretrain" else {**tuning, **fp8, "model": "base", "corpus": "corpus"}
    inputs = {"corpus": tiny_corpus, "tokeniser": tiny_tokeniser, "base": tiny_base}
    with pytest.raises(RecipeError, match=r"compute capability 8.9 or later .*, and this is cpu"):
        make(stage, config, tmp_path, inputs=inputs)
    assert not list((tmp_path / "work").iterdir())


def test_an_old_gpu_and_a_missing_library_are_named(monkeypatch):
    import torch

    from recipe_plugins.training.float8 import refuse_without

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    with pytest.raises(RecipeError, match=r"this is a GPU of compute capability 8\.6"):
        refuse_without(torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 9))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RecipeError, match="needs torchao") as error:
        refuse_without(torch.device("cuda"))
    assert error.value.next == "pip install 'recipe-runner[fp8]'"


def test_it_is_near_fp32_with_the_same_weights_and_ends(tmp_path):
    pytest.importorskip("torchao")
    import torch
    from torch import nn

    from recipe_plugins.training.float8 import instead

    model, ids = llama(), torch.arange(24)[None]
    weights = dict(model.named_parameters())
    whole = model(input_ids=ids, labels=ids, use_cache=False)
    whole.loss.backward()
    gradients = {name: p.grad.clone() for name, p in weights.items()}
    model.zero_grad()
    with instead(model, emulate=True) as found:
        assert found == {"layers": 7, "parameters": 4 * 32 * 32 + 3 * 32 * 48}
        assert all(p is weights[name] for name, p in model.named_parameters())
        rounded = model(input_ids=ids, labels=ids, use_cache=False)
        rounded.loss.backward()
    assert rounded.loss.item() != whole.loss.item()
    assert rounded.loss.item() == pytest.approx(whole.loss.item(), rel=1e-2)
    for name, p in weights.items():
        assert torch.cosine_similarity(p.grad.flatten(), gradients[name].flatten(), dim=0) > 0.98, name
    assert {type(module) for module in model.modules() if isinstance(module, nn.Linear)} == {nn.Linear}
    assert all(p is weights[name] for name, p in model.named_parameters())
    assert torch.equal(model(input_ids=ids, use_cache=False).logits, whole.logits)
