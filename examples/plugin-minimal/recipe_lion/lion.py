"""Lion: a step of one size for every weight, in the direction of the sign of an interpolated momentum.

Algorithm 2 of Chen et al. 2023, "Symbolic Discovery of Optimization Algorithms" (arXiv:2302.06675):

    c = b1 m + (1 - b1) g;   w <- w - lr (sign(c) + decay w);   m <- b2 m + (1 - b2) g
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from recipe_lion.config import LionConfig
from recipe_runner import ParamGroup


class Lion(torch.optim.Optimizer):
    """The optimizer itself; all its state is `m`, one fp32 tensor a parameter."""

    def __init__(self, params: Any, lr: float, betas: tuple[float, float], weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

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
        state, gradient, (first, second) = self.state[parameter], parameter.grad, group["betas"]
        if "m" not in state:
            state["m"] = torch.zeros_like(parameter)
        direction = torch.lerp(gradient, state["m"], first).sign_()
        parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(direction, alpha=-group["lr"])
        state["m"].lerp_(gradient, 1 - second)


class LionOptimizer:
    """The component: a recipe's `{use: lion, lr: …}`, built when the parameters are there."""

    def __init__(self, config: LionConfig) -> None:
        self.config = config

    def build(self, groups: Sequence[ParamGroup]) -> torch.optim.Optimizer:
        """Each group with its own rate; groups that are not to decay do not."""
        config = self.config
        settings = [
            {
                "params": group.params,
                "lr": config.lr * group.lr_scale,
                "weight_decay": config.weight_decay if group.decay else 0.0,
            }
            for group in groups
        ]
        return Lion(settings, config.lr, config.betas, config.weight_decay)
