"""Lion: a step of one size for every weight, in the direction of the sign of an interpolated momentum.

Guarantee: each operation is elementwise, so that a sharded parameter is stepped as a whole one; all state is one tensor
a parameter, in its dtype. Limit: one parameter after the other, not all in one kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from recipe_plugins.optimizers.config import LionConfig
from recipe_plugins.optimizers.groups import settings
from recipe_runner import ParamGroup


class Lion:
    """The optimizer below, with each group's rate and decay."""

    def __init__(self, config: LionConfig) -> None:
        self.config = config

    def build(self, groups: Sequence[ParamGroup]) -> torch.optim.Optimizer:
        """See `recipe_runner.Optimizer`."""
        config = self.config
        return _Lion(settings(groups, config.lr, config.weight_decay), {"lr": config.lr, "betas": config.betas})


class _Lion(torch.optim.Optimizer):
    """Algorithm 2 of Chen et al. 2023 (arXiv:2302.06675): with gradient g, momentum m, rate r and decay d,
    w <- w - r (sign(b1 m + (1 - b1) g) + d w); m <- b2 m + (1 - b2) g."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step; parameters without a gradient stay as they are."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, group)
        return loss

    def _move(self, parameter: torch.Tensor, group: dict[str, Any]) -> None:
        state, gradient, (seen, kept) = self.state[parameter], parameter.grad, group["betas"]
        assert gradient is not None
        if not state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        momentum = state["momentum_buffer"]
        direction = momentum.mul(seen).add_(gradient, alpha=1 - seen).sign_()
        parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(direction, alpha=-group["lr"])
        momentum.mul_(kept).add_(gradient, alpha=1 - kept)
