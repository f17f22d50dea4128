"""Settings of the stage `reward`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from recipe_plugins.adapters.aligning_config import JudgedConfig
from recipe_runner import RewardModel


class RewardConfig(JudgedConfig):
    """A reward model: a head of one number on a model's last layer, both trained on pairs of answers; a row is a pair,
    each answer with its prompt of at most `sequence_length` tokens."""

    heldout_pairs: Annotated[
        int, Field(ge=0, description="held-out pairs of a domain that accuracy is measured on")
    ] = 256

    def produces(self) -> type[RewardModel]:
        """A reward model."""
        return RewardModel
