"""Settings of the stage `sft`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from recipe_plugins.training.estimate import UNKNOWN, known_shape, training_estimate
from recipe_plugins.training.tuning_config import TuningConfig
from recipe_runner import Estimate, Known, Model


class SftConfig(TuningConfig):
    """Every weight of a model is trained, on conversations."""

    def produces(self) -> type[Model]:
        """A model."""
        return Model

    def estimate(self, known: Known) -> Estimate:
        """From the model's shape; the rows of an epoch are not known before the conversations are rendered."""
        shape = known_shape(known, "model")
        parameters = shape.parameters if shape else known.fact("model", "parameters")
        optimizer: Any = self.optimizer.config
        found = training_estimate(
            self,
            parameters=parameters,
            shape=shape,
            vocab_size=known.fact("model", "vocab_size"),
            state_bytes=None if parameters is None else optimizer.state_bytes(parameters),
        )
        return replace(found, notes=[*UNKNOWN.notes, *found.notes]) if parameters is None else found
