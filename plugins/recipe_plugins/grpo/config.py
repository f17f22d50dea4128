"""Settings of the stage `grpo`."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

from pydantic import Field, model_validator

from recipe_plugins.adapters.aligning_config import AligningConfig
from recipe_plugins.rewards.config import Reward, RewardOptions
from recipe_runner import Estimate, Known, Slot, Use


class GrpoConfig(AligningConfig):
    """A model that learns from its own answers; a row is a prompt: a conversation without its last answer.

    A prompt and `max_new_tokens` must fit into `sequence_length`.
    """

    rewards: Annotated[
        dict[str, Annotated[Use[Reward], Slot("reward", options=RewardOptions)]],
        Field(min_length=1, description="their weighted sum is what an answer is worth; the key is a name for metrics"),
    ]
    group: Annotated[int, Field(ge=2, description="answers to a prompt, each measured against the others")] = 8
    temperature: Annotated[float, Field(gt=0, description="that answers are drawn at")] = 1.0
    beta: Annotated[float, Field(ge=0, description="weight of the divergence from the model as it came; 0: none")] = 0.0
    heldout_prompts: Annotated[int, Field(ge=0, description="of a domain, answered before and after")] = 64

    @model_validator(mode="after")
    def _room(self) -> GrpoConfig:
        if self.max_new_tokens >= self.sequence_length:
            raise ValueError("max_new_tokens leaves no room for a prompt: raise sequence_length, or lower it")
        if self.skip_spikes:
            raise ValueError("skip_spikes: the loss of a step is 0 here, and its rounding no spike")
        if self.beta and self.adapter is not None and self.adapter.component.name == "pissa":
            raise ValueError("beta: pissa changes the frozen weights, so that nothing is left of the model as it came")
        return self

    def estimate(self, known: Known) -> Estimate:
        """As of other stages; with `beta` a whole model is there twice, once to train and once as it came."""
        found = super().estimate(known)
        if not self.beta or self.adapter is not None or not found.memory:
            return found
        return replace(found, memory={**found.memory, "reference": found.memory["weights"]})

    @property
    def answers_per_row(self) -> int:
        """Those of a group."""
        return self.group
