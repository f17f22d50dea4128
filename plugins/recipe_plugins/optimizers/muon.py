"""Muon for matrices and AdamW for the rest, as one optimizer.

The one idea: the two sub-optimizers are given the groups and the state of the whole, the very same objects, so that
the schedule sets every rate in one place and one `state_dict` is exact. It holds tensors, numbers and strings only and
so loads with `weights_only=True`. Experts, which a model keeps as one stack, are stepped as the matrices that they are.
Limits: matrices are those of the role `matrix`; what a model keeps as one (an expert's gate and up, say) is one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from recipe_plugins.optimizers.config import MuonConfig
from recipe_plugins.optimizers.groups import settings
from recipe_runner import ParamGroup, RecipeError

_COEFFICIENTS = (3.4445, -4.775, 2.0315)
"""Of the quintic Newton-Schulz iteration (Jordan et al. 2024, "Muon: an optimizer for hidden layers")."""


class Muon:
    """`torch.optim.Muon` and fused `torch.optim.AdamW` in one."""

    def __init__(self, config: MuonConfig) -> None:
        self.config = config

    def build(self, groups: Sequence[ParamGroup]) -> torch.optim.Optimizer:
        """See `recipe_runner.Optimizer`.

        Raises `RecipeError` for a parameter of role `matrix` that is neither 2-D nor a stack of such, and for stacks
        that are sharded.
        """
        matrices = [p for group in groups if group.role == "matrix" for p in group.params]
        odd = [tuple(p.shape) for p in matrices if p.ndim not in (2, 3)]
        if odd:
            raise RecipeError(f"muon takes matrices only; the model has one of shape {odd[0]}", next="use adamw")
        if any(p.ndim == 3 and isinstance(p, DTensor) for p in matrices):
            raise RecipeError(
                "muon does not step experts that strategy: fsdp shards",
                next="use strategy: ddp, or the optimizer adamw",
            )
        return _Both(groups, self.config)


class _Both(torch.optim.Optimizer):
    """Groups carry `kind`, the sub-optimizer that steps them, and every setting of it."""

    def __init__(self, groups: Sequence[ParamGroup], config: MuonConfig) -> None:
        kinds = ["muon" if group.role == "matrix" else "adamw" for group in groups]
        rates = {"muon": config.lr, "adamw": config.adamw_lr}
        written = [
            {"kind": kind, **settings([group], rates[kind], config.weight_decay)[0]}
            for kind, group in zip(kinds, groups, strict=True)
        ]
        super().__init__(written, {"lr": config.lr, "weight_decay": config.weight_decay})
        self._config = config
        self._share()

    def _share(self) -> None:
        """Make the sub-optimizers, over this one's own groups and state."""
        makers = {"muon": self._muon, "adamw": self._adamw}
        self._parts = []
        for kind, make in makers.items():
            own = [group for group in self.param_groups if group["kind"] == kind]
            if own:
                part = make(own)
                part.param_groups, part.state = own, self.state
                self._parts.append(part)

    def _muon(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        config = self._config
        apart = [{**group, "params": [m for p in group["params"] for m in _matrices(p)]} for group in groups]
        made = _Muon(
            apart,
            lr=config.lr,
            weight_decay=config.weight_decay,
            momentum=config.momentum,
            nesterov=config.nesterov,
            ns_coefficients=_COEFFICIENTS,
            eps=1e-7,
            ns_steps=config.ns_steps,
            adjust_lr_fn=config.adjust_lr,
        )
        for group, filled in zip(groups, made.param_groups, strict=True):
            group.update({**filled, "params": group["params"]})
        return made

    def _adamw(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        config = self._config
        return torch.optim.AdamW(
            groups,
            lr=config.adamw_lr,
            weight_decay=config.weight_decay,
            betas=config.adamw_betas,
            eps=config.adamw_eps,
            amsgrad=False,
            fused=True,
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step of both; `closure` is refused, since two optimizers would call it twice."""
        if closure is not None:
            raise ValueError("muon takes no closure")
        for part in self._parts:
            part.step()
        return None

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's; it replaces groups and state, so the sub-optimizers are given the new ones."""
        super().load_state_dict(state_dict)
        self._share()


def _matrices(parameter: torch.Tensor) -> list[torch.Tensor]:
    """Views of a stack's matrices; a matrix itself."""
    return list(parameter.detach()) if parameter.ndim == 3 else [parameter]


class _Muon(torch.optim.Muon):
    """torch's, over stacks of matrices too: each is stepped through views of it, of its gradient and its momentum."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step; what has no gradient is passed over."""
        groups, state = self.param_groups, self.state
        self.state = defaultdict(dict)
        self.param_groups = [
            {**group, "params": [m for p in group["params"] if p.grad is not None for m in self._views(p, state)]}
            for group in groups
        ]
        super().step()
        self.param_groups, self.state = groups, state

    def _views(self, parameter: torch.Tensor, state: dict[torch.Tensor, Any]) -> list[torch.Tensor]:
        matrices = _matrices(parameter)
        if parameter.ndim == 2:
            self.state[parameter] = state[parameter]
            return matrices
        assert parameter.grad is not None
        momentum = state[parameter].setdefault("momentum_buffer", torch.zeros_like(parameter.grad))
        for matrix, gradient, buffer in zip(matrices, parameter.grad, momentum, strict=True):
            matrix.grad, self.state[matrix] = gradient, {"momentum_buffer": buffer}
        return matrices
