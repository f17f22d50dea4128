"""Settings of the stage `preference`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from recipe_plugins.adapters.aligning_config import AligningConfig
from recipe_plugins.objectives.config import Objective
from recipe_runner import Slot, Use


class PreferenceConfig(AligningConfig):
    """A model that learns from answers with a judgement; a row is a pair of answers (for `kto`, an answer), each with
    its prompt of at most `sequence_length` tokens.

    The reference is always the model as it came; its log-probabilities are computed once.
    """

    objective: Annotated[Use[Objective], Slot("objective")] = "dpo"  # type: ignore[assignment]
    heldout_pairs: Annotated[
        int, Field(ge=0, description="held-out records of a domain that margins are measured on")
    ] = 256

    @model_validator(mode="after")
    def _one_rounding(self) -> PreferenceConfig:
        if self.precision == "fp8" and self.adapter is None:
            raise ValueError("precision: the reference is not rounded as fp8 rounds what trains; take bf16")
        return self

    @property
    def answers_per_row(self) -> int:
        """Two of a pair, one of answers that are judged alone."""
        return 2 if getattr(self.objective.config, "takes", "pairs") == "pairs" else 1
