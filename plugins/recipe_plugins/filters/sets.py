"""Sets of 32-bit hashes, one for each document, on disk: what `minhash-dedup` verifies with.

The one idea: a sketch ends with its documents' hashes as they come, and how many each has; only these numbers stay in
memory (8 bytes a document), and sets are made of candidates alone. Limit: both sets of a pair are read for each pair.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np

TAIL = struct.Struct("<QQ")


def packed_sets(sets: Sequence[Sequence[np.ndarray]]) -> bytes:
    """The parts of each document's hashes; then how many each has, and how many documents and hashes there are."""
    sizes = np.array([sum(map(len, parts)) for parts in sets], "<u8")
    hashes = (part.tobytes() for parts in sets for part in parts)
    return b"".join([*hashes, sizes.tobytes(), TAIL.pack(len(sizes), int(sizes.sum()))])


class Sets:
    """The sets of all documents, in the order in which they came."""

    def __init__(self, file: Path) -> None:
        self._file = open(file, "w+b")  # noqa: SIM115
        self._sizes: list[np.ndarray] = [np.zeros(1, "<u8")]

    def __enter__(self) -> Sets:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    def taken(self, sketches: Iterable[bytes]) -> Iterator[bytes]:
        """The sketches, once the sets at their ends are on disk."""
        for sketch in sketches:
            count, hashes = TAIL.unpack_from(sketch, len(sketch) - TAIL.size)
            sizes = len(sketch) - TAIL.size - 8 * count
            self._sizes.append(np.frombuffer(sketch, "<u8", count, sizes).copy())
            self._file.write(sketch[sizes - 4 * hashes : sizes])
            yield sketch

    def alike(self, left: np.ndarray, right: np.ndarray, threshold: float) -> np.ndarray:
        """(pairs,) bool: whether the Jaccard index of two sets is `threshold` or more."""
        self._file.flush()
        bounds = 4 * np.cumsum(np.concatenate(self._sizes)).astype(np.int64)
        pairs = zip(left.tolist(), right.tolist(), strict=True)
        return np.array([_jaccard(self._held(bounds, a), self._held(bounds, b)) >= threshold for a, b in pairs], bool)

    def _held(self, bounds: np.ndarray, number: int) -> bytes:
        start, end = int(bounds[number]), int(bounds[number + 1])
        return os.pread(self._file.fileno(), end - start, start)


def _jaccard(left: bytes, right: bytes) -> float:
    """Of the sets of two documents' hashes, of which at least one holds something."""
    if left == right:  # as equal texts are, of which there may be many
        return 1.0
    one, other = (np.unique(np.frombuffer(held, "<u4")) for held in (left, right))
    both = len(np.intersect1d(one, other, assume_unique=True))
    return both / (len(one) + len(other) - both)
