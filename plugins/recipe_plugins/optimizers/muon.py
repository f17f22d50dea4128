"""Muon for matrices and AdamW for the rest, as one optimizer.

The one idea: the two sub-optimizers are given the groups and the state of the whole, the very same objects, so that
the schedule sets every rate in one place and one `state_dict` is exact. It holds tensors, numbers and strings only and
so loads with `weights_only=True`. Limits: matrices are those of the role `matrix`; torch's Muon takes 2-D ones only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

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
        """See `recipe_runner.Optimizer`. Raises `RecipeError` for a parameter of role `matrix` that is not 2-D."""
        odd = [tuple(p.shape) for group in groups if group.role == "matrix" for p in group.params if p.ndim != 2]
        if odd:
            raise RecipeError(f"muon takes 2-D matrices only; the model has one of shape {odd[0]}", next="use adamw")
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
        return torch.optim.Muon(
            groups,
            lr=config.lr,
            weight_decay=config.weight_decay,
            momentum=config.momentum,
            nesterov=config.nesterov,
            ns_coefficients=_COEFFICIENTS,
            eps=1e-7,
            ns_steps=config.ns_steps,
            adjust_lr_fn=config.adjust_lr,
        )

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
