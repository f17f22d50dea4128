"""Muon for matrices and AdamW for the rest, as one optimizer.

The one idea: the two sub-optimizers are given the groups and the state of the whole, the very same objects, so that
the schedule sets every rate in one place and one `state_dict` is exact. It holds tensors, numbers and strings only and
so loads with `weights_only=True`. Experts, which a model keeps as one stack, are stepped as the matrices that they are;
of a stack that is sharded each rank steps those that it holds, whole ones, and nothing is sent.
Limits: matrices are those of the role `matrix`; what a model keeps as one (an expert's gate and up, say) is one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.distributed.tensor import DTensor, Shard

from recipe_plugins.optimizers.config import MuonConfig
from recipe_plugins.optimizers.groups import settings
from recipe_runner import ParamGroup, RecipeError

_COEFFICIENTS = (3.4445, -4.775, 2.0315)
"""Of the quintic Newton-Schulz iteration (Jordan et al. 2024, "Muon: an optimizer for hidden layers")."""

TOGETHER = 1 << 22
"""Elements of the matrices that are taken together: enough to fill a device, little beside a model that is larger."""

Pair = tuple[torch.Tensor, torch.Tensor]
"""A matrix and its direction."""


class Muon:
    """`torch.optim.Muon` and fused `torch.optim.AdamW` in one."""

    def __init__(self, config: MuonConfig) -> None:
        self.config = config

    def build(self, groups: Sequence[ParamGroup]) -> torch.optim.Optimizer:
        """See `recipe_runner.Optimizer`.

        Raises `RecipeError` for a parameter of role `matrix` that is neither 2-D nor a stack of such, and for a stack
        of which a rank would hold parts of matrices.
        """
        matrices = [p for group in groups if group.role == "matrix" for p in group.params]
        odd = [tuple(p.shape) for p in matrices if p.ndim not in (2, 3)]
        if odd:
            raise RecipeError(f"muon takes matrices only; the model has one of shape {odd[0]}", next="use adamw")
        stacks = [p for p in matrices if p.ndim == 3 and isinstance(p, DTensor)]
        if any(p.placements != (Shard(0),) for p in stacks):
            raise RecipeError(
                "muon steps whole experts, and these are sharded within each", next="shard them by expert, or use adamw"
            )
        return _Both(groups, self.config)


class _Both(torch.optim.Optimizer):
    """Groups carry `kind`, the sub-optimizer that steps them, and every setting of it."""

    def __init__(self, groups: Sequence[ParamGroup], config: MuonConfig) -> None:
        kinds = ["muon" if group.role == "matrix" else "adamw" for group in groups]
        rates = {"muon": config.lr, "adamw": config.adamw_lr}
        written = [
            {
                "kind": kind,
                "input_first": group.input_first,
                **settings([group], rates[kind], config.weight_decay)[0],
            }
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
        stored = [group["input_first"] for group in self.param_groups]  # the model says that, not who saved it
        super().load_state_dict(state_dict)
        for group, input_first in zip(self.param_groups, stored, strict=True):
            group["input_first"] = input_first
        self._share()


class _Muon(torch.optim.Muon):
    """torch's settings and state, over stacks of matrices too, and with matrices of one shape taken together.

    One after the other, the many small products of a small model take most of a step's time.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step; what has no gradient is passed over."""
        for group in self.param_groups:
            moved = [(p, self._direction(p, group)) for p in group["params"] if p.grad is not None]
            matrices = [pair for p, update in moved for pair in zip(_matrices(p), _matrices(update), strict=True)]
            for batch in _alike(matrices):
                self._move(batch, group)

    def _direction(self, parameter: torch.Tensor, group: Mapping[str, Any]) -> torch.Tensor:
        """The momentum, with this step's gradient in it."""
        gradient, state, momentum = parameter.grad, self.state[parameter], group["momentum"]
        assert gradient is not None
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        buffer: torch.Tensor = state["momentum_buffer"].lerp_(gradient, 1 - momentum)
        return gradient.lerp(buffer, momentum) if group["nesterov"] else buffer

    def _move(self, batch: Sequence[Pair], group: Mapping[str, Any]) -> None:
        wide = [_wide(update).bfloat16() for _, update in batch]
        together = torch.stack(wide) if len(wide) > 1 else wide[0][None]
        found = orthogonal(together, group["ns_steps"], group["ns_coefficients"], group["eps"])
        for (matrix, _), update in zip(batch, found, strict=True):
            outputs, inputs = matrix.mT.shape if group["input_first"] else matrix.shape
            rate = group["lr"] * _adjusted(outputs, inputs, group["adjust_lr_fn"])
            matrix.mul_(1 - group["lr"] * group["weight_decay"])
            matrix.add_(update if matrix.shape == update.shape else update.mT, alpha=-rate)


def _adjusted(rows: int, columns: int, how: str) -> float:
    """The factor on the rate of a matrix, its rows the outputs; see `MuonConfig`."""
    return math.sqrt(max(1, rows / columns)) if how == "original" else 0.2 * math.sqrt(max(rows, columns))


def orthogonal(
    matrices: torch.Tensor, steps: int, coefficients: tuple[float, float, float], eps: float
) -> torch.Tensor:
    """Each of (n, rows, columns), rows <= columns, with its singular values moved to about 1 (Jordan et al. 2024)."""
    a, b, c = coefficients
    found = matrices / matrices.norm(dim=(-2, -1), keepdim=True).clamp(min=eps)
    for _ in range(steps):
        gram = found @ found.mT
        found = torch.baddbmm(found, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), found, beta=a)
    return found


def _alike(matrices: Sequence[Pair]) -> Iterator[list[Pair]]:
    """Batches of one shape, lying or standing, of at most `TOGETHER` elements; a sharded matrix is one by itself.

    Sharded ones come in the same order on every rank, whatever else this one holds, since all of them step together.
    """
    by_shape: dict[tuple[bool, tuple[int, ...]], list[Pair]] = {}
    for pair in matrices:
        shared = isinstance(pair[0], DTensor)
        by_shape.setdefault((shared, tuple(sorted(pair[0].shape))), []).append(pair)
    for (shared, shape), found in by_shape.items():
        most = 1 if shared else max(1, TOGETHER // math.prod(shape))
        yield from (found[first : first + most] for first in range(0, len(found), most))


def _matrices(tensor: torch.Tensor) -> Sequence[torch.Tensor]:
    """Views of a stack's matrices, those that this rank holds; a matrix itself."""
    if tensor.ndim == 2:
        return [tensor.detach()]
    held = tensor.detach()
    return (held.to_local() if isinstance(held, DTensor) else held).unbind()


def _wide(matrix: torch.Tensor) -> torch.Tensor:
    return matrix if matrix.shape[0] <= matrix.shape[1] else matrix.mT
