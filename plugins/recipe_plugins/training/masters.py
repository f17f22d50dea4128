"""bf16 weights with fp32 masters: the optimizer steps fp32 copies, from which the weights are rounded after each step.

What a plain bf16 step would lose, updates smaller than half the spacing of bf16, adds up in the masters (Micikevicius
et al. 2018, arXiv:1710.03740, section 3.1). Gradients are bf16, and fp32 from the optimizer on. The masters are part of
the optimizer's state, so that a resumed run is exact.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from recipe_plugins.training.sharding import like
from recipe_runner import Optimizer, ParamGroup


def to_bf16(model: nn.Module) -> None:
    """Round the floating-point parameters of `model`; buffers, such as those of rotary positions, stay as they are."""
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(torch.bfloat16)
    model.config.dtype = torch.bfloat16


class Masters(torch.optim.Optimizer):
    """Steps fp32 copies of the parameters of `groups` by the optimizer that `optimizer` builds."""

    def __init__(self, optimizer: Optimizer, groups: list[ParamGroup]) -> None:
        self.weights = [parameter for group in groups for parameter in group.params]
        copies = [[nn.Parameter(p.detach().float()) for p in group.params] for group in groups]
        self.masters = [master for group in copies for master in group]
        self.inner = optimizer.build([replace(group, params=own) for own, group in zip(copies, groups, strict=True)])
        super().__init__(self.masters, self.inner.defaults)
        self._share()

    def _share(self) -> None:
        self.param_groups, self.state = self.inner.param_groups, self.inner.state

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step of the masters; a weight without gradient keeps its own."""
        for weight, master in zip(self.weights, self.masters, strict=True):
            master.grad = None if weight.grad is None else weight.grad.float()
        self.inner.step()
        for weight, master in zip(self.weights, self.masters, strict=True):
            master.grad = None
            weight.copy_(master)
        return None

    def state_dict(self) -> dict[str, Any]:
        """The inner optimizer's, and `masters`."""
        return {**self.inner.state_dict(), "masters": [master.detach() for master in self.masters]}

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The state of a run without masters leaves them as the weights are."""
        self.inner.load_state_dict({key: value for key, value in state_dict.items() if key != "masters"})
        self._share()
        for master, saved in zip(self.masters, state_dict.get("masters", self.masters), strict=True):
            master.copy_(like(saved, master))


@torch.no_grad()
def take_masters(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> None:
    """Give fp32 weights that go on from a run with masters what those were."""
    weights = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for weight, master in zip(weights, state.get("masters", weights), strict=True):
        weight.copy_(like(master, weight))
