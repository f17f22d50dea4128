"""Settings of the stage `anneal`."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from recipe_plugins.training.config import LoopConfig, TextConfig
from recipe_plugins.training.estimate import known_shape, state_bytes_of, training_estimate
from recipe_runner import Estimate, Input, Known, Model, Optimizer, RecipeError, Ref, Schedule, Slot, Tokeniser, Use

FOREIGN = "it comes from outside, without the optimizer state of a stable phase"
"""Why a model that no recipe has made cannot be annealed."""


def unbranched(model: Ref, why: str) -> RecipeError:
    """The error of a model that is not kept as it was in a stable phase."""
    return RecipeError(
        f"{model} cannot be annealed: {why}",
        next="pretrain it with a schedule that has a stable phase, such as `wsd`"
        "\nor begin at its end: `fresh_optimizer: {use: adamw, lr: …}`",
    )


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

    def refused(self, start: Any) -> RecipeError | None:
        """What is wrong with `model`, which the stage of the config `start` makes (None: the hub), as far as settings
        tell."""
        if self.fresh_optimizer is not None:
            return None
        if start is None:
            return unbranched(self.model, FOREIGN)
        if not isinstance(start, LoopConfig):
            return None
        schedule = start.schedule
        if start.keeps_branch and getattr(schedule.config, "stable", True):
            return None
        name = schedule.component.name
        why = f"its schedule, {name}, has no stable phase" if start.keeps_branch else "its stage keeps no stable phase"
        return unbranched(self.model, why)

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
