"""Settings of the stage `anneal`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from recipe_plugins.training.config import TextConfig
from recipe_plugins.training.estimate import known_shape, state_bytes_of, training_estimate
from recipe_runner import Estimate, Input, Known, Model, Optimizer, Ref, Schedule, Slot, Tokeniser, Use


class AnnealConfig(TextConfig):
    """Mid-training: goes on from the stable phase of `model`, with its optimizer, state and learning rate."""

    model: Annotated[Ref, Input((Model,))]
    tokeniser: Annotated[
        Ref | None, Input((Tokeniser, Model)), Field(description="the model's own; another is refused")
    ] = None
    schedule: Annotated[Use[Schedule], Slot("schedule")] = "linear"  # type: ignore[assignment]
    fresh_optimizer: Annotated[
        Annotated[Use[Optimizer], Slot("optimizer")] | None,
        Field(description="begin at the end of the model instead, with this optimizer and no state of its own"),
    ] = None

    def produces(self) -> type[Model]:
        """A model."""
        return Model

    def estimate(self, known: Known) -> Estimate:
        """From what is known of the model."""
        shape = known_shape(known, "model")
        parameters = shape.parameters if shape else known.fact("model", "parameters")
        state_bytes = known.fact("model", "optimizer_bytes")
        if self.fresh_optimizer is not None:
            fresh, matrices = self.fresh_optimizer.config, shape.matrices if shape else 0
            state_bytes = state_bytes_of(fresh, parameters, matrices) if parameters else None
        return training_estimate(
            self,
            parameters=parameters,
            shape=shape,
            vocab_size=known.fact("model", "vocab_size"),
            state_bytes=state_bytes,
        )
