"""Signum: a step of one size for every weight, in the direction of the sign of the momentum.

Algorithm 2 of Bernstein et al. 2018, "signSGD: Compressed Optimisation for Non-Convex Problems" (arXiv:1802.04434),
with a decay apart from the gradient:

    m <- b m + (1 - b) g;   w <- w - lr (sign(m) + decay w)
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from recipe_runner import ParamGroup
from recipe_signum.config import SignumConfig


class Signum(torch.optim.Optimizer):
    """The optimizer itself; all its state is `m`, one fp32 tensor a parameter."""

    def __init__(self, params: Any, lr: float, momentum: float, weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

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
        state, momentum = self.state[parameter], group["momentum"]
        if "m" not in state:
            state["m"] = torch.zeros_like(parameter)
        state["m"].mul_(momentum).add_(parameter.grad, alpha=1 - momentum)
        parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(state["m"].sign(), alpha=-group["lr"])


class SignumOptimizer:
    """The component: a recipe's `{use: signum, lr: …}`, built when the parameters are there."""

    def __init__(self, config: SignumConfig) -> None:
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
        return Signum(settings, config.lr, config.momentum, config.weight_decay)
