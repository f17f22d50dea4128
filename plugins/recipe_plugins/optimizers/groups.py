"""From the groups of a model to the groups of a torch optimizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from recipe_runner import ParamGroup


def settings(groups: Sequence[ParamGroup], lr: float, weight_decay: float) -> list[dict[str, Any]]:
    """The groups as torch takes them, each with its rate and decay."""
    return [
        {"params": group.params, "lr": lr * group.lr_scale, "weight_decay": weight_decay if group.decay else 0.0}
        for group in groups
    ]
