"""Settings of the stage `merge` and of its methods, and the protocol of their kind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Protocol

from pydantic import ConfigDict, Field, model_validator

from recipe_plugins.training.estimate import UNKNOWN, known_shape
from recipe_runner import (
    Adapter,
    Config,
    Corpus,
    Estimate,
    Execution,
    Input,
    Known,
    Model,
    RecipeError,
    Ref,
    Size,
    Slot,
    StageConfig,
    Use,
    suggest,
)

if TYPE_CHECKING:
    import torch

    from recipe_plugins.merge.parts import Origin, Parts

Density = Annotated[float, Field(gt=0, le=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]

OVERHEAD = 1.2
"""What a model takes to be loaded and to answer, as a share of its weights."""


class MergedModel(Config):
    """One of the models that are merged. A mapping goes by tensor: the first pattern (`*.mlp.*`) that fits its name."""

    model_config = ConfigDict(json_schema_extra={"type": ["object", "string"]})  # the shorthand below

    model: Annotated[Ref, Input((Model,))]
    weight: Annotated[float | dict[str, float], Field(description="how much it counts")] = 1.0
    density: Annotated[
        Density | dict[str, Density] | None, Field(description="share of its changes that is kept, by most methods")
    ] = None

    @model_validator(mode="before")
    @classmethod
    def _shorthand(cls, data: Any) -> Any:
        """A plain word is the model."""
        return {"model": data} if isinstance(data, (str, Ref)) else data


class MergedAdapter(Config):
    """One of the adapters that are merged. A mapping goes by tensor: the first pattern that fits its name."""

    model_config = ConfigDict(json_schema_extra={"type": ["object", "string"]})  # the shorthand below

    adapter: Annotated[Ref, Input((Adapter,))]
    weight: Annotated[float | dict[str, float], Field(description="how much of what it changes is added")] = 1.0

    @model_validator(mode="before")
    @classmethod
    def _shorthand(cls, data: Any) -> Any:
        """A plain word is the adapter."""
        return {"adapter": data} if isinstance(data, (str, Ref)) else data


class MergeMethod(Protocol):
    """How models become one; its config is a `MergeMethodConfig`. Nothing it computes may depend on the blocks' size.

    Called in this order: `tensors`, `prepare`, then `rows` for each block, in any order.
    """

    def tensors(self, parts: Parts) -> Mapping[str, Origin]:
        """The result's tensors in order, each with the one whose shape and dtype it has.

        Raises `RecipeError` where the models do not fit each other.
        """
        ...

    def prepare(self, parts: Parts) -> None:
        """Measure what depends on more than the rows of a block."""
        ...

    def rows(self, parts: Parts, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows [start, stop) of the result's tensor `name`, fp32."""
        ...

    def config(self, parts: Parts) -> dict[str, Any]:
        """The result's `config.json`."""
        ...


class MergeMethodConfig(Config):
    """Base of the methods' configs: what they ask of the models."""

    needs_base: ClassVar[bool] = False
    takes_weight: ClassVar[bool] = True
    takes_density: ClassVar[bool] = False

    def check(self, models: Mapping[str, MergedModel]) -> None:
        """Raise `RecipeError` where the models are not what the method takes."""
        for name, part in models.items():
            if not self.takes_weight and part.weight != 1.0:
                raise RecipeError("this method takes no weight", field=["models", name, "weight"])
            if not self.takes_density and part.density is not None:
                raise RecipeError("this method takes no density", field=["models", name, "density"])
            if self.takes_density and part.density is None:
                what = f"density of {name}, the share of its changes that is kept, is missing"
                raise RecipeError(what, field=["models", name])


class LinearConfig(MergeMethodConfig):
    """Weighted mean of the models (Wortsman et al. 2022, arXiv:2203.05482, section 2)."""

    normalise: Annotated[bool, Field(description="divide by the sum of the weights")] = True


class SlerpConfig(MergeMethodConfig):
    """Along the great circle from the first model to the second (Shoemake 1985, section 3.3), tensor by tensor."""

    takes_weight: ClassVar[bool] = False
    t: Annotated[Fraction | dict[str, Fraction], Field(description="0 is the first model, 1 the second; or by tensor")]

    def check(self, models: Mapping[str, MergedModel]) -> None:
        """Two models."""
        super().check(models)
        if len(models) != 2:
            raise ValueError(f"slerp goes from one model to another; models has {len(models)}")


class TaskArithmeticConfig(MergeMethodConfig):
    """The base plus scale · Σ weight · task vector, model minus base (Ilharco et al. 2022, arXiv:2212.04089, 2)."""

    needs_base: ClassVar[bool] = True
    scale: Annotated[float, Field(description="of what is added to the base: the papers' λ")] = 1.0


class SparseConfig(TaskArithmeticConfig):
    """Task vectors of which each model's `density` is kept."""

    takes_density: ClassVar[bool] = True


class BreadcrumbsConfig(SparseConfig):
    """Of each tensor the largest changes go, and the smallest (Davari and Belilovsky 2023, arXiv:2312.06795, 3)."""

    gamma: Annotated[float, Field(ge=0, lt=1, description="share of a tensor's changes, the largest, that is left out")]

    def check(self, models: Mapping[str, MergedModel]) -> None:
        """What is kept and what is left out at the top are at most all."""
        super().check(models)
        for name, part in models.items():
            densities = part.density.values() if isinstance(part.density, dict) else [part.density or 0.0]
            if max(densities) + self.gamma > 1:
                what = f"density of {name} and gamma of the method are more than 1 together"
                raise RecipeError(what, field=["models", name])


class Slice(Config):
    """Layers of a model."""

    model: Annotated[str, Field(description="a name under `models`")]
    layers: Annotated[tuple[int, int], Field(description="the first one, from 0, and the one after the last")]

    @model_validator(mode="after")
    def _some(self) -> Slice:
        if not 0 <= self.layers[0] < self.layers[1]:
            raise ValueError(f"layers {list(self.layers)} are none")
        return self


class PassthroughConfig(MergeMethodConfig):
    """Layers of models on top of each other, as they are (Kim et al. 2023, arXiv:2312.15166, 3.1: depth up-scaling)."""

    takes_weight: ClassVar[bool] = False
    slices: Annotated[tuple[Slice, ...], Field(min_length=1)]
    rest: Annotated[str, Field(description="the model, under `models`, that all but the layers is taken from")]

    def check(self, models: Mapping[str, MergedModel]) -> None:
        """Only models that are there, and all of them."""
        super().check(models)
        named = [self.rest, *(part.model for part in self.slices)]
        for name in named:
            if name not in models:
                hint = suggest(name, list(models), noun="models")
                raise RecipeError(f"no model is called {name!r}", next=hint, field=["method"])
        unused = [name for name in models if name not in named]
        if unused:
            raise RecipeError("nothing is taken from it", field=["models", unused[0]])


class MergeConfig(StageConfig):
    """An adapter and the model that it was trained on become one model, or several models do, by a method.

    Of an adapter: differences are the largest between two models' logits, on held-out conversations of `corpus`, or on
    random tokens where there is none; one trained on 4 bits is judged by the loss of these conversations' answers, if
    it lowers that. Several `adapters` of one model are added by their weights: W + Σ wᵢ (Wᵢ - W).
    """

    model: Annotated[
        Ref | None, Input((Model,)), Field(description="what the adapter was trained on, or task vectors start from")
    ] = None
    adapter: Annotated[Ref | None, Input((Adapter,))] = None
    adapters: Annotated[
        dict[str, MergedAdapter],
        Field(description="several of them, of one model; the first one's tokeniser and chat template are kept"),
    ] = {}
    models: Annotated[
        dict[str, MergedModel], Field(description="of one shape; the first one's dtype, configs and tokeniser are kept")
    ] = {}
    method: Annotated[
        Annotated[Use[MergeMethod], Slot("merge-method")] | None, Field(description="how `models` are merged")
    ] = None
    corpus: Annotated[Ref | None, Input((Corpus,)), Field(description="conversations to compare on")] = None
    base: Annotated[
        Literal["auto", "original", "dequantised"],
        Field(description="for an adapter trained on 4 bits: which weights it is added to; auto takes what is closer"),
    ] = "auto"
    gate: Annotated[
        Literal["auto", "logits", "weights"],
        Field(
            description="each weight that was written is checked in any case; logits: and what whole models compute, "
            "auto: if one fits into memory"
        ),
    ] = "auto"
    memory: Annotated[
        Size | Literal["free"], Field(description="bytes that a model which is compared may take"), Execution()
    ] = "free"
    min_effect: Annotated[float, Field(gt=0, description="by which the adapter itself must move logits")] = 1e-2
    tolerance: Annotated[float, Field(gt=0, description="of the difference to base and adapter, where all is fp32")] = (
        1e-4
    )
    relative_tolerance: Annotated[
        float,
        Field(
            gt=0,
            le=1,
            description="of it, as a share of the adapter's effect, with fewer bits anywhere; and the share of its "
            "change of the weights that rounding may take",
        ),
    ] = 0.5
    loss_tolerance: Annotated[
        float,
        Field(
            gt=0,
            lt=1,
            description="for an adapter trained on 4 bits and compared on a corpus: the share of what it gains on "
            "held-out answers, in nats a token, that the merged model may lose",
        ),
    ] = 0.1
    precision: Annotated[
        Literal["fp32", "bf16"], Field(description="that models are compared in; merging itself is fp32")
    ] = "fp32"
    block: Annotated[Size, Field(ge=4096, description="bytes of fp32 weights in memory at once"), Execution()] = 2**26

    @model_validator(mode="after")
    def _one_sort(self) -> MergeConfig:
        if (self.adapter is not None) + bool(self.adapters) + (self.method is not None) != 1:
            raise ValueError("exactly one of adapter or adapters (with model) and method (with models) is expected")
        if self.method is None:
            if self.models:
                raise ValueError("models are merged by a method, and none is named")
            if self.model is None:
                raise ValueError(
                    f"model, which the {'adapters were' if self.adapters else 'adapter was'} trained on, is missing"
                )
            return self
        if not self.models:
            raise ValueError("models, which the method merges, are missing")
        asked: Any = self.method.config
        if (self.model is None) == asked.needs_base:
            what = "model, which task vectors start from, is missing" if asked.needs_base else "model: it takes no base"
            raise ValueError(f"method {self.method.component.name}: {what}")
        asked.check(self.models)
        return self

    def produces(self) -> type[Model]:
        """A model."""
        return Model

    def estimate(self, known: Known) -> Estimate:
        """Memory is that of one model, if the comparison must load it; merging itself takes a block.

        Layers that are put on top of each other are not counted.
        """
        name = "model" if self.model is not None else f"models.{next(iter(self.models))}.model"
        shape = known_shape(known, name)
        if self.method is not None and isinstance(self.method.config, PassthroughConfig):
            return Estimate(notes=["parameters are unknown: layers are put on top of each other, which is not counted"])
        if shape is None:
            return UNKNOWN
        return Estimate(
            parameters=shape.parameters,
            trainable=0,
            memory=self._memory(shape.parameters),
            notes=self._less(shape.parameters),
            facts={"shape": shape.facts(), "vocab_size": known.fact(name, "vocab_size")},
        )

    def _memory(self, parameters: int) -> dict[str, int]:
        """What it cannot do without: whole models are compared where there is room, unless that is asked for."""
        if self.gate in ("auto", "weights"):
            return {"block": 3 * self.block}
        return {"weights": self._compared(parameters)}

    def _less(self, parameters: int) -> list[str]:
        if self.gate != "auto":
            return []
        rest = "else weights only"
        if self.adapter is not None and self.base == "auto":
            rest += "; one trained on 4 bits then needs `base:` to name what it is merged into"
        return [f"whole models are compared where {self._compared(parameters) / 1e9:,.3g} GB are free, {rest}"]

    def _compared(self, parameters: int) -> int:
        return int(OVERHEAD * (4 if self.precision == "fp32" else 2) * parameters)
