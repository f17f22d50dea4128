"""Lines on disk, sorted by key in runs, from which the output's shards are gathered.

The one idea: the output's order is that of a hash of the record's id, so it depends on neither workers nor shards of
the input. Each piece leaves runs of bounded size, sorted; a shard of the output is a range of keys, hence one
contiguous slice of every run, merged. Memory is bounded by a run, and by a shard.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np

RUN = 32_000_000
"""Bytes of lines in a run."""
INDEX = np.dtype([("key", "<u8"), ("offset", "<u8"), ("length", "<u8")])
KEYS = 1 << 64


class Runs:
    """Takes lines in any order, and leaves `<name>.jsonl`, `<name>.index.npy` and `<name>.runs.npy`."""

    def __init__(self, base: Path) -> None:
        self._base = base
        self._held: list[tuple[int, bytes]] = []
        self._bytes = self._offset = 0
        self._index: list[np.ndarray] = []
        self._file = open(base.with_suffix(".jsonl"), "wb")  # noqa: SIM115

    def add(self, key: int, line: bytes) -> None:
        """One line, with its end, and the 64-bit key that orders it."""
        self._held.append((key, line))
        self._bytes += len(line)
        if self._bytes >= RUN:
            self._flush()

    def _flush(self) -> None:
        self._held.sort()
        run = np.empty(len(self._held), INDEX)
        run["key"] = [key for key, _ in self._held]
        run["length"] = [len(line) for _, line in self._held]
        run["offset"] = self._offset + np.cumsum(run["length"]) - run["length"]
        self._file.writelines(line for _, line in self._held)
        self._offset += self._bytes
        self._index.append(run)
        self._held, self._bytes = [], 0

    def close(self) -> None:
        """Write what is held, and the index."""
        self._flush()
        self._file.close()
        bounds = np.cumsum([0, *(len(run) for run in self._index)])
        np.save(self._base.with_suffix(".index.npy"), np.concatenate(self._index))
        np.save(self._base.with_suffix(".runs.npy"), bounds)


def gather(bases: Iterable[Path], shard: int, shards: int) -> list[bytes]:
    """The lines of shard number `shard` of `shards` equal ranges of keys, in the order of key, then of line."""
    found = [entry for base in bases for entry in _slices(base, shard, shards)]
    found.sort()
    return [line for _, line in found]


def _slices(base: Path, shard: int, shards: int) -> Iterator[tuple[int, bytes]]:
    index, bounds = np.load(base.with_suffix(".index.npy"), mmap_mode="r"), np.load(base.with_suffix(".runs.npy"))
    with open(base.with_suffix(".jsonl"), "rb") as file:
        for first, last in pairwise(bounds):
            run = index[first:last]
            start, end = (_position(run["key"], shard + n, shards) for n in (0, 1))
            if start < end:
                file.seek(int(run["offset"][start]))
                for key, length in zip(run["key"][start:end].tolist(), run["length"][start:end].tolist(), strict=True):
                    yield key, file.read(length)


def _position(keys: np.ndarray, shard: int, shards: int) -> int:
    """Where the range of keys of a shard begins in sorted keys."""
    low = shard * KEYS // shards
    return len(keys) if low >= KEYS else int(np.searchsorted(keys, np.uint64(low)))
