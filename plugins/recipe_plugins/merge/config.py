"""Settings of the stage `merge`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from recipe_plugins.training.estimate import UNKNOWN, known_shape
from recipe_runner import Adapter, Corpus, Estimate, Execution, Input, Known, Model, Ref, Size, StageConfig


class MergeConfig(StageConfig):
    """An adapter and the model that it was trained on become one model.

    Differences are the largest between two models' logits, on held-out conversations of `corpus`, or on random tokens
    where there is none.
    """

    model: Annotated[Ref, Input((Model,)), Field(description="the model that the adapter was trained on")]
    adapter: Annotated[Ref, Input((Adapter,))]
    corpus: Annotated[Ref | None, Input((Corpus,)), Field(description="conversations to compare on")] = None
    base: Annotated[
        Literal["auto", "original", "dequantised"],
        Field(description="for an adapter trained on 4 bits: which weights it is added to; auto takes what is closer"),
    ] = "auto"
    min_effect: Annotated[float, Field(gt=0, description="by which the adapter itself must move logits")] = 1e-2
    tolerance: Annotated[float, Field(gt=0, description="of the difference to base and adapter, where all is fp32")] = (
        1e-4
    )
    relative_tolerance: Annotated[
        float, Field(gt=0, le=1, description="of it, as a share of the adapter's effect, with fewer bits anywhere")
    ] = 0.5
    precision: Annotated[
        Literal["fp32", "bf16"], Field(description="that models are compared in; merging itself is fp32")
    ] = "fp32"
    block: Annotated[Size, Field(ge=4096, description="bytes of fp32 weights in memory at once"), Execution()] = 2**26

    def produces(self) -> type[Model]:
        """A model."""
        return Model

    def estimate(self, known: Known) -> Estimate:
        """Memory is that of one model, which the comparison loads; merging itself takes a block."""
        shape = known_shape(known, "model")
        if shape is None:
            return UNKNOWN
        return Estimate(
            parameters=shape.parameters,
            trainable=0,
            memory={"weights": (4 if self.precision == "fp32" else 2) * shape.parameters},
            facts={"shape": shape.facts(), "vocab_size": known.fact("model", "vocab_size")},
        )
