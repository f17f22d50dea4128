"""Configs of the toy components."""

from typing import Annotated, Any

from pydantic import Field
from recipe_runner import Config, Corpus, Execution, File, Input, Model, Place, Ref, Slot, StageConfig, Use


class RuleConfig(Config):
    by: float = 2.0
    note: str = ""


class WriteConfig(StageConfig):
    words: list[str] = ["one", "two"]
    repeat: Annotated[int, Field(ge=1)] = 1
    text: Annotated[str, File()] | None = None
    beside: Annotated[str, Place()] = "."

    def produces(self) -> type[Corpus]:
        return Corpus


class TrainConfig(StageConfig):
    corpus: Annotated[Ref, Input((Corpus,))] | None = None
    model: Annotated[Ref, Input((Model,))] | None = None
    rule: Annotated[Use[Any], Slot("toy-rule")] = "plus"  # type: ignore[assignment]
    rules: dict[str, Annotated[Use[Any], Slot("toy-rule")]] = {}
    steps: int = 10
    label: str = ""
    pause: Annotated[float, Execution()] = 0.0
    fail_at: Annotated[int, Execution()] = -1
    mistake: Annotated[str, Execution()] = ""

    def produces(self) -> type[Model]:
        return Model
