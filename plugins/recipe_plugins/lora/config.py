"""Settings of the stage `lora`."""

from __future__ import annotations

from typing import Annotated, Any

from recipe_plugins.adapters.config import AdapterMethod
from recipe_plugins.training.estimate import UNKNOWN, adapter_estimate, known_shape
from recipe_plugins.training.tuning_config import TuningConfig
from recipe_runner import Adapter, Estimate, Known, Slot, Use


class LoraConfig(TuningConfig):
    """An adapter is trained, on conversations; the model stays as it is, in `precision` or as the adapter stores it."""

    adapter: Annotated[Use[AdapterMethod], Slot("adapter")] = "lora"  # type: ignore[assignment]

    def produces(self) -> type[Adapter]:
        """An adapter."""
        return Adapter

    def estimate(self, known: Known) -> Estimate:
        """From the model's shape."""
        shape = known_shape(known, "model")
        optimizer: Any = self.optimizer.config
        return UNKNOWN if shape is None else adapter_estimate(self, shape, self.adapter.config, optimizer)
