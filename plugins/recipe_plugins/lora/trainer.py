"""The loop for adapters: TRL's, with weights in the dtype that they were made in, and a look at the first step."""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftModel

from recipe_plugins.training.supervised import SupervisedTrainer
from recipe_plugins.training.trainer import Job
from recipe_runner import RecipeError


class AdapterTrainer(SupervisedTrainer):
    """Trains a `PeftModel`; raises `RecipeError` if the first step does not move its weights."""

    def __init__(self, *, job: Job, model: PeftModel, **library: Any) -> None:
        made = {name: parameter.data for name, parameter in trained(model).items()}
        super().__init__(job=job, model=model, **library)
        for name, parameter in trained(model).items():  # TRL makes them bf16 where the base is quantised
            if parameter.dtype != made[name].dtype:
                parameter.data = made[name].to(parameter.device)
        self._adapted = model
        self._before = {name: parameter.detach().clone() for name, parameter in trained(model).items()}

    def after_step(self, control: Any) -> None:
        """See the mixin."""
        super().after_step(control)
        if self.state.global_step == 1 and not self._moved():
            raise RecipeError(
                "the first step did not change the adapter",
                next="look at the learning rate, and at the share of supervised tokens in preparation.json",
            )

    def _moved(self) -> bool:
        now = trained(self._adapted)
        return any(not torch.equal(now[name], value) for name, value in self._before.items())


def trained(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """The parameters that train, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
