"""Configs of the toy components. The training stage has a field of every form that identity must tell apart."""

from typing import Annotated, Any

from pydantic import Field

from recipe_runner import (
    Config,
    Corpus,
    Count,
    Execution,
    File,
    Input,
    Model,
    Place,
    Ref,
    Size,
    Slot,
    StageConfig,
    Use,
)


class RuleConfig(Config):
    by: float = 2.0
    note: str = ""


class RuleOptions(Config):
    """What the owner of the slot `rules` adds to every rule."""

    every: Annotated[int, Field(ge=1)] = 1


class Details(Config):
    amount: int = 1
    speed: Annotated[int, Execution()] = 1
    folder: Annotated[str, Place()] | None = None


class ToldConfig(Config):
    path: Annotated[str, Place()]
    fails: bool = False


class FarConfig(Config):
    nodes: int = 1
    queue: str = ""


class WriteConfig(StageConfig):
    words: list[str] = ["one", "two"]
    repeat: Annotated[int, Field(ge=1)] = 1
    text: Annotated[str, File()] | None = None
    beside: Annotated[str, Place()] = "."
    empty: Annotated[bool, Execution()] = False

    def produces(self) -> type[Corpus]:
        return Corpus


class TrainConfig(StageConfig):
    corpus: Annotated[Ref, Input((Corpus,))] | None = None
    model: Annotated[Ref, Input((Model,))] | None = None
    models: dict[str, Annotated[Ref, Input((Model,))]] = {}
    rule: Annotated[Use[Any], Slot("toy-rule")] = "plus"  # type: ignore[assignment]
    rules: dict[str, Annotated[Use[Any], Slot("toy-rule", RuleOptions)]] = {}
    steps: int = 10
    label: str = ""
    ceiling: float | None = 1e6
    budget: Count = 1000
    size: Size = "6MB"  # type: ignore[assignment]
    weights: dict[str, float] = {"a": 1.0, "b": 2.0}
    betas: tuple[float, float] = (0.9, 0.95)
    details: Details = Field(default_factory=dict)  # type: ignore[assignment]
    more: Details | None = None
    notes: list[Annotated[str, File()]] = []
    cache: Annotated[str, Place()] | None = None
    pause: Annotated[float, Execution()] | None = None
    # what goes wrong, and when
    hold_at: Annotated[int, Execution()] = -1
    deaf: Annotated[bool, Execution()] = False
    grip: Annotated[int, Execution()] = 0
    fail_at: Annotated[int, Execution()] = -1
    fail_rank: Annotated[int, Execution()] = 0
    tear_at: Annotated[int, Execution()] = -1
    leave_at: Annotated[int, Execution()] = -1
    noise: Annotated[int, Execution()] = 0
    spawn: Annotated[str, Execution()] = ""
    mistake: Annotated[str, Execution()] = ""

    def produces(self) -> type[Model]:
        return Model
