"""What an adapter in PEFT's format does to the weights of its base, tensor by tensor and row by row."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file

from recipe_runner import RecipeError

PREFIX, MAGNITUDE = "base_model.model.", ".lora_magnitude_vector"
PLAIN = {
    "peft_type": "LORA", "use_qalora": False, "use_bdlora": False, "fan_in_fan_out": False,
    "bias": "none", "lora_bias": False, "rank_pattern": {}, "alpha_pattern": {},
    "layer_replication": None, "target_parameters": None,
}  # fmt: skip
"""Settings whose other values change weights in ways that only PEFT knows."""


class Change(Protocol):
    """Something done to a matrix."""

    def apply(self, block: torch.Tensor, start: int) -> None:
        """Change `block`, fp32 (rows, columns), which are the rows from `start` on, in place."""
        ...


@dataclass(frozen=True, slots=True)
class LowRank:
    """W + scale · B A, with `a` (r, columns) and `b` (rows, r) in fp32."""

    a: torch.Tensor
    b: torch.Tensor
    scale: float

    def apply(self, block: torch.Tensor, start: int) -> None:
        """See `Change`."""
        block.addmm_(self.b[start : start + len(block)], self.a, alpha=self.scale)


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows `numbers` are replaced by `values` (len(numbers), columns), in fp32."""

    numbers: tuple[int, ...]
    values: torch.Tensor

    def apply(self, block: torch.Tensor, start: int) -> None:
        """See `Change`."""
        for number, value in zip(self.numbers, self.values, strict=True):
            if start <= number < start + len(block):
                block[number - start] = value


@dataclass(frozen=True, slots=True)
class Whole:
    """Every row is replaced by those of `values`, in fp32."""

    values: torch.Tensor

    def apply(self, block: torch.Tensor, start: int) -> None:
        """See `Change`."""
        block.copy_(self.values[start : start + len(block)])


@dataclass(frozen=True, slots=True)
class Magnitude:
    """DoRA: rows of W + `update`, each brought to the length that `lengths` (rows,) has for it."""

    update: LowRank
    lengths: torch.Tensor

    def apply(self, block: torch.Tensor, start: int) -> None:
        """See `Change`."""
        self.update.apply(block, start)
        wanted = self.lengths[start : start + len(block)]
        block.mul_((wanted / torch.linalg.norm(block, dim=1)).unsqueeze(1))


def other_settings(folder: Path) -> dict[str, Any]:
    """The settings of the adapter in `folder` that only PEFT can merge; none where `read_changes` knows it all."""
    keys = _keys(folder)
    return {name: keys[name] for name, value in PLAIN.items() if keys.get(name, value) not in (value, None, [])}


def read_changes(folder: Path) -> dict[str, Change]:
    """What the adapter in `folder` does, by the name of the tensor of the base.

    Raises `RecipeError` for an adapter with `other_settings`.
    """
    other = other_settings(folder)
    if other:
        shown = ", ".join(f"{name}: {value}" for name, value in other.items())
        raise RecipeError(f"the adapter has settings that are not known here: {shown}")
    found = load_file(folder / "adapter_model.safetensors")
    tensors = {name.removeprefix(PREFIX): tensor.float() for name, tensor in found.items()}
    keys = _keys(folder)
    pairs = [_change(name, tensors, keys) for name in tensors if not name.endswith((".lora_B.weight", MAGNITUDE))]
    changes = dict(pairs)
    if len(changes) < len(pairs):
        raise RecipeError("the adapter changes a weight in two ways, and in which order is not known here")
    return changes


def _keys(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    return found


def _change(name: str, tensors: Mapping[str, torch.Tensor], keys: Mapping[str, Any]) -> tuple[str, Change]:
    module, _, _ = name.rpartition(".lora_A.weight")
    if module:
        scale = keys["lora_alpha"] / (math.sqrt(keys["r"]) if keys["use_rslora"] else keys["r"])
        update = LowRank(tensors[name], tensors[f"{module}.lora_B.weight"], scale)
        magnitude = tensors.get(module + MAGNITUDE)
        return f"{module}.weight", update if magnitude is None else Magnitude(update, magnitude.flatten())
    module, _, _ = name.rpartition(".token_adapter.trainable_tokens_delta")
    if module:
        return f"{module}.weight", Rows(tuple(keys["trainable_token_indices"][module]), tensors[name])
    return name, Whole(tensors[name])  # of a module that was trained beside
