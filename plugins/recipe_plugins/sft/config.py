"""Settings of the stage `sft`."""

from __future__ import annotations

from recipe_plugins.training.estimate import tuning_estimate
from recipe_plugins.training.tuning_config import TuningConfig
from recipe_runner import Estimate, Known, Model


class SftConfig(TuningConfig):
    """Every weight of a model is trained, on conversations."""

    def produces(self) -> type[Model]:
        """A model."""
        return Model

    def estimate(self, known: Known) -> Estimate:
        """From the model's shape; the rows of an epoch are not known before the conversations are rendered."""
        return tuning_estimate(self, known)
