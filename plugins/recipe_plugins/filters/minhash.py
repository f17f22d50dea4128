"""Documents that are nearly equal, found by MinHash with banding (Broder 1997; bands as in FineWeb).

The one idea: a text is the set of its word n-grams; the smallest of each of many hashes of that set is its signature;
the share of equal positions of two signatures estimates the Jaccard index of the sets. Documents that agree in all
rows of a band are candidates, and copies if their n-gram sets (as 32-bit hashes) are as alike as `threshold` asks, or
without `verify` if as many hashes of the signatures agree. Copies of copies are one cluster.
Everything is numpy over a whole batch; signatures (4 bytes a hash) and sets (4 bytes a word) live on disk.
Limits: what is compared is lower-case words (`filters.text.plain`); a text shorter than an n-gram is one shingle; of a
text longer than `PART` the n-grams across the cuts are not seen; a small text inside a large one is not found.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import IO

import numpy as np

from recipe_plugins.filters.config import MinHashDedupConfig
from recipe_plugins.filters.copies import Seen, components, judged, packed
from recipe_plugins.filters.sets import Sets, packed_sets
from recipe_plugins.filters.shingles import BASE, Shingles, mixed
from recipe_plugins.filters.text import parted, text_of
from recipe_runner import Record, Verdict

PART = 1_000_000
"""Bytes of a part of a longer text; bounds the memory."""
GROUP = 1 << 18
"""Bytes of texts hashed at once."""
BLOCK = 1 << 13
"""Signatures looked at at once."""


class MinHashDedup:
    """Signatures of `bands` × `rows` u32 hashes."""

    def __init__(self, config: MinHashDedupConfig) -> None:
        self.config = config
        self._width = config.bands * config.rows
        self._verify = config.verify and config.threshold > 0
        self._shingles = Shingles(config.ngram)
        numbers = mixed(np.arange(1, 2 * self._width + 1, dtype=np.uint64) * BASE).astype(np.uint32)
        # h(x) = a x + b mod 2^32 with odd a is a permutation of the hashes, and x is well mixed already.
        self._factors, self._terms = numbers[: self._width] | np.uint32(1), numbers[self._width :]

    @property
    def _row(self) -> np.dtype:
        return np.dtype(("<u4", (self._width,)))

    # ── one batch ────────────────────────────────────────────────────────────────────────────────────────────────

    def sketch(self, batch: Sequence[Record]) -> bytes:
        """The signature of each text, and with `verify` its n-grams."""
        signatures = np.full((len(batch), self._width), np.iinfo(np.uint32).max, "<u4")
        sets: list[list[np.ndarray]] = [[] for _ in batch]
        for owners, texts in _grouped(batch):
            hashes, starts = self._shingles.of(texts)
            np.minimum.at(signatures, owners, self._minima(hashes, starts))
            if self._verify:
                for owner, part in zip(owners, np.split(hashes, starts[1:]), strict=True):
                    sets[owner].append(part)
        return packed(batch, signatures) + (packed_sets(sets) if self._verify else b"")

    def signatures(self, texts: Sequence[bytes]) -> np.ndarray:
        """(texts, bands * rows) u32; `texts` are words with spaces between them."""
        return self._minima(*self._shingles.of(texts))

    def _minima(self, hashes: np.ndarray, starts: np.ndarray) -> np.ndarray:
        found = np.empty((len(starts), self._width), "<u4")
        permuted = np.empty_like(hashes)
        for column, (factor, term) in enumerate(zip(self._factors, self._terms, strict=True)):
            np.multiply(hashes, factor, out=permuted)
            np.minimum.reduceat(np.add(permuted, term, out=permuted), starts, out=found[:, column])
        return found

    # ── all documents ────────────────────────────────────────────────────────────────────────────────────────────

    def decide(self, sketches: Iterable[bytes], work: Path) -> Path:
        """Documents that are linked, directly or by others, are one cluster."""
        seen = Seen(work)
        links = self.links(sketches, seen, work)
        return seen.decide(components(len(seen.keys), *links))

    def links(self, sketches: Iterable[bytes], seen: Seen, work: Path) -> tuple[np.ndarray, np.ndarray]:
        """Positions, (n,) int64 both, of candidates that are as alike as the threshold asks; `seen` takes them all."""
        with Sets(work / "sets") as sets, open(work / "signatures", "w+b") as signatures:
            for rows in seen.rows(sets.taken(sketches) if self._verify else sketches, self._row):
                signatures.write(rows.tobytes())
            signatures.flush()
            pairs = np.empty(0, np.int64)
            for band in range(self.config.bands if len(seen.keys) else 0):
                pairs = np.union1d(pairs, self._candidates(signatures, band, seen.keys))
            left, right = np.divmod(pairs, max(1, len(seen.keys)))
            alike = sets.alike if self._verify else partial(self._alike, signatures)
            chosen = alike(left, right, self.config.threshold)
        for name in ("signatures", "sets"):
            (work / name).unlink()
        return left[chosen], right[chosen]

    def _candidates(self, signatures: IO[bytes], band: int, keys: np.ndarray) -> np.ndarray:
        """Pairs of a band's buckets, neighbours and each with the first in the order of the keys, as one number each:
        left times the number of documents, and right."""
        hashes = self._band(signatures, band, len(keys))
        order = np.lexsort((keys, hashes))
        new = np.concatenate([[True], hashes[order[1:]] != hashes[order[:-1]]])
        head = np.maximum.accumulate(np.where(new, np.arange(len(order)), 0))
        member = np.flatnonzero(~new)
        return np.concatenate([order[before] * len(order) + order[member] for before in (member - 1, head[member])])

    def _band(self, signatures: IO[bytes], band: int, count: int) -> np.ndarray:
        """One u64 for the rows of a band of each document."""
        columns = slice(band * self.config.rows, (band + 1) * self.config.rows)
        hashes = np.zeros(count, np.uint64)
        signatures.seek(0)
        for start in range(0, count, BLOCK):
            block = np.frombuffer(signatures.read(BLOCK * 4 * self._width), "<u4").reshape(-1, self._width)
            combined = hashes[start : start + BLOCK]
            for column in block[:, columns].T:
                combined[:] = mixed(combined * BASE + column)
        return hashes

    def _alike(self, signatures: IO[bytes], left: np.ndarray, right: np.ndarray, threshold: float) -> np.ndarray:
        """(pairs,) bool: whether the signatures agree in that share of their hashes."""
        pairs = zip(left.tolist(), right.tolist(), strict=True)
        agree = [(self._signature(signatures, a) == self._signature(signatures, b)).sum() for a, b in pairs]
        return np.array(agree, int) >= threshold * self._width

    def _signature(self, signatures: IO[bytes], number: int) -> np.ndarray:
        size = 4 * self._width
        return np.frombuffer(os.pread(signatures.fileno(), size, number * size), "<u4")

    def judge(self, batch: Sequence[Record], state: Path) -> list[Verdict]:
        """All but one of a cluster go."""
        return judged(batch, np.load(state, mmap_mode="r"), "near_duplicate")


def _grouped(batch: Sequence[Record]) -> Iterator[tuple[list[int], list[bytes]]]:
    """Texts to be hashed at once, about `GROUP` bytes, with the positions of their records."""
    owners: list[int] = []
    texts: list[bytes] = []
    size = 0
    for number, record in enumerate(batch):
        for part in _parts(record):
            owners.append(number)
            texts.append(part)
            size += len(part)
            if size >= GROUP:
                yield owners, texts
                owners, texts, size = [], [], 0
    if texts:
        yield owners, texts


def _parts(record: Record) -> Iterator[bytes]:
    """The words of a record in parts of about `PART` bytes; a text without words stands for itself."""
    text = text_of(record)
    # Without words there is nothing to compare but the text as it is; its spaces must not part it into words.
    data = parted(text)
    if data.isspace() or not data:
        data = ("".join(text.split()) or "nothing").encode("utf-8", "surrogatepass")
    if len(data) > 2 * PART:
        data = b" ".join(data.split())
    while len(data) > 2 * PART and (cut := data.find(b" ", PART)) >= 0:
        yield data[:cut]
        data = data[cut + 1 :]
    yield data
