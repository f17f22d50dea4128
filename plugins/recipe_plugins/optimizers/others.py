"""Adafactor and SGD: every argument of the libraries that matters is passed here."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.distributed.tensor import DTensor
from transformers.optimization import Adafactor as LibraryAdafactor

from recipe_plugins.optimizers.config import AdafactorConfig, SGDConfig
from recipe_plugins.optimizers.groups import settings
from recipe_runner import ParamGroup, RecipeError


class Adafactor:
    """`transformers.optimization.Adafactor` without its own schedule: the rate is the recipe's."""

    def __init__(self, config: AdafactorConfig) -> None:
        self.config = config

    def build(self, groups: Sequence[ParamGroup]) -> torch.optim.Optimizer:
        """See `recipe_runner.Optimizer`.

        Raises `RecipeError` for sharded parameters, of whose rows and columns the library keeps no means.
        """
        if any(isinstance(parameter, DTensor) for group in groups for parameter in group.params):
            raise RecipeError(
                "adafactor does not step parameters that strategy: fsdp shards",
                next="use strategy: ddp, or the optimizer adamw-8bit, whose states are small too and are sharded",
            )
        config = self.config
        return LibraryAdafactor(
            settings(groups, config.lr, config.weight_decay),
            lr=config.lr,
            eps=config.eps,
            clip_threshold=config.clip_threshold,
            decay_rate=config.decay_rate,
            beta1=config.beta1 or None,
            scale_parameter=config.scale_parameter,
            relative_step=False,
            warmup_init=False,
        )


class SGD:
    """`torch.optim.SGD`."""

    def __init__(self, config: SGDConfig) -> None:
        self.config = config

    def build(self, groups: Sequence[ParamGroup]) -> torch.optim.Optimizer:
        """See `recipe_runner.Optimizer`."""
        config = self.config
        return torch.optim.SGD(
            settings(groups, config.lr, config.weight_decay),
            lr=config.lr,
            momentum=config.momentum,
            dampening=0.0,
            nesterov=config.nesterov,
            maximize=False,
        )
