"""Documents that are nearly equal, found by MinHash with banding (Broder 1997; bands as in FineWeb).

The one idea: a text is the set of its word n-grams; the smallest of each of many hashes of that set is its signature;
the share of equal positions of two signatures estimates the Jaccard index of the sets. Documents that agree in all
rows of a band are candidates, and copies if as many hashes agree as `threshold` asks. Copies of copies are one
cluster. With `verify` the n-gram sets of candidates are compared (as their 32-bit hashes), not their signatures.
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
from recipe_plugins.filters.text import plain, text_of
from recipe_runner import Record, Verdict

PART = 1_000_000
"""Characters of text hashed at once; bounds the memory."""
BLOCK = 1 << 13
"""Signatures looked at at once."""
BASE = np.uint64(0x9E3779B97F4A7C15)
SPACE = 32


def _inverse(odd: int) -> int:
    return pow(odd, -1, 1 << 64)


def mixed(values: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser (Steele et al. 2014) on u64: every bit depends on every other."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


class Shingles:
    """Hashes of word n-grams, from prefix sums of a polynomial over the bytes: no word becomes an object."""

    def __init__(self, ngram: int) -> None:
        self._ngram = ngram
        self._powers: np.ndarray = np.empty(0, np.uint64)
        self._inverses: np.ndarray = self._powers

    def of(self, texts: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
        """u32 hashes of the n-grams of all texts (one or more words, single spaces), and where each text's start."""
        data = np.frombuffer(b" ".join(texts) + b" ", np.uint8)
        ends = np.flatnonzero(data == SPACE)
        starts = np.concatenate([[0], ends[:-1] + 1])
        words = np.array([text.count(b" ") + 1 for text in texts])
        after = np.cumsum(words)
        counts = np.maximum(words - self._ngram + 1, 1)
        firsts = np.cumsum(counts) - counts
        owner = np.repeat(np.arange(len(texts)), counts)
        leading = np.arange(len(owner)) - firsts[owner] + (after - words)[owner]
        closing = np.minimum(leading + self._ngram, after[owner]) - 1
        return self._hashes(data, starts[leading], ends[closing]), firsts

    def _hashes(self, data: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
        self._grow(len(data) + 1)
        sums = np.zeros(len(data) + 1, np.uint64)
        np.cumsum(data * self._powers[: len(data)], out=sums[1:])
        return (mixed((sums[ends] - sums[starts]) * self._inverses[starts]) >> np.uint64(32)).astype(np.uint32)

    def _grow(self, length: int) -> None:
        if length > len(self._powers):
            inverse = np.uint64(_inverse(int(BASE)))
            self._powers, self._inverses = (np.cumprod(np.full(length, base, np.uint64)) for base in (BASE, inverse))


class MinHashDedup:
    """Signatures of `bands` × `rows` u32 hashes."""

    def __init__(self, config: MinHashDedupConfig) -> None:
        self.config = config
        self._width = config.bands * config.rows
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
            if self.config.verify:
                for owner, part in zip(owners, np.split(hashes, starts[1:]), strict=True):
                    sets[owner].append(part)
        return packed(batch, signatures) + (packed_sets(sets) if self.config.verify else b"")

    def signatures(self, texts: Sequence[bytes]) -> np.ndarray:
        """(texts, bands * rows) u32; `texts` are words with one space between them."""
        return self._minima(*self._shingles.of(texts))

    def _minima(self, hashes: np.ndarray, starts: np.ndarray) -> np.ndarray:
        found = np.empty((len(starts), self._width), "<u4")
        for column, (factor, term) in enumerate(zip(self._factors, self._terms, strict=True)):
            found[:, column] = np.minimum.reduceat(hashes * factor + term, starts)
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
            for rows in seen.rows(sets.taken(sketches) if self.config.verify else sketches, self._row):
                signatures.write(rows.tobytes())
            signatures.flush()
            pairs = np.empty(0, np.int64)
            for band in range(self.config.bands if len(seen.keys) else 0):
                pairs = np.union1d(pairs, self._candidates(signatures, band, seen.keys))
            left, right = np.divmod(pairs, max(1, len(seen.keys)))
            alike = sets.alike if self.config.verify else partial(self._alike, signatures)
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
    """Texts to be hashed at once, about `PART` characters, with the positions of their records."""
    owners: list[int] = []
    texts: list[bytes] = []
    size = 0
    for number, record in enumerate(batch):
        for part in _parts(record):
            owners.append(number)
            texts.append(part)
            size += len(part)
            if size >= PART:
                yield owners, texts
                owners, texts, size = [], [], 0
    if texts:
        yield owners, texts


def _parts(record: Record) -> Iterator[bytes]:
    """The words of a record in parts of about `PART` bytes; a text without words stands for itself."""
    text = text_of(record)
    # Without words there is nothing to compare but the text as it is; its spaces must not part it into words.
    data = (plain(text) or "".join(text.split()) or "nothing").encode("utf-8", "surrogatepass")
    while len(data) > 2 * PART and (cut := data.find(b" ", PART)) >= 0:
        yield data[:cut]
        data = data[cut + 1 :]
    yield data
