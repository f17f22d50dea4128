"""Muon, Lion, Adafactor, SGD and 8-bit AdamW: exact state, groups that keep their settings, a loss that falls."""

from __future__ import annotations

import sys

import pytest
from pydantic import ValidationError

from recipe_runner import ParamGroup, RecipeError
from recipe_runner.testing import check_optimizer, slot

pytestmark = pytest.mark.slow

ADDED = {"muon": {}, "adamw-8bit": {"lr": 0.01}, "lion": {"lr": 0.01}, "adafactor": {}, "sgd": {}}
CHOICES = [
    *ADDED.items(),
    ("muon", {"nesterov": False, "adjust_lr": "match_rms_adamw", "ns_steps": 2}),
    ("adafactor", {"beta1": 0.9, "scale_parameter": False}),
    ("sgd", {"nesterov": True, "weight_decay": 0.1}),
]


def made(use, **settings):
    """A small network of every role, the torch-side groups' settings known, and its optimizer."""
    import torch

    torch.manual_seed(0)
    roles = {
        "embedding": torch.nn.Parameter(torch.randn(16, 64)),
        "matrix": torch.nn.Parameter(torch.randn(64, 64) / 8),
        "head": torch.nn.Parameter(torch.randn(16, 64) / 8),
        "vector": torch.nn.Parameter(torch.ones(64)),
    }
    groups = [
        ParamGroup([parameter], role, decay=role in ("matrix", "head"), lr_scale=0.5 if role == "head" else 1.0)
        for role, parameter in roles.items()
    ]
    return roles, slot("optimizer", {"use": use, **settings}).build().build(groups)


def loss_of(roles):
    """Which token follows which: the successor of i is 3 i + 1 modulo 16."""
    import torch

    tokens = torch.arange(16)
    hidden = torch.tanh(roles["embedding"][tokens] @ roles["matrix"]) * roles["vector"]
    return torch.nn.functional.cross_entropy(hidden @ roles["head"].T, (3 * tokens + 1) % 16)


def trained(roles, optimizer, steps):
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = loss_of(roles)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize(("use", "settings"), CHOICES)
def test_state_is_exact_in_one_group(use, settings):
    import torch

    torch.manual_seed(0)
    check_optimizer(slot("optimizer", {"use": use, **settings}).build(), [torch.nn.Parameter(torch.randn(128, 64))])


@pytest.mark.parametrize(("use", "settings"), CHOICES)
def test_a_run_goes_on_from_disk_bit_for_bit(use, settings, tmp_path):
    import torch

    from recipe_plugins.training.checkpoints import load

    roles, optimizer = made(use, **settings)
    trained(roles, optimizer, 3)
    for group in optimizer.param_groups:
        group["lr"] *= 0.5  # as a schedule does
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    others, again = made(use, **settings)
    with torch.no_grad():
        for role, parameter in roles.items():
            others[role].copy_(parameter)
    again.load_state_dict(load(tmp_path / "state.pt"))
    assert [group["lr"] for group in again.param_groups] == [group["lr"] for group in optimizer.param_groups]
    assert trained(roles, optimizer, 3) == trained(others, again, 3)
    assert all(torch.equal(roles[role], others[role]) for role in roles)


@pytest.mark.parametrize(("use", "settings"), CHOICES)
def test_the_loss_falls(use, settings):
    losses = trained(*made(use, **settings), 40)
    assert losses[-1] < losses[0] - 0.5


@pytest.mark.parametrize("use", ["adamw-8bit", "lion", "adafactor", "sgd"])
def test_groups_have_their_rates_and_decay(use):
    _, optimizer = made(use, lr=0.01, weight_decay=0.3)
    found = [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups]
    assert found == [(0.01, 0.0), (0.01, 0.3), (0.005, 0.3), (0.01, 0.0)]


def test_muon_steps_matrices_and_adamw_the_rest():
    import torch

    roles, optimizer = made("muon", lr=0.04, adamw_lr=0.01, weight_decay=0.3, adamw_betas=[0.8, 0.9], momentum=0.7)
    found = [(group["kind"], group["lr"], group["weight_decay"]) for group in optimizer.param_groups]
    assert found == [("adamw", 0.01, 0.0), ("muon", 0.04, 0.3), ("adamw", 0.005, 0.3), ("adamw", 0.01, 0.0)]
    before = {role: parameter.detach().clone() for role, parameter in roles.items()}
    trained(roles, optimizer, 1)
    assert set(optimizer.state[roles["matrix"]]) == {"momentum_buffer"}
    assert set(optimizer.state[roles["head"]]) == {"step", "exp_avg", "exp_avg_sq"}

    alone = {role: torch.nn.Parameter(value.clone()) for role, value in before.items()}
    muon = torch.optim.Muon([alone["matrix"]], lr=0.04, weight_decay=0.3, momentum=0.7)
    rest = torch.optim.AdamW(
        [
            {"params": [alone["embedding"], alone["vector"]], "lr": 0.01, "weight_decay": 0.0},
            {"params": [alone["head"]], "lr": 0.005, "weight_decay": 0.3},
        ],
        betas=(0.8, 0.9),
    )
    loss_of(alone).backward()
    muon.step()
    rest.step()
    assert all(torch.allclose(alone[role], roles[role], atol=1e-6) for role in roles)


@pytest.mark.parametrize("adjust_lr", ["original", "match_rms_adamw"])
@pytest.mark.parametrize("nesterov", [True, False])
def test_matrices_that_are_stepped_together_move_as_torch_moves_each(adjust_lr, nesterov, monkeypatch):
    """Lying and standing, in several batches; to the rounding of bf16, in which torch iterates too."""
    import torch

    monkeypatch.setattr("recipe_plugins.optimizers.muon.TOGETHER", 3 * 8 * 16)
    torch.manual_seed(0)
    ours = [torch.nn.Parameter(torch.randn(shape)) for shape in [(8, 16), (16, 8), (8, 8), *[(8, 16)] * 5]]
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    settings = {"lr": 0.1, "weight_decay": 0.3, "nesterov": nesterov}
    optimizer = slot("optimizer", {"use": "muon", "adjust_lr": adjust_lr, **settings}).build()
    optimizer = optimizer.build([ParamGroup(ours, "matrix", decay=True)])
    muon = torch.optim.Muon(theirs, adjust_lr_fn=adjust_lr, **settings)
    for _ in range(3):
        for one, other in zip(ours, theirs, strict=True):
            one.grad = torch.randn_like(one)
            other.grad = one.grad.clone()
        optimizer.step()
        muon.step()
    moved = [(one - other).norm() / other.norm() for one, other in zip(ours, theirs, strict=True)]
    assert max(moved) < 2e-3


def test_a_step_of_lion_is_the_paper_s():
    """From m = -1 and 1, with g = 2: c = .9 m + .1 g = -0.7 and 1.1; w - lr (sign c + decay w); m = .99 m + .01 g."""
    import torch

    weight = torch.nn.Parameter(torch.tensor([1.0, 1.0]))
    chosen = slot("optimizer", {"use": "lion", "lr": 0.1, "weight_decay": 0.5})
    optimizer = chosen.build().build([ParamGroup([weight], "matrix", decay=True)])
    optimizer.state[weight]["momentum_buffer"] = torch.tensor([-1.0, 1.0])
    weight.grad = torch.tensor([2.0, 2.0])
    optimizer.step()
    assert torch.allclose(weight.detach(), torch.tensor([1 - 0.1 * (-1 + 0.5), 1 - 0.1 * (1 + 0.5)]))
    assert torch.allclose(optimizer.state[weight]["momentum_buffer"], torch.tensor([-0.97, 1.01]))


def test_a_rate_of_zero_stops_every_part_of_muon():
    import torch

    roles, optimizer = made("muon")
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    before = {role: parameter.detach().clone() for role, parameter in roles.items()}
    trained(roles, optimizer, 2)
    assert all(torch.equal(before[role], roles[role]) for role in roles)


def test_muon_refuses_what_is_no_matrix():
    import torch

    group = ParamGroup([torch.nn.Parameter(torch.zeros(1, 2, 3, 4))], "matrix", decay=True)
    with pytest.raises(RecipeError, match=r"matrices only; the model has one of shape \(1, 2, 3, 4\)"):
        slot("optimizer", "muon").build().build([group])


def test_muon_steps_experts_as_the_matrices_that_they_are(tmp_path):
    """Bit for bit, through a checkpoint, and past a step without a gradient."""
    import torch

    torch.manual_seed(0)
    stack, flat = torch.nn.Parameter(torch.randn(3, 8, 16)), torch.nn.Parameter(torch.randn(4, 8))
    apart = [torch.nn.Parameter(matrix.clone()) for matrix in stack.detach()]
    chosen = slot("optimizer", {"use": "muon", "adjust_lr": "match_rms_adamw"}).build()
    one = chosen.build([ParamGroup([stack, flat], "matrix", decay=True)])
    many = chosen.build([ParamGroup(apart, "matrix", decay=True)])
    for step in range(4):
        gradients = None if step == 1 else torch.randn(3, 8, 16)
        stack.grad = None if gradients is None else gradients.clone()
        flat.grad = torch.ones(4, 8)
        for number, matrix in enumerate(apart):
            matrix.grad = None if gradients is None else gradients[number].clone()
        one.step()
        many.step()
        assert torch.equal(stack.detach(), torch.stack([matrix.detach() for matrix in apart]))
        torch.save(one.state_dict(), tmp_path / "state.pt")
        one = chosen.build([ParamGroup([stack, flat], "matrix", decay=True)])
        one.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
        assert set(one.state) == {stack, flat}
        assert one.state[stack]["momentum_buffer"].shape == (3, 8, 16)


def test_muon_trains_a_mixture_of_experts():
    import torch

    from recipe_plugins.training.groups import param_groups

    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 16}
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    model = slot("architecture", {"use": "qwen3-moe", **shape, **experts}).build().build(64)
    optimizer = slot("optimizer", {"use": "muon", "lr": 0.02}).build().build(param_groups(model))
    ids, losses = torch.arange(64)[None], []
    for _ in range(12):
        optimizer.zero_grad()
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize(("use", "settings"), [("muon", {}), ("adafactor", {}), ("adafactor", {"beta1": 0.9})])
def test_bytes_of_state_are_a_bound(use, settings):
    import torch

    weight = torch.nn.Parameter(torch.randn(256, 128))
    chosen = slot("optimizer", {"use": use, **settings})
    optimizer = chosen.build().build([ParamGroup([weight], "matrix", True)])
    weight.grad = torch.randn_like(weight)
    optimizer.step()
    state = optimizer.state[weight].items()
    kept = sum(v.numel() * v.element_size() for name, v in state if torch.is_tensor(v) and name != "RMS")
    assert 0 < kept <= chosen.config.state_bytes(weight.numel())


def test_nesterov_without_momentum_is_refused():
    with pytest.raises(ValidationError, match="nesterov needs a momentum above 0"):
        slot("optimizer", {"use": "sgd", "momentum": 0, "nesterov": True})


@pytest.fixture
def mesh():
    """Of this one process."""
    from torch import distributed
    from torch.distributed.device_mesh import init_device_mesh

    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    distributed.destroy_process_group()


def test_experts_of_which_a_rank_holds_parts_are_refused_by_muon(mesh):
    import torch
    from torch.distributed.tensor import Shard, distribute_tensor

    stack = torch.nn.Parameter(distribute_tensor(torch.ones(4, 8, 8), mesh, [Shard(1)]))
    with pytest.raises(RecipeError, match="muon steps whole experts, and these are sharded within each"):
        slot("optimizer", "muon").build().build([ParamGroup([stack], "matrix", True)])


@pytest.mark.parametrize("adjust_lr", ["original", "match_rms_adamw"])
def test_matrices_on_their_side_make_the_step_of_those_that_stand(adjust_lr):
    """GPT-2 with its own `Conv1D`, whose weights are (inputs, outputs), and with linear layers in their place."""
    import copy

    import torch
    from transformers.pytorch_utils import Conv1D

    from recipe_plugins.training.groups import param_groups

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    lying = slot("architecture", {"use": "gpt2", **sizes}).build().build(64).eval()
    standing = copy.deepcopy(lying)
    for name, module in [*standing.named_modules()]:
        if isinstance(module, Conv1D):
            layer = torch.nn.Linear(*module.weight.shape)
            layer.weight, layer.bias = torch.nn.Parameter(module.weight.detach().T.clone()), module.bias
            standing.set_submodule(name, layer)
    before = {name: parameter.detach().clone() for name, parameter in lying.named_parameters()}
    for model in (lying, standing):
        optimizer = slot("optimizer", {"use": "muon", "adjust_lr": adjust_lr}).build().build(param_groups(model))
        model(input_ids=torch.arange(64)[None], labels=torch.arange(64)[None], use_cache=False).loss.backward()
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        optimizer.step()
    moved = dict(standing.named_parameters())
    for name, parameter in lying.named_parameters():
        other = moved[name].T if name.endswith(("c_attn.weight", "c_fc.weight", "c_proj.weight")) else moved[name]
        assert (parameter - other).norm() < 0.1 * (parameter - before[name]).norm()  # Newton-Schulz is in bf16


def test_muon_steps_a_sharded_matrix_as_it_steps_a_whole_one(mesh):
    import torch
    from torch.distributed.tensor import distribute_tensor

    torch.manual_seed(0)
    whole = [torch.nn.Parameter(torch.randn(shape)) for shape in [(8, 16), (16, 8)]]
    sharded = [torch.nn.Parameter(distribute_tensor(p.detach().clone(), mesh)) for p in whole]
    for parameters in (whole, sharded):
        optimizer = slot("optimizer", "muon").build().build([ParamGroup(parameters, "matrix", decay=True)])
        for parameter in parameters:
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
    assert all(torch.allclose(one, other.full_tensor()) for one, other in zip(whole, sharded, strict=True))


def test_sharded_parameters_are_refused_by_adafactor(mesh):
    import torch
    from torch.distributed.tensor import distribute_tensor

    sharded = torch.nn.Parameter(distribute_tensor(torch.ones(8, 8), mesh))
    with pytest.raises(RecipeError, match="adafactor does not step parameters that strategy: fsdp shards"):
        slot("optimizer", "adafactor").build().build([ParamGroup([sharded], "matrix", True)])


@pytest.mark.parametrize("use", ["adamw-8bit", "paged-adamw-8bit"])
def test_a_missing_bitsandbytes_is_named(use, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(RecipeError, match=f"^{use} needs bitsandbytes"):
        made(use)
