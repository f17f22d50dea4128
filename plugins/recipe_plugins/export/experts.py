"""Experts as GGUF has them: of a layer one tensor (experts, rows, columns) for each of gate, up and down.

Files have them one by one (`….experts.7.gate_proj.weight`, as the hub does and `save_pretrained`) or as transformers
has them in memory: stacked, gate and up on top of each other (`….experts.gate_up_proj`, (experts, 2 · rows, columns)).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from recipe_runner import RecipeError

_ONE = re.compile(r"(?P<place>.+\.experts)\.(?P<number>\d+)\.(?P<part>gate|up|down)_proj\.weight")
_STACKED = re.compile(r"(?P<place>.+\.experts)\.(?P<part>gate_up|down)_proj")
_HALVES: dict[str, dict[str, int | None]] = {"gate_up": {"gate": 0, "up": 1}, "down": {"down": None}}


@dataclass(frozen=True, slots=True)
class Source:
    """The tensors of the files that one is made of: itself, a `half` of one, or several `stacked`."""

    names: tuple[str, ...]
    stacked: bool = False
    half: int | None = None

    def read(self, get: Callable[[str], torch.Tensor]) -> torch.Tensor:
        """The tensor, by the names of the files' own."""
        if self.stacked:
            return torch.stack([get(name) for name in self.names])
        found = get(self.names[0])
        return found if self.half is None else found.chunk(2, dim=1)[self.half]


def gathered(names: Iterable[str], experts: int) -> dict[str, Source]:
    """What a model's tensors `names` are with its experts together, by name. Raises `RecipeError` for a missing one."""
    found: dict[str, Source] = {}
    parts: dict[str, dict[int, str]] = {}
    for name in names:
        if one := _ONE.fullmatch(name):
            parts.setdefault(f"{one['place']}.{one['part']}_proj.weight", {})[int(one["number"])] = name
        elif several := _STACKED.fullmatch(name):
            for part, half in _HALVES[several["part"]].items():
                found[f"{several['place']}.{part}_proj.weight"] = Source((name,), half=half)
        else:
            found[name] = Source((name,))
    for place, numbered in parts.items():
        if sorted(numbered) != list(range(experts)):
            raise RecipeError(
                f"the model has {len(numbered)} tensors for {place}, not one for each of {experts} experts"
            )
        found[place] = Source(tuple(numbered[number] for number in range(experts)), stacked=True)
    return found
