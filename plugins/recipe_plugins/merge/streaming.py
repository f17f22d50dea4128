"""Merging without a model in memory: safetensors in, safetensors out, a block of rows at a time.

Arithmetic is fp32, and each weight is cast once, to the dtype that the base has it in. Names, shards and ties are the
base's: a head that is not stored there is not stored here. Shapes are too, but for the tables of a model that learned
new tokens. Memory is one block, or one matrix where 4-bit weights are restored, whose scales depend on all of it.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from recipe_plugins.merge.changes import Change
from recipe_plugins.training.quantised import Quantisation, round_trip
from recipe_plugins.training.weights import INDEX, shards
from recipe_runner import RecipeError


@dataclass(frozen=True, slots=True)
class Dequantised:
    """The base as it was while the adapter trained: `tensors` were stored by `quantisation`, from `dtype`."""

    tensors: frozenset[str]
    quantisation: Quantisation
    dtype: torch.dtype

    def restore(self, weight: torch.Tensor) -> torch.Tensor:
        """What the layer multiplied with, in fp32."""
        return round_trip(weight.to(self.dtype), double=self.quantisation.double).float()


@dataclass(frozen=True, slots=True)
class Resized:
    """`tables` as `resize_embeddings` left them: `rows` rows, those after the first `seen` at the mean of these."""

    tables: frozenset[str]
    seen: int
    rows: int

    def fill(self, part: Any, step: int) -> torch.Tensor:
        """The mean of the rows that the model knows, in fp32 (columns,)."""
        parts = (part[start : min(start + step, self.seen)] for start in range(0, self.seen, step))
        return (sum(rows.double().sum(dim=0) for rows in parts) / self.seen).float()  # type: ignore[union-attr]


def merge(
    base: Path,
    target: Path,
    changes: Mapping[str, Change],
    *,
    restored: Dequantised | None,
    block: int,
    resized: Resized | None = None,
    tied: Collection[str] = (),
) -> None:
    """Write the base's weights with `changes` to `target`, with its index. `block` is in bytes of fp32.

    Tensors named in `tied` are one: a change of one is that of all that the base stores, and is of none that it does
    not. Raises `RecipeError` where another change is to a tensor that the base does not have.
    """
    files = shards(base)
    there = {name for path in files for name in _names(path)}
    unknown = sorted(changes.keys() - there - set(tied))
    if unknown:
        raise RecipeError(
            f"the adapter changes {len(unknown)} weights that its base does not store, first {unknown[0]}",
            next="check that the base's config is the one that the adapter was trained with",
        )
    target.mkdir(parents=True, exist_ok=True)
    for path in files:
        _merge_file(path, target / path.name, changes, restored, block, resized, tied)
    if (base / INDEX).is_file():
        index = json.loads((base / INDEX).read_text(encoding="utf-8"))
        index["metadata"] = {**index.get("metadata", {}), "total_size": sum(_data_size(target / f.name) for f in files)}
        (target / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def same_as(name: str, tied: Collection[str]) -> list[str]:
    """The names of a tensor, its own first."""
    return [name, *sorted(set(tied) - {name})] if name in tied else [name]


def _names(path: Path) -> list[str]:
    with safe_open(path, framework="pt") as file:
        return sorted(file.keys())


def _data_size(path: Path) -> int:
    """Bytes of the tensors in a file."""
    with open(path, "rb") as file:
        return path.stat().st_size - 8 - int(struct.unpack("<Q", file.read(8))[0])


def _merge_file(
    source: Path,
    target: Path,
    changes: Mapping[str, Change],
    restored: Dequantised | None,
    block: int,
    resized: Resized | None,
    tied: Collection[str],
) -> None:
    head, names = _head(source, resized)
    with safe_open(source, framework="pt") as file, open(target, "wb") as out:
        out.write(head)
        for name in names:
            were_4_bits = restored if restored and name in restored.tensors else None
            grown = resized if resized and name in resized.tables else None
            place = next((other for other in same_as(name, tied) if other in changes), name)
            for rows in _merged(file.get_slice(name), changes.get(place), were_4_bits, block, grown):
                out.write(rows.contiguous().reshape(-1).view(torch.uint8).numpy().data)


def _head(path: Path, resized: Resized | None) -> tuple[bytes, list[str]]:
    """What comes before the data of a safetensors file, and the names of its tensors in the order of their data.

    Unless a table grows, types, shapes and places stay what they are, so the copy begins with the same bytes.
    """
    with open(path, "rb") as file:
        size = file.read(8)
        text = file.read(struct.unpack("<Q", size)[0])
    entries = json.loads(text)
    names = sorted(entries.keys() - {"__metadata__"}, key=lambda name: entries[name]["data_offsets"])
    if resized is None or resized.tables.isdisjoint(names):
        return size + text, names
    place = 0
    for name in names:
        entry = entries[name]
        start, end = entry["data_offsets"]
        if name in resized.tables:
            rows, columns = entry["shape"]
            end = start + (end - start) // rows * resized.rows
            entry["shape"] = [resized.rows, columns]
        entry["data_offsets"] = [place, place + end - start]
        place += end - start
    written = json.dumps(entries, separators=(",", ":")).encode()
    written += b" " * (-len(written) % 8)
    return struct.pack("<Q", len(written)) + written, names


def _merged(
    part: Any, change: Change | None, restored: Dequantised | None, block: int, resized: Resized | None = None
) -> Iterator[torch.Tensor]:
    """The tensor in blocks of rows, each in its own dtype."""
    start = 0
    for rows in as_trained(part, restored, block, resized):
        if change is None and restored is None:
            yield rows
            continue
        kept = rows.dtype if restored is None else part[:1].dtype
        rows = rows.float()
        if change is not None:
            change.apply(rows, start)
        start += len(rows)
        yield rows.to(kept)


def as_trained(
    part: Any, restored: Dequantised | None, block: int, resized: Resized | None = None
) -> Iterator[torch.Tensor]:
    """A tensor of the base in blocks of rows, as it was while the adapter trained: as it is stored, mostly.

    In fp32 where its 4 bits are restored; with the rows that a table grew by. `block` is in bytes of fp32.
    """
    shape = part.get_shape()
    if not shape:
        yield part[...]
        return
    step = max(1, block // (4 * max(1, math.prod(shape[1:]))))
    whole = restored.restore(part[:]) if restored else None
    fill = resized.fill(part, step) if resized else None
    for start in range(0, resized.rows if resized else shape[0], step):
        stored = part[start : start + step] if whole is None else whole[start : start + step]
        if resized is not None and fill is not None and start + step > resized.seen:
            new = fill.to(stored.dtype).expand(min(start + step, resized.rows) - max(start, resized.seen), -1)
            stored = torch.cat([stored[: max(0, resized.seen - start)], new])
        yield stored
