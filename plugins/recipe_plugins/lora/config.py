"""Settings of the stage `lora`."""

from __future__ import annotations

from typing import Annotated, Any

from recipe_plugins.adapters.config import AdapterMethod
from recipe_plugins.training.estimate import UNKNOWN, known_shape, training_memory
from recipe_plugins.training.tuning_config import TuningConfig
from recipe_runner import Adapter, Estimate, Known, Slot, Use


class LoraConfig(TuningConfig):
    """An adapter is trained, on conversations; the model stays as it is, in `precision` or as the adapter stores it."""

    adapter: Annotated[Use[AdapterMethod], Slot("adapter")] = "lora"  # type: ignore[assignment]

    def produces(self) -> type[Adapter]:
        """An adapter."""
        return Adapter

    def estimate(self, known: Known) -> Estimate:
        """From the model's shape: frozen weights once, everything else for the adapter's parameters only.

        FLOPs leave out the gradients of frozen weights, a third of those of a full step.
        """
        shape = known_shape(known, "model")
        method: Any = self.adapter.config
        if shape is None or not hasattr(method, "trainable"):
            return UNKNOWN
        optimizer: Any = self.optimizer.config
        trainable = method.trainable(shape)
        state_bytes = optimizer.state_bytes(trainable)
        frozen = method.base_bytes(shape, 4 if self.precision == "fp32" else 2)
        steps = self.steps(rows=None, parameters=shape.parameters)
        tokens = None if steps is None else steps * self.tokens_per_step
        a_token = shape.flops_per_token(self.sequence_length) - 2 * shape.multiplied + 6 * trainable
        return Estimate(
            parameters=shape.parameters + trainable,
            trainable=trainable,
            tokens=tokens,
            steps=steps,
            flops=None if tokens is None else a_token * tokens,
            memory=training_memory(trainable, layout="fp32", state_bytes=state_bytes, frozen_bytes=frozen),
            disk=(4 * trainable + state_bytes) * (self.execution.keep_checkpoints + 1),
        )
