"""Sharded safetensors, written a block of rows at a time: nothing is in memory but a block.

The format is a length of 8 bytes, a header in JSON, padded to a multiple of 8 bytes, and the tensors' bytes in its
order (github.com/huggingface/safetensors, "Format"). Equal tensors give equal bytes.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch

from recipe_plugins.merge.parts import DTYPES, Kind
from recipe_plugins.training.weights import INDEX

SHARD = 5_000_000_000
"""Bytes of a file, at most, unless one tensor is larger."""

Blocks = Callable[[str], Iterable[torch.Tensor]]
"""The rows of a tensor, in order, in any float dtype."""


def write(folder: Path, kinds: Mapping[str, Kind], blocks: Blocks, *, shard: int = SHARD) -> None:
    """Write tensors `kinds`, each cast to its dtype once, to `folder`, with an index if there is more than one file."""
    groups = _groups(kinds, shard)
    names = [_file(number, len(groups)) for number in range(len(groups))]
    for name, group in zip(names, groups, strict=True):
        _write_file(folder / name, {tensor: kinds[tensor] for tensor in group}, blocks)
    if len(groups) > 1:
        weight_map = {tensor: name for name, group in zip(names, groups, strict=True) for tensor in group}
        index = {"metadata": {"total_size": sum(map(_size, kinds.values()))}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _file(number: int, count: int) -> str:
    return "model.safetensors" if count == 1 else f"model-{number + 1:05d}-of-{count:05d}.safetensors"


def _size(kind: Kind) -> int:
    return kind.rows * kind.columns * DTYPES[kind.dtype].itemsize


def _groups(kinds: Mapping[str, Kind], shard: int) -> list[list[str]]:
    """The tensors of each file."""
    groups: list[list[str]] = [[]]
    filled = 0
    for name, kind in kinds.items():
        if groups[-1] and filled + _size(kind) > shard:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += _size(kind)
    return groups


def _write_file(path: Path, kinds: Mapping[str, Kind], blocks: Blocks) -> None:
    # Wide dtypes first, as the library orders them, so that every tensor is aligned.
    ordered = sorted(kinds, key=lambda name: (-DTYPES[kinds[name].dtype].itemsize, name))
    with open(path, "wb") as file:
        file.write(_header({name: kinds[name] for name in ordered}))
        for name in ordered:
            for rows in blocks(name):
                raw = rows.to(DTYPES[kinds[name].dtype]).contiguous().reshape(-1).view(torch.uint8)
                file.write(raw.numpy().data)


def _header(kinds: Mapping[str, Kind]) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    place = 0
    for name, kind in kinds.items():
        end = place + _size(kind)
        entries[name] = {"dtype": kind.dtype, "shape": list(kind.shape), "data_offsets": [place, end]}
        place = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text
