"""Settings of the stage `pretrain`."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

from recipe_plugins.training.config import TextConfig, TrainingConfig
from recipe_plugins.training.estimate import training_estimate
from recipe_runner import Architecture, Estimate, Input, Known, Model, Ref, Slot, Tokeniser, Use


class PretrainConfig(TextConfig, TrainingConfig):
    """A base model, trained from scratch; it keeps the end of its stable phase for `anneal` to branch from."""

    tokeniser: Annotated[Ref, Input((Tokeniser, Model))]
    architecture: Annotated[Use[Architecture], Slot("architecture")]

    def produces(self) -> type[Model]:
        """A model."""
        return Model

    def estimate(self, known: Known) -> Estimate:
        """From the architecture's own count and the tokeniser's vocabulary."""
        vocab_size = known.fact("tokeniser", "vocab_size")
        architecture: Any = self.architecture.config
        optimizer: Any = self.optimizer.config
        parameters = architecture.parameters(vocab_size) if vocab_size else None
        derived = architecture.derived(vocab_size) if vocab_size and hasattr(architecture, "derived") else ""
        found = training_estimate(
            self,
            parameters=parameters,
            shape=architecture.shape(vocab_size) if vocab_size and hasattr(architecture, "shape") else None,
            vocab_size=vocab_size,
            state_bytes=None if parameters is None else optimizer.state_bytes(parameters),
        )
        return replace(found, notes=[*([derived] if derived else []), *found.notes])
