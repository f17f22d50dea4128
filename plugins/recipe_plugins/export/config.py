"""Settings of the stage `export`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from recipe_plugins.training.estimate import UNKNOWN, known_shape
from recipe_runner import Artifact, Estimate, Input, Known, Model, Ref, StageConfig

BYTES = {
    "f32": 4, "f16": 2, "bf16": 2, "q8_0": 34 / 32, "q5_1": 24 / 32, "q5_0": 22 / 32, "q4_1": 20 / 32, "q4_0": 18 / 32,
}  # fmt: skip
"""Bytes of a weight, with its share of the block's scale."""


class ExportConfig(StageConfig):
    """A model as `model.gguf`, for llama.cpp and what builds on it."""

    model: Annotated[Ref, Input((Model,))]
    dtype: Annotated[
        Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"],
        Field(
            description="of matrices; vectors, and what chooses experts, stay f32. q8_0 and below are integers in "
            "blocks of 32: embedding and head stay q8_0, rows that blocks do not divide f16"
        ),
    ]

    def produces(self) -> type[Artifact]:
        """A file of a format that no other stage reads."""
        return Artifact

    def estimate(self, known: Known) -> Estimate:
        """One tensor is in memory at a time."""
        shape = known_shape(known, "model")
        if shape is None:
            return UNKNOWN
        return Estimate(parameters=shape.parameters, trainable=0, disk=int(shape.parameters * BYTES[self.dtype]))
