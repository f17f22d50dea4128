"""fp8 matrix products: torchao's `Float8Linear` in place of linear layers while a model trains, under bf16 autocast.

Weights stay fp32 and are the very same parameters; what is multiplied is rounded to e4m3, gradients to e5m2, each
tensor scaled by its largest value (Micikevicius et al. 2022, arXiv:2209.05433, section 3). The head, whose rounding
would show in every logit, embeddings, and layers with a side that the kernels do not take stay in bf16. Evaluation
while training sees what trains; the model that is handed on has its own layers back.

Limits: an NVIDIA GPU of compute capability 8.9 or later; no mixtures of experts, whose experts are no linear layers.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from recipe_runner import RecipeError

SIDE = 16
"""What both sides of a weight must be a multiple of (`torch._scaled_mm`)."""

CAPABILITY = (8, 9)
"""The first compute capability with fp8 products: Ada, then Hopper."""


def refuse_without(device: torch.device) -> None:
    """Raise `RecipeError` where `device` has no fp8 products, or torchao is not installed."""
    found = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
    if found is None or found < CAPABILITY:
        here = device.type if found is None else f"a GPU of compute capability {found[0]}.{found[1]}"
        raise RecipeError(
            f"precision: fp8 needs a GPU of compute capability 8.9 or later (Ada, Hopper), and this is {here}",
            next="use precision: bf16",
        )
    if importlib.util.find_spec("torchao") is None:
        raise RecipeError(
            "precision: fp8 needs torchao, which is not installed", next="pip install 'recipe-runner[fp8]'"
        )


def rounded_layers(model: Any) -> list[str]:
    """The names of the layers that compute in fp8: linear ones but the head, both sides a multiple of `SIDE`."""
    head = model.get_output_embeddings()
    return [
        name
        for name, module in model.named_modules()
        if type(module) is nn.Linear
        and module is not head
        and not module.in_features % SIDE
        and not module.out_features % SIDE
    ]


@contextmanager
def instead(model: Any, *, emulate: bool = False) -> Iterator[dict[str, int]]:
    """Let the layers of `rounded_layers` compute in fp8 for a while; gives facts about them.

    `emulate` computes the same on any device, slowly, from operands rounded to fp8. Raises `RecipeError` where `model`
    has none, or experts.
    """
    if getattr(model.config, "num_experts_per_tok", 0):
        raise RecipeError("precision: fp8 does not take a mixture of experts", next="use precision: bf16")
    own = {name: model.get_submodule(name) for name in rounded_layers(model)}
    if not own:
        raise RecipeError(
            f"precision: fp8 rounds linear layers with both sides a multiple of {SIDE}, and {type(model).__name__} "
            "has none",
            next="use precision: bf16, or another architecture",
        )
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    config = Float8LinearConfig(pad_inner_dim=True, emulate=emulate)  # pads what sums over an odd number of tokens
    convert_to_float8_training(model, module_filter_fn=lambda module, name: name in own, config=config)
    try:
        yield {"layers": len(own), "parameters": sum(module.weight.numel() for module in own.values())}
    finally:
        for name, module in own.items():
            model.set_submodule(name, module)
