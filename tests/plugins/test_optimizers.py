"""Optimizers, and the groups that they are built from."""

from __future__ import annotations

import pytest

from recipe_runner import ParamGroup
from recipe_runner.testing.local import slot

pytestmark = pytest.mark.slow

SHAPE = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}


def groups(**changes):
    from recipe_plugins.training.groups import param_groups

    model = slot("architecture", {"use": "llama", **SHAPE, **changes}).build().build(100)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {g.role: (g.decay, sorted(names[id(p)] for p in g.params)) for g in param_groups(model)}
    assert sum(len(group) for _, group in found.values()) == len(names)
    return found


def test_groups_go_by_module():
    found = groups(tie_word_embeddings=False)
    assert list(found) == ["matrix", "embedding", "head", "vector"]
    assert found["embedding"] == (False, ["model.embed_tokens.weight"])
    assert found["head"] == (True, ["lm_head.weight"])
    assert found["vector"][0] is False
    assert all("norm" in name for name in found["vector"][1])
    assert found["matrix"][0] is True
    assert len(found["matrix"][1]) == 7


def test_a_tied_head_is_an_embedding_once():
    found = groups(tie_word_embeddings=True)
    assert "head" not in found
    assert found["embedding"] == (False, ["model.embed_tokens.weight"])


def test_frozen_parameters_are_in_no_group():
    from recipe_plugins.training.groups import param_groups

    model = slot("architecture", {"use": "llama", **SHAPE}).build().build(100)
    model.requires_grad_(False)
    model.lm_head.weight.requires_grad_(True)
    assert [group.role for group in param_groups(model)] == ["embedding"]


@pytest.mark.parametrize("use", ["adamw", "adamw-8bit", "paged-adamw-8bit"])
def test_settings_reach_the_optimizer_and_the_state_is_exact(use, tmp_path):
    import torch

    from recipe_plugins.training.checkpoints import load

    written = slot("optimizer", {"use": use, "lr": 0.01, "betas": [0.8, 0.9], "eps": 1e-6, "weight_decay": 0.3})

    def made():
        torch.manual_seed(0)
        weights = [torch.nn.Parameter(torch.randn(128, 64)), torch.nn.Parameter(torch.randn(8))]
        built = [ParamGroup([weights[0]], "matrix", True), ParamGroup([weights[1]], "vector", False, lr_scale=0.5)]
        return weights, written.build().build(built)

    def step(weights, optimizer, seed):
        torch.manual_seed(seed)
        for weight in weights:
            weight.grad = torch.randn_like(weight)
        optimizer.step()

    weights, optimizer = made()
    assert [(g["lr"], g["weight_decay"]) for g in optimizer.param_groups] == [(0.01, 0.3), (0.005, 0.0)]
    assert tuple(optimizer.param_groups[0]["betas"]) == (0.8, 0.9)
    assert optimizer.param_groups[0]["eps"] == 1e-6
    step(weights, optimizer, 1)
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    others, again = made()
    with torch.no_grad():
        for one, other in zip(weights, others, strict=True):
            other.copy_(one)
    again.load_state_dict(load(tmp_path / "state.pt"))
    step(weights, optimizer, 2)
    step(others, again, 2)
    assert all(torch.equal(one, other) for one, other in zip(weights, others, strict=True))


def test_bytes_of_state_are_what_the_optimizer_keeps():
    import torch

    size = 256 * 64
    for use in ("adamw", "adamw-8bit", "paged-adamw-8bit", "lion", "sgd"):
        chosen = slot("optimizer", use)
        weight = torch.nn.Parameter(torch.randn(256, 64))
        optimizer = chosen.build().build([ParamGroup([weight], "matrix", True)])
        weight.grad = torch.randn_like(weight)
        optimizer.step()
        state = optimizer.state[weight]
        kept = sum(
            value.numel() * value.element_size()
            for name, value in state.items()
            if torch.is_tensor(value) and name != "step" and not name.startswith("qmap")  # tables shared by all
        )
        assert kept == chosen.config.state_bytes(size)
