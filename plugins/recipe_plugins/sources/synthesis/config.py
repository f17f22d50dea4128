"""The config of `synthesise`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from recipe_plugins.sources.config import SourceConfig
from recipe_runner import Execution, File, Place, RecipeError


class SynthesiseConfig(SourceConfig):
    """Answers of a model to templates that are filled from rows; give a `server` and its `model`, or a `checkpoint`."""

    templates: dict[str, str] = Field(min_length=1, description="prompts by name; `{column}` is filled from a row")
    rows: Annotated[str, File()] | None = Field(
        default=None, description="JSON Lines, or text (column `line`), to fill the templates from; none: as they are"
    )
    requests: int = Field(ge=1, description="how many documents are asked for, and never more")
    seed: int = Field(default=0, description="which rows meet which template first, and the sampling of each answer")
    server: str | None = Field(
        default=None, pattern=r"^https?://.*[^/]$", description="an OpenAI-compatible one, such as http://host:8000/v1"
    )
    model: str | None = Field(default=None, description="as the server calls it")
    key: str | None = Field(
        default=None, description="the NAME of the environment variable that holds the server's key"
    )
    checkpoint: Annotated[str, Place()] | None = Field(default=None, description="a folder that transformers can load")
    ask: Literal["chat", "completion"] = "chat"
    system: str | None = Field(default=None, description="the system prompt of a chat")
    answer: Literal["text", "messages"] = Field(
        default="text", description="a document is the answer alone, or a conversation of prompt and answer"
    )
    max_tokens: int = Field(default=512, ge=1, description="of an answer; one that is cut off there is a bad row")
    temperature: float = Field(default=1.0, ge=0, le=2)
    top_p: float = Field(default=1.0, gt=0, le=1)
    cache: Annotated[str, Place()] = Field(description="a folder that keeps every answer: nothing is asked for twice")
    parallel: Annotated[int, Execution(), Field(ge=1)] = 8
    """Requests that a process of curation has under way at a server."""
    attempts: Annotated[int, Execution(), Field(ge=1)] = 4
    """How often a request is made that a server is too busy for."""
    timeout: Annotated[float, Execution(), Field(gt=0)] = 120.0
    """Seconds until a server is given up."""

    @model_validator(mode="after")
    def _one(self) -> SynthesiseConfig:
        if (self.server is None) == (self.checkpoint is None):
            raise ValueError("give either `server` (with its `model`) or `checkpoint` (a folder), not both or none")
        if (self.server is None) != (self.model is None):
            raise ValueError("`server` and `model` belong together")
        if self.key and self.server is None:
            raise RecipeError("`key` is for a `server`", field=["key"])
        if self.system and self.ask == "completion":
            raise RecipeError("`system` is for ask: chat", field=["system"])
        return self
