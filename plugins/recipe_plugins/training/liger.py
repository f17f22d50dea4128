"""Liger's Triton kernels (Hsu et al. 2024, arXiv:2410.10989): RMS norms, and the head with its loss, each in one pass.

What they compute is what the model computes, up to rounding. Modules of ours, which hold the very same weights, stand
in the place of the model's own norms while it trains; nothing of transformers is patched, as Liger's own way would.
Only norms that are Llama's are replaced, and an architecture that has none of them is refused. The head is
`losses.FusedHead`.

Limits: CUDA; norms and loss only; no fp16, whose gradients this loss would make before they are scaled.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from recipe_runner import RecipeError

FAMILIES = ("Llama", "Mistral", "Mixtral", "Ministral", "Qwen2", "Qwen3", "Qwen3Moe", "SmolLM3", "Phi3", "Granite")
NORMS = frozenset(f"{family}RMSNorm" for family in FAMILIES)
"""Norms that multiply x / rms(x), taken in fp32 and rounded to x's dtype, by their weight, as Liger's do."""


def refuse_without(device: torch.device) -> None:
    """Raise `RecipeError` where `device` does not run Triton's kernels, or Liger is not installed."""
    if device.type != "cuda":
        raise RecipeError(f"liger: its kernels need a CUDA GPU, and this is {device.type}", next="leave `liger` out")
    if importlib.util.find_spec("liger_kernel") is None:
        raise RecipeError("liger needs liger-kernel, which is not installed", next="pip install 'recipe-runner[liger]'")


class Norm(nn.Module):
    """Liger's kernel with the weight of `own`, one of `NORMS`."""

    def __init__(self, own: Any) -> None:
        super().__init__()
        self.weight, self.eps = own.weight, own.variance_epsilon

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """As the norm's; shape and dtype of `hidden`. Its gradient is not overwritten, since others may use it."""
        from liger_kernel.ops import LigerRMSNormFunction

        found: torch.Tensor = LigerRMSNormFunction.apply(hidden, self.weight, self.eps, 0.0, "llama", False, None)
        return found


@contextmanager
def instead(model: Any) -> Iterator[dict[str, int]]:
    """Let Liger compute the norms of `model` for a while; gives facts. Raises `RecipeError` where it has none such."""
    own = {name: module for name, module in model.named_modules() if type(module).__name__ in NORMS}
    if not own:
        raise RecipeError(f"liger has no kernels here for {type(model).__name__}", next="leave `liger` out")
    for name, module in own.items():
        model.set_submodule(name, Norm(module))
    try:
        yield {"norms": len(own)}
    finally:
        for name, module in own.items():
            model.set_submodule(name, module)
