"""How several models become one: the methods by their published definitions, each a function of rows.

What depends on a whole tensor, or on all of a model, is measured in `prepare`, over units of a constant size; the rest
is elementwise, in fp32. So the size of a block changes no bit of the result.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch

from recipe_plugins.merge.config import (
    BreadcrumbsConfig,
    LinearConfig,
    MergeMethodConfig,
    PassthroughConfig,
    SlerpConfig,
    TaskArithmeticConfig,
)
from recipe_plugins.merge.cuts import magnitude_at
from recipe_plugins.merge.layers import Layers
from recipe_plugins.merge.parts import Kind, Origin, Part, Parts, check_patterns, chosen, pattern_of, units
from recipe_runner import RecipeError

PARALLEL = 0.9995
"""A cosine from which on the angle is too small to divide by its sine: slerp is linear there, the same to 1e-4."""


class Method:
    """What most methods share: the result has the tensors and the config of the first model."""

    def __init__(self, config: MergeMethodConfig) -> None:
        self.settings = config

    def tensors(self, parts: Parts) -> dict[str, Origin]:
        """See `MergeMethod`: all models, and the base, have the same tensors."""
        first, weights = next(iter(parts.models.items()))
        others = [(name, part.weights) for name, part in parts.models.items()]
        for name, other in [*others, *([("the base", parts.base)] if parts.base else [])]:
            _same_tensors(name, other.kinds, first, weights.weights.kinds)
        return {name: Origin(first, name) for name in weights.weights.kinds}

    def prepare(self, parts: Parts) -> None:
        """See `MergeMethod`: patterns of weights and densities are for tensors that are there."""
        names = list(parts.first.weights.kinds)
        for label, part in parts.models.items():
            settings = {"weight": part.options.weight, "density": part.options.density}
            patterns = {f"models.{label}.{key}": s for key, s in settings.items() if isinstance(s, dict)}
            check_patterns(patterns, names)

    def config(self, parts: Parts) -> dict[str, Any]:
        """See `MergeMethod`."""
        return parts.first.weights.config()


def _same_tensors(name: str, kinds: dict[str, Kind], first: str, wanted: dict[str, Kind]) -> None:
    """Raise `RecipeError` unless names and shapes agree."""
    other = sorted(kinds.keys() ^ wanted.keys())
    if other:
        holder, lacking = (name, first) if other[0] in kinds else (first, name)
        raise RecipeError(
            f"{holder} has {len(other)} tensors that {lacking} has not, first {other[0]}",
            next="models that are merged have one architecture, and are fine-tuned from one model as a rule",
        )
    for tensor, kind in kinds.items():
        if kind.shape != wanted[tensor].shape:
            raise RecipeError(
                f"{tensor} has the shape {list(kind.shape)} in {name} and {list(wanted[tensor].shape)} in {first}",
                next="only models of one shape and vocabulary can be merged",
            )


class Linear(Method):
    """Σ wᵢ θᵢ / Σ wᵢ: the weighted mean (Wortsman et al. 2022, arXiv:2203.05482, section 2: model soups)."""

    settings: LinearConfig

    def rows(self, parts: Parts, name: str, start: int, stop: int) -> torch.Tensor:
        """See `MergeMethod`. Raises `RecipeError` where weights cancel each other."""
        weights = [part.weight(name) for part in parts.models.values()]
        total = math.fsum(weights) if self.settings.normalise else 1.0
        if total == 0:
            raise RecipeError(f"the weights of {name} sum to 0", next="change them, or set normalise: false")
        given = zip(weights, parts.models.values(), strict=True)
        return _sum([part.weights.rows(name, start, stop) * (weight / total) for weight, part in given])


class Slerp(Method):
    """sin((1 - t) Ω) / sin Ω · θ₀ + sin(t Ω) / sin Ω · θ₁, with Ω the angle between the two tensors as vectors.

    Shoemake 1985, "Animating rotation with quaternion curves", section 3.3. Linear where they are parallel.
    """

    settings: SlerpConfig

    def prepare(self, parts: Parts) -> None:
        """The factors of the two models for each tensor."""
        super().prepare(parts)
        kinds = parts.first.weights.kinds
        if isinstance(self.settings.t, dict):
            check_patterns({"method.t": self.settings.t}, list(kinds))
        self._factors = {name: self._both(parts, name, kind) for name, kind in kinds.items()}

    def _both(self, parts: Parts, name: str, kind: Kind) -> tuple[float, float]:
        first, second = (part.weights for part in parts.models.values())
        t, sums = chosen(self.settings.t, name), np.zeros(3)
        for start, stop in units(kind):
            a, b = (weights.rows(name, start, stop).double().reshape(-1) for weights in (first, second))
            sums += [float(a @ b), float(a @ a), float(b @ b)]
        lengths = math.sqrt(sums[1]) * math.sqrt(sums[2])
        cosine = sums[0] / lengths if lengths else 1.0
        if abs(cosine) > PARALLEL:
            return 1 - t, t
        angle = math.acos(cosine)
        return math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)

    def rows(self, parts: Parts, name: str, start: int, stop: int) -> torch.Tensor:
        """See `MergeMethod`."""
        given = zip(self._factors[name], parts.models.values(), strict=True)
        return _sum([part.weights.rows(name, start, stop) * factor for factor, part in given])


class TaskArithmetic(Method):
    """θ_base + λ Σ wᵢ τᵢ, with the task vectors τᵢ = θᵢ - θ_base (Ilharco et al. 2022, arXiv:2212.04089, section 2)."""

    settings: TaskArithmeticConfig

    def rows(self, parts: Parts, name: str, start: int, stop: int) -> torch.Tensor:
        """See `MergeMethod`."""
        assert parts.base is not None
        weights = [part.weight(name) for part in parts.models.values()]
        vectors = [
            self.kept(parts, model, name, start, parts.change(model, name, start, stop)) * weight
            for weight, model in zip(weights, parts.models, strict=True)
        ]
        return parts.base.rows(name, start, stop) + self.united(vectors, weights) * self.settings.scale

    def kept(self, parts: Parts, model: str, name: str, start: int, change: torch.Tensor) -> torch.Tensor:
        """What is used of rows of a task vector, from `start` on."""
        return change

    def united(self, vectors: Sequence[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
        """One vector of the models' own, which are weighted already."""
        return _sum(vectors)


class DareLinear(TaskArithmetic):
    """Each change is dropped with probability 1 - density and else divided by density, then task arithmetic.

    Yu et al. 2023, arXiv:2311.03099, section 3 (drop and rescale). Whether a change is dropped is a function of the
    seed, the model's name, the tensor's name and the change's place in it.
    """

    def kept(self, parts: Parts, model: str, name: str, start: int, change: torch.Tensor) -> torch.Tensor:
        """See `TaskArithmetic`."""
        density = parts.models[model].density(name)
        first, count = start * (change.numel() // max(1, len(change))), change.numel()
        drawn = uniform(parts.seed("dare", model, name), first, count).reshape(change.shape)
        return torch.where(drawn < density, change / density, 0.0)


def uniform(key: int, first: int, count: int) -> torch.Tensor:
    """Numbers [first, first + count) of an endless row of uniform ones in [0, 1), float64, each from its place alone.

    Philox (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") counts in steps of four numbers.
    """
    skipped, rest = divmod(first, 4)
    generator = np.random.Generator(np.random.Philox(key=key).advance(skipped))
    return torch.from_numpy(generator.random(rest + count)[rest:])


def elected(vectors: Sequence[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
    """At each place the sign of the sum, and the mean of the values that have it, by the size of their weights."""
    sign = _sum(vectors).sign()
    agree = [(vector.sign() == sign) & (sign != 0) for vector in vectors]
    total = _sum([torch.where(mask, vector, 0.0) for mask, vector in zip(agree, vectors, strict=True)])
    shares = _sum([mask.float() * abs(weight) for mask, weight in zip(agree, weights, strict=True)])
    return torch.where(shares > 0, total / shares, 0.0)


class DareTies(DareLinear):
    """Dropped and rescaled as in `DareLinear`, then united as TIES does (its section 3: DARE before other methods)."""

    def united(self, vectors: Sequence[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
        """See `TaskArithmetic`."""
        return elected(vectors, weights)


class Ties(TaskArithmetic):
    """Trim, elect sign, disjoint mean (Yadav et al. 2023, arXiv:2306.01708, section 4, algorithm 1).

    Of each task vector the `density` of largest magnitude stays, over the whole model as in the paper; where densities
    go by pattern, over the tensors of each pattern. Magnitudes equal to the last one that stays do too. Weights, which
    the paper has not, count in the sum that elects and in the mean.
    """

    def prepare(self, parts: Parts) -> None:
        """The smallest magnitude that stays, by model and pattern."""
        super().prepare(parts)
        self._cuts = {
            (model, pattern): self._cut(parts, model, pattern)
            for model, part in parts.models.items()
            for pattern in sorted({pattern_of(_density(part), name) for name in part.weights.kinds})
        }

    def _cut(self, parts: Parts, model: str, pattern: str) -> float:
        part = parts.models[model]
        kinds = {n: kind for n, kind in part.weights.kinds.items() if pattern_of(_density(part), n) == pattern}
        size = sum(kind.rows * kind.columns for kind in kinds.values())
        rank = max(1, round(part.density(next(iter(kinds))) * size))
        if rank >= size:
            return 0.0
        return magnitude_at(
            lambda: chain.from_iterable(_changes(parts, model, name, kind) for name, kind in kinds.items()), rank
        )

    def kept(self, parts: Parts, model: str, name: str, start: int, change: torch.Tensor) -> torch.Tensor:
        """See `TaskArithmetic`."""
        cut = self._cuts[model, pattern_of(_density(parts.models[model]), name)]
        return torch.where(change.abs() >= cut, change, 0.0)

    def united(self, vectors: Sequence[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
        """See `TaskArithmetic`."""
        return elected(vectors, weights)


class Breadcrumbs(TaskArithmetic):
    """Of each tensor's changes the share `gamma` of largest magnitude goes, `density` of those below stays.

    Davari and Belilovsky 2023, arXiv:2312.06795, section 3: masks by layer, with β = 1 - density - γ; then task
    arithmetic. Equal magnitudes at a limit go together.
    """

    settings: BreadcrumbsConfig

    def prepare(self, parts: Parts) -> None:
        """The magnitudes between which changes stay, by model and tensor."""
        super().prepare(parts)
        self._limits = {
            (model, name): self._both(parts, model, name, kind)
            for model, part in parts.models.items()
            for name, kind in part.weights.kinds.items()
        }

    def _both(self, parts: Parts, model: str, name: str, kind: Kind) -> tuple[float, float]:
        size = kind.rows * kind.columns
        top = round(self.settings.gamma * size)
        last = min(size, top + max(1, round(parts.models[model].density(name) * size)))
        smallest, largest = (magnitude_at(lambda: _changes(parts, model, name, kind), rank) for rank in (last, top))
        return smallest, largest

    def kept(self, parts: Parts, model: str, name: str, start: int, change: torch.Tensor) -> torch.Tensor:
        """See `TaskArithmetic`."""
        smallest, largest = self._limits[model, name]
        size = change.abs()
        return torch.where((size >= smallest) & (size < largest), change, 0.0)


class Passthrough(Method):
    """Layers of models on top of each other, unchanged (Kim et al. 2023, arXiv:2312.15166, section 3.1)."""

    settings: PassthroughConfig

    def tensors(self, parts: Parts) -> dict[str, Origin]:
        """See `MergeMethod`. Raises `RecipeError` for layers that a model has not, or of another shape."""
        self._origins = Layers(self.settings, parts).tensors()
        return self._origins

    def rows(self, parts: Parts, name: str, start: int, stop: int) -> torch.Tensor:
        """See `MergeMethod`."""
        model, tensor = self._origins[name]
        return parts.models[model].weights.rows(tensor, start, stop)

    def config(self, parts: Parts) -> dict[str, Any]:
        """See `MergeMethod`: that of `rest`, with as many layers."""
        return Layers(self.settings, parts).config()


def _sum(vectors: Sequence[torch.Tensor]) -> torch.Tensor:
    """In the order given; products and sums are rounded one by one, so that no kernel fuses them for some rows only."""
    total = vectors[0]
    for vector in vectors[1:]:
        total = total + vector
    return total


def _changes(parts: Parts, model: str, name: str, kind: Kind) -> Iterator[torch.Tensor]:
    return (parts.change(model, name, start, stop) for start, stop in units(kind))


def _density(part: Part) -> Any:
    return part.options.density
