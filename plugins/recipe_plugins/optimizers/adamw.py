"""AdamW, torch's fused one and bitsandbytes' paged 8-bit one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from recipe_plugins.optimizers.config import AdamWConfig, PagedAdamW8bitConfig
from recipe_runner import ParamGroup, RecipeError


def settings(groups: Sequence[ParamGroup], config: AdamWConfig) -> list[dict[str, Any]]:
    """The groups as torch takes them, each with its rate and decay."""
    return [
        {
            "params": group.params,
            "lr": config.lr * group.lr_scale,
            "weight_decay": config.weight_decay if group.decay else 0.0,
        }
        for group in groups
    ]


class AdamW:
    """`torch.optim.AdamW`, fused."""

    def __init__(self, config: AdamWConfig) -> None:
        self.config = config

    def build(self, groups: Sequence[ParamGroup]) -> torch.optim.Optimizer:
        """See `recipe_runner.Optimizer`."""
        config = self.config
        return torch.optim.AdamW(
            settings(groups, config), lr=config.lr, betas=config.betas, eps=config.eps, amsgrad=False, fused=True
        )


class PagedAdamW8bit:
    """`bitsandbytes.optim.PagedAdamW8bit`. Parameters of fewer than 4,096 elements keep fp32 moments."""

    def __init__(self, config: PagedAdamW8bitConfig) -> None:
        self.config = config

    def build(self, groups: Sequence[ParamGroup]) -> torch.optim.Optimizer:
        """See `recipe_runner.Optimizer`. Raises `RecipeError` where bitsandbytes is not installed."""
        try:
            from bitsandbytes.optim.adamw import PagedAdamW8bit as Paged
        except ImportError as error:
            raise RecipeError(
                "paged-adamw-8bit needs bitsandbytes, which is not installed", next="pip install 'recipe-runner[qlora]'"
            ) from error
        config = self.config
        return Paged(
            settings(groups, config), lr=config.lr, betas=config.betas, eps=config.eps, min_8bit_size=4096
        )
