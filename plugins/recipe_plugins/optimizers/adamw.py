"""AdamW: torch's fused one, and bitsandbytes' 8-bit ones."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import ClassVar

import torch
from torch.distributed.tensor import DTensor

from recipe_plugins.optimizers.config import AdamW8bitConfig, AdamWConfig
from recipe_plugins.optimizers.groups import settings
from recipe_runner import ParamGroup, RecipeError


class AdamW:
    """`torch.optim.AdamW`, fused."""

    def __init__(self, config: AdamWConfig) -> None:
        self.config = config

    def build(self, groups: Sequence[ParamGroup]) -> torch.optim.Optimizer:
        """See `recipe_runner.Optimizer`."""
        config = self.config
        return torch.optim.AdamW(
            settings(groups, config.lr, config.weight_decay),
            lr=config.lr,
            betas=config.betas,
            eps=config.eps,
            amsgrad=False,
            fused=True,
        )


class AdamW8bit:
    """`bitsandbytes.optim.AdamW8bit`. Parameters of fewer than 4,096 elements keep fp32 moments; see `shards` too."""

    name: ClassVar[str] = "adamw-8bit"
    library_class: ClassVar[str] = "AdamW8bit"

    def __init__(self, config: AdamW8bitConfig) -> None:
        self.config = config

    def build(self, groups: Sequence[ParamGroup]) -> torch.optim.Optimizer:
        """See `recipe_runner.Optimizer`. Raises `RecipeError` without bitsandbytes."""
        try:
            from bitsandbytes.optim import adamw as library
        except ImportError as error:
            raise RecipeError(
                f"{self.name} needs bitsandbytes, which is not installed", next="pip install 'recipe-runner[qlora]'"
            ) from error
        from recipe_plugins.optimizers.shards import LEAST, OfShards

        config, made = self.config, getattr(library, self.library_class)
        make = partial(made, lr=config.lr, betas=config.betas, eps=config.eps, min_8bit_size=LEAST)
        set_up = settings(groups, config.lr, config.weight_decay)
        sharded = any(isinstance(parameter, DTensor) for group in groups for parameter in group.params)
        built: torch.optim.Optimizer = OfShards(set_up, make) if sharded else make(set_up)
        return built


class PagedAdamW8bit(AdamW8bit):
    """The same, paged: `bitsandbytes.optim.PagedAdamW8bit`."""

    name = "paged-adamw-8bit"
    library_class = "PagedAdamW8bit"
