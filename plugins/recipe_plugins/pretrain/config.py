"""Settings of the stage `pretrain`."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, ClassVar

from pydantic import Field, model_validator

from recipe_plugins.adapters.config import AdapterMethod
from recipe_plugins.training.config import TextConfig, TrainingConfig
from recipe_plugins.training.estimate import UNKNOWN, adapter_estimate, known_shape, state_bytes_of, training_estimate
from recipe_runner import Adapter, Architecture, Estimate, Input, Known, Model, Ref, Slot, Tokeniser, Use


class PretrainConfig(TextConfig, TrainingConfig):
    """A base model trained on text: from scratch, by `architecture`, or one that is there and goes on, by `model`.

    It keeps the end of its stable phase for `anneal` to branch from. A model goes on with a fresh optimizer and a
    warm-up of its own, in full or through an adapter, which the stage then makes; weigh a share of general text in
    `mix`, so that less of it is forgotten. What held-out text takes before and after is noted as `forgetting`.
    """

    keeps_branch: ClassVar[bool] = True

    architecture: Annotated[
        Annotated[Use[Architecture], Slot("architecture")] | None, Field(description="of a model from scratch")
    ] = None
    model: Annotated[Ref | None, Input((Model,)), Field(description="what training goes on from, instead")] = None
    tokeniser: Annotated[
        Ref | None,
        Input((Tokeniser, Model)),
        Field(description="with `model`: its own, or one that extends it; new tokens get rows at the mean of the old"),
    ] = None
    adapter: Annotated[
        Annotated[Use[AdapterMethod], Slot("adapter")] | None, Field(description="what trains of `model`; else all")
    ] = None

    @model_validator(mode="after")
    def _one_beginning(self) -> PretrainConfig:
        if (self.architecture is None) == (self.model is None):
            raise ValueError("exactly one of architecture (from scratch) and model (to go on from) is expected")
        if self.architecture is not None and self.tokeniser is None:
            raise ValueError("tokeniser is missing: a model from scratch has none of its own")
        if self.adapter is not None and self.model is None:
            raise ValueError("adapter: a model from scratch trains in full")
        if self.adapter is not None and self.precision == "bf16-master":
            raise ValueError("precision: bf16-master is for training in full; an adapter is fp32 beside a bf16 base")
        return self

    @model_validator(mode="after")
    def _positions(self) -> PretrainConfig:
        longest = getattr(self.architecture and self.architecture.config, "max_position_embeddings", None)
        if longest is not None and longest < self.sequence_length:
            raise ValueError(
                f"sequence_length {self.sequence_length} is more than the architecture's max_position_embeddings "
                f"{longest}: raise that, or shorten the rows"
            )
        return self

    def produces(self) -> type[Model] | type[Adapter]:
        """A model, or with `adapter` an adapter."""
        return Model if self.adapter is None else Adapter

    def estimate(self, known: Known) -> Estimate:
        """From the architecture's own count and the tokeniser's vocabulary, or from what is known of the model.

        The rows of new tokens are not counted.
        """
        return self._from_scratch(known) if self.architecture is not None else self._continued(known)

    def _from_scratch(self, known: Known) -> Estimate:
        assert self.architecture is not None
        vocab_size = known.fact("tokeniser", "vocab_size")
        architecture: Any = self.architecture.config
        optimizer: Any = self.optimizer.config
        parameters = architecture.parameters(vocab_size) if vocab_size else None
        shape = architecture.shape(vocab_size) if vocab_size and hasattr(architecture, "shape") else None
        matrices = shape.matrices if shape else 0
        derived = architecture.derived(vocab_size) if vocab_size and hasattr(architecture, "derived") else ""
        found = training_estimate(
            self,
            parameters=parameters,
            shape=shape,
            vocab_size=vocab_size,
            state_bytes=None if parameters is None else state_bytes_of(optimizer, parameters, matrices),
        )
        return replace(found, notes=[*([derived] if derived else []), *found.notes])

    def _continued(self, known: Known) -> Estimate:
        shape, optimizer = known_shape(known, "model"), self.optimizer.config
        if shape is None:
            return UNKNOWN
        if self.adapter is not None:
            return adapter_estimate(self, shape, self.adapter.config, optimizer)
        return training_estimate(
            self,
            parameters=shape.parameters,
            shape=shape,
            vocab_size=known.fact("tokeniser" if self.tokeniser else "model", "vocab_size"),
            state_bytes=state_bytes_of(optimizer, shape.parameters, shape.matrices),
        )
