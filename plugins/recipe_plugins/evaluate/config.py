"""Settings of the stage `evaluate` and of `recipe chat`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

from pydantic import ConfigDict, Field, model_validator

from recipe_plugins.training.estimate import known_shape
from recipe_runner import (
    Adapter,
    Config,
    Corpus,
    Estimate,
    Evaluation,
    Input,
    Known,
    Model,
    RecipeError,
    Ref,
    StageConfig,
    suggest,
)

MEASURES = ("bits_per_byte", "change", "answers", "exact_match", "facts")
Metric = Annotated[
    str,
    Field(
        pattern=r"^[^.]+\.[^.]+\..+$",
        description="`model.measure.….name`, as in results.json; of `facts`, as in its manifest",
    ),
]


NO_SHAPE = Estimate(
    notes=[
        "parameters and memory are unknown: no model's config is on this machine; an adapter's base is not looked up"
    ]
)


class CorpusEntry(Config):
    """A corpus, and how its conversations are asked; of plain text the bits per byte are measured on `heldout`."""

    model_config = ConfigDict(json_schema_extra={"type": ["object", "string"]})  # the shorthand below

    corpus: Annotated[Ref, Input((Corpus,))]
    split: Annotated[
        Literal["heldout", "train"], Field(description="of conversations; what was taught is asked on `train`")
    ] = "heldout"
    by: Annotated[str, Field(description="conversations are grouped by this key of their `meta`, else by domain")] = ""
    limit: Annotated[int, Field(ge=1, description="conversations of a group")] = 256
    exact_match: Annotated[bool, Field(description="also ask each question, and compare the answer's text")] = False

    @model_validator(mode="before")
    @classmethod
    def _shorthand(cls, data: Any) -> Any:
        """A plain word is the corpus."""
        return {"corpus": data} if isinstance(data, (str, Ref)) else data


class Expectation(Config):
    """That a metric is below or above a number or another metric, by a margin."""

    metric: Metric
    below: float | Metric | None = None
    above: float | Metric | None = None
    by: Annotated[float, Field(ge=0)] = 0.0

    @model_validator(mode="after")
    def _one(self) -> Expectation:
        if (self.below is None) == (self.above is None):
            raise ValueError("exactly one of below and above is expected")
        return self

    @property
    def metrics(self) -> list[str]:
        """The metrics that it names."""
        return [name for name in (self.metric, self.below, self.above) if isinstance(name, str)]


class EvaluateConfig(StageConfig):
    """Models side by side; `change` is in bits per byte from the first of them: what was forgotten."""

    models: Annotated[dict[str, Annotated[Ref, Input((Model, Adapter))]], Field(min_length=1)]
    corpora: dict[str, CorpusEntry] = {}
    prompts: Annotated[tuple[str, ...], Field(description="answered by every model, side by side")] = ()
    max_new_tokens: Annotated[int, Field(ge=1, description="of an answer to a prompt")] = 64
    sequence_length: Annotated[
        int, Field(ge=8, description="tokens of a window, or fewer where a model was made for fewer")
    ] = 1024
    template: Annotated[
        Literal["model", "chatml"], Field(description="each model's own chat template, or ours for all of them")
    ] = "model"
    precision: Annotated[Literal["fp32", "bf16"], Field(description="that models are loaded in")] = "fp32"
    expect: Annotated[dict[str, Expectation], Field(description="what must hold, by name; else the stage fails")] = {}

    @model_validator(mode="after")
    def _names(self) -> EvaluateConfig:
        for name in self.models:
            if "." in name:
                raise RecipeError(f"{name!r} has a dot, which divides the parts of a metric", field=["models", name])
            if "/" in name:
                what = f"{name!r} has a slash: call it something, as in `mine: {name}`"
                raise RecipeError(what, field=["models", name])
        for name, expectation in self.expect.items():
            for metric in expectation.metrics:
                model, measure, _ = metric.split(".", 2)
                for what, given, known in (("model", model, self.models), ("measure", measure, MEASURES)):
                    if given not in known:
                        hint = suggest(given, known, noun=f"{what}s")
                        raise RecipeError(f"no {what} is called {given!r}", next=hint, field=["expect", name])
        return self

    def produces(self) -> type[Evaluation]:
        """An evaluation."""
        return Evaluation

    def estimate(self, known: Known) -> Estimate:
        """Memory of the largest model; how much there is to score is not known before the corpora are read."""
        shapes = [known_shape(known, f"models.{name}") for name in self.models]
        largest = max((shape.parameters for shape in shapes if shape), default=None)
        if largest is None:
            return NO_SHAPE
        each = 4 if self.precision == "fp32" else 2
        return Estimate(parameters=largest, trainable=0, memory={"weights": each * largest})


class ChatProtocol(Protocol):
    """How `recipe chat` talks."""

    def run(self, payload: Path, prompt: str | None) -> None:
        """Answer `prompt`, or what is typed, with the model in `payload`."""
        ...


class ChatConfig(Config):
    """Settings of `recipe chat`."""

    system: Annotated[str, Field(description="a system message; none if empty")] = ""
    max_new_tokens: Annotated[int, Field(ge=1)] = 256
    temperature: Annotated[float, Field(ge=0, description="0 takes the most likely token")] = 0.0
    seed: int = 0
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"


def lookup(found: Mapping[str, Any], metric: str) -> float | None:
    """The number at a dotted path; keys may have dots themselves. `None` where there is none."""
    for key, value in found.items():
        if metric == key:
            return float(value) if isinstance(value, (int, float)) else None
        if metric.startswith(f"{key}.") and isinstance(value, Mapping):
            inner = lookup(value, metric[len(key) + 1 :])
            if inner is not None:
                return inner
    return None
