"""Liger's kernels: what they take the place of, and what is refused. The kernels themselves need a GPU.

On one: `recipe run pretrain-125m stages.base.liger=true --until base`.
"""

from __future__ import annotations

import importlib
import importlib.util

import pytest

from recipe_runner import RecipeError
from recipe_runner.testing import make, slot

pytestmark = pytest.mark.slow

SHAPE = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 32}
MODULES = {
    "Llama": "llama", "Mistral": "mistral", "Mixtral": "mixtral", "Ministral": "ministral", "Qwen2": "qwen2",
    "Qwen3": "qwen3", "Qwen3Moe": "qwen3_moe", "SmolLM3": "smollm3", "Phi3": "phi3", "Granite": "granite",
}  # fmt: skip


def built(use, **changes):
    return slot("architecture", {"use": use, **SHAPE, "intermediate_size": 48, **changes}).build().build(64)


def test_every_norm_that_is_replaced_is_llamas():
    import torch

    from recipe_plugins.training.liger import NORMS

    assert {f"{family}RMSNorm" for family in MODULES} == NORMS
    given, weight = torch.randn(3, 16).bfloat16(), torch.rand(16)
    wide = given.float()
    expected = weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-3)).bfloat16()
    for family, name in MODULES.items():
        module = importlib.import_module(f"transformers.models.{name}.modeling_{name}")
        norm = getattr(module, f"{family}RMSNorm")(16, eps=1e-3)
        norm.weight.data = weight
        assert torch.equal(norm(given), expected), family


def test_norms_are_replaced_with_their_own_weights_and_come_back():
    from recipe_plugins.training.liger import Norm, instead

    model = built("qwen3", head_dim=16)
    own, weights = dict(model.named_modules()), dict(model.named_parameters())
    with instead(model) as found:
        assert found == {"norms": 5}  # two of the layer, its queries' and keys', and the last
        assert sum(type(module) is Norm for module in model.modules()) == 5
        assert model.model.norm.eps == own["model.norm"].variance_epsilon
        assert [name for name, _ in model.named_parameters()] == list(weights)
        assert all(p is weights[name] for name, p in model.named_parameters())
    assert all(module is own[name] for name, module in model.named_modules())


def test_an_architecture_without_such_norms_is_refused():
    from recipe_plugins.training.liger import instead

    with pytest.raises(RecipeError, match="liger has no kernels here for GPT2LMHeadModel"), instead(built("gpt2")):
        pass


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"execution": {"device": "cpu"}}, "need a CUDA GPU, and execution.device is cpu"),
        ({"precision": "fp16"}, "before fp16's scale is on them"),
    ],
)
def test_check_refuses_what_it_can_know(changes, says):
    from recipe_plugins.training import TrainingConfig

    settings = {"budget": {"steps": 1}, "batch_size": 1, "sequence_length": 8, "liger": True}
    with pytest.raises(ValueError, match=says):
        TrainingConfig.model_validate({**settings, **changes})


def test_a_cpu_is_refused_before_anything_is_prepared(tmp_path, pretraining, tiny_corpus, tiny_tokeniser, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    config = pretraining(liger=True, execution={"device": "auto", "threads": 1})
    with pytest.raises(RecipeError, match="liger: its kernels need a CUDA GPU, and this is cpu"):
        make("pretrain", config, tmp_path, inputs={"corpus": tiny_corpus, "tokeniser": tiny_tokeniser})
    assert not list((tmp_path / "work").iterdir())


def test_a_missing_library_is_named(monkeypatch):
    import torch

    from recipe_plugins.training.liger import refuse_without

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RecipeError, match="needs liger-kernel") as error:
        refuse_without(torch.device("cuda"))
    assert error.value.next == "pip install 'recipe-runner[liger]'"
