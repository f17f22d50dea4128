"""The models that are merged, as tensors on disk: read by rows, never loaded.

What a saved model has is known from the headers of its files. Rows come in fp32, whatever they are stored in.

Limit: tensors are floats of 16 or 32 bits.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open

from recipe_plugins.merge.config import MergedModel
from recipe_plugins.training.weights import shards, tied_copy
from recipe_runner import RecipeError

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""The dtypes that can be merged, by the names that safetensors has for them."""

UNIT = 2**20
"""Weights that statistics are taken over at once: a constant, so that sums never depend on the size of a block."""


class Kind(NamedTuple):
    """A tensor's dtype, as safetensors names it, and its shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def rows(self) -> int:
        """A scalar has one."""
        return self.shape[0] if self.shape else 1

    @property
    def columns(self) -> int:
        """Weights of a row."""
        return math.prod(self.shape[1:])


class Origin(NamedTuple):
    """A tensor of one of the models: the model's name, and the tensor's there."""

    model: str
    tensor: str


def slices(folder: Path, stack: ExitStack) -> dict[str, Any]:
    """The tensors of a saved model by name, unread; its files are open as long as `stack` is."""
    files = [stack.enter_context(safe_open(path, framework="pt")) for path in shards(folder)]
    return {name: file.get_slice(name) for file in files for name in sorted(file.keys())}


class Weights:
    """The tensors of a saved model, a tied head once, its files open as long as `stack` is."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        files = [stack.enter_context(safe_open(path, framework="pt")) for path in shards(folder)]
        self._file = {name: file for file in files for name in sorted(file.keys())}
        copy = tied_copy({name: file.get_slice(name) for name, file in self._file.items()}, self.config())
        self.kinds = {name: self._kind(name) for name in self._file if name not in copy}

    def _kind(self, name: str) -> Kind:
        part = self._file[name].get_slice(name)
        if part.get_dtype() not in DTYPES:
            raise RecipeError(
                f"{name} of {self.folder} is stored as {part.get_dtype()}: only F32, F16 and BF16 are merged"
            )
        return Kind(part.get_dtype(), tuple(part.get_shape()))

    def rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows [start, stop) of a tensor, fp32."""
        if not self.kinds[name].shape:
            return self._file[name].get_tensor(name).float().reshape(1)
        found: torch.Tensor = self._file[name].get_slice(name)[start:stop]
        return found.float()

    def config(self) -> dict[str, Any]:
        """The model's `config.json`."""
        found: dict[str, Any] = json.loads((self.folder / "config.json").read_text(encoding="utf-8"))
        return found


@dataclass(frozen=True, slots=True)
class Part:
    """One of the models."""

    weights: Weights
    options: MergedModel

    def weight(self, name: str) -> float:
        """How much it counts in tensor `name`."""
        return chosen(self.options.weight, name)

    def density(self, name: str) -> float:
        """The share of its changes to tensor `name` that is kept."""
        assert self.options.density is not None
        return chosen(self.options.density, name)


@dataclass(frozen=True, slots=True)
class Parts:
    """All models by name, in the recipe's order; the base of task vectors, if the method has one; `ctx.seed`."""

    models: Mapping[str, Part]
    base: Weights | None
    seed: Callable[..., int]

    @property
    def first(self) -> Part:
        """The model whose form the result has."""
        return next(iter(self.models.values()))

    def change(self, model: str, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows of a task vector: model minus base, fp32."""
        assert self.base is not None
        return self.models[model].weights.rows(name, start, stop) - self.base.rows(name, start, stop)


def chosen(setting: float | Mapping[str, float], name: str) -> float:
    """A number, or that of the first pattern that fits `name`. Raises `RecipeError` where none does."""
    return setting[pattern_of(setting, name)] if isinstance(setting, Mapping) else setting


def pattern_of(setting: float | Mapping[str, float], name: str) -> str:
    """The first pattern that fits `name`; a number has the one pattern `*`."""
    if not isinstance(setting, Mapping):
        return "*"
    for pattern in setting:
        if fnmatchcase(name, pattern):
            return pattern
    raise RecipeError(f"no pattern of {', '.join(setting)} fits the tensor {name}", next='end them with one for "*"')


def check_patterns(settings: Mapping[str, Any], names: list[str]) -> None:
    """Raise `RecipeError` for a pattern that no tensor takes, or a tensor without one; `settings` by where they are."""
    for where, setting in settings.items():
        unused = sorted(set(setting) - {pattern_of(setting, name) for name in names}) if setting else []
        if unused:
            raise RecipeError(
                f"{where}: no tensor takes the pattern {unused[0]!r}", next=f"tensors are like {names[0]}"
            )


def units(kind: Kind) -> Iterator[tuple[int, int]]:
    """Rows [start, stop) of a tensor, about `UNIT` weights at once."""
    return spans(kind, 4 * UNIT)


def spans(kind: Kind, block: int) -> Iterator[tuple[int, int]]:
    """Rows [start, stop) of a tensor, of at most `block` bytes of fp32, or one row."""
    step = max(1, block // (4 * max(1, kind.columns)))
    return ((start, min(start + step, kind.rows)) for start in range(0, kind.rows, step))
