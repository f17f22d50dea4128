"""Settings of the stage `export`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from recipe_plugins.training.estimate import UNKNOWN, known_shape
from recipe_runner import Artifact, Estimate, Input, Known, Model, Ref, StageConfig


class ExportConfig(StageConfig):
    """A model as `model.gguf`, for llama.cpp and what builds on it."""

    model: Annotated[Ref, Input((Model,))]
    dtype: Annotated[Literal["f32", "f16", "bf16"], Field(description="of matrices; vectors stay f32")]

    def produces(self) -> type[Artifact]:
        """A file of a format that no other stage reads."""
        return Artifact

    def estimate(self, known: Known) -> Estimate:
        """One tensor is in memory at a time."""
        shape = known_shape(known, "model")
        if shape is None:
            return UNKNOWN
        return Estimate(
            parameters=shape.parameters, trainable=0, disk=shape.parameters * (4 if self.dtype == "f32" else 2)
        )
