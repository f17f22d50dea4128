"""Documents that are nearly equal, found by MinHash with banding (Broder 1997; bands as in FineWeb).

The one idea: a text is the set of its word n-grams; the smallest of each of many hashes of that set is its signature;
the share of equal positions of two signatures estimates the Jaccard index of the sets. Documents that agree in all
rows of a band are candidates, and copies if as many hashes agree as `threshold` asks. Copies of copies are one
cluster. Everything is numpy over a whole batch; signatures (4 bytes a hash) live on disk.
Limits: what is compared is lower-case words (`filters.text.plain`); a text shorter than an n-gram is one shingle; of a
text longer than `PART` the n-grams across the cuts are not seen; a small text inside a large one is not found.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from recipe_plugins.filters.config import MinHashDedupConfig
from recipe_plugins.filters.copies import Seen, components, judged, packed
from recipe_plugins.filters.text import plain, text_of
from recipe_runner import Record, Verdict

PART = 1_000_000
"""Characters of text hashed at once; bounds the memory."""
BLOCK = 1 << 16
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
        """The signature of each text."""
        signatures = np.full((len(batch), self._width), np.iinfo(np.uint32).max, "<u4")
        for owners, texts in _grouped(batch):
            np.minimum.at(signatures, owners, self.signatures(texts))
        return packed(batch, signatures)

    def signatures(self, texts: Sequence[bytes]) -> np.ndarray:
        """(texts, bands * rows) u32; `texts` are words with one space between them."""
        hashes, starts = self._shingles.of(texts)
        found = np.empty((len(texts), self._width), "<u4")
        for column, (factor, term) in enumerate(zip(self._factors, self._terms, strict=True)):
            found[:, column] = np.minimum.reduceat(hashes * factor + term, starts)
        return found

    # ── all documents ────────────────────────────────────────────────────────────────────────────────────────────

    def decide(self, sketches: Iterable[bytes], work: Path) -> Path:
        """Candidates of every band that agree as the threshold asks, and what they are connected to."""
        seen = Seen(work)
        with open(work / "signatures", "wb") as file:
            for rows in seen.rows(sketches, self._row):
                file.write(rows.tobytes())
        labels = np.arange(len(seen.keys))
        if len(labels):
            signatures = np.memmap(work / "signatures", "<u4", "r", shape=(len(labels), self._width))
            pairs = [pair for band in range(self.config.bands) for pair in self._pairs(signatures, band, seen.keys)]
            labels = components(len(labels), *(np.concatenate(side) for side in zip(*pairs, strict=True)))
        (work / "signatures").unlink()
        return seen.decide(labels)

    def _pairs(self, signatures: np.ndarray, band: int, keys: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Pairs of a band's buckets: neighbours, and each with the first; the order is that of the keys."""
        hashes = self._band(signatures, band)
        order = np.lexsort((keys, hashes))
        new = np.concatenate([[True], hashes[order[1:]] != hashes[order[:-1]]])
        head = np.maximum.accumulate(np.where(new, np.arange(len(order)), 0))
        member = np.flatnonzero(~new)
        for before in (member - 1, head[member]):
            yield self._alike(signatures, order[before], order[member])

    def _band(self, signatures: np.ndarray, band: int) -> np.ndarray:
        """One u64 for the rows of a band of each document."""
        columns = slice(band * self.config.rows, (band + 1) * self.config.rows)
        hashes = np.empty(len(signatures), np.uint64)
        for start in range(0, len(signatures), BLOCK):
            combined = np.zeros(min(BLOCK, len(signatures) - start), np.uint64)
            for column in signatures[start : start + BLOCK, columns].T:
                combined = mixed(combined * BASE + column)
            hashes[start : start + BLOCK] = combined
        return hashes

    def _alike(self, signatures: np.ndarray, left: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        needed = self.config.threshold * self._width
        parts = [slice(start, start + BLOCK) for start in range(0, len(left), BLOCK)]
        agree = [(signatures[left[part]] == signatures[right[part]]).sum(1) >= needed for part in parts]
        alike = np.concatenate([np.empty(0, bool), *agree])
        return left[alike], right[alike]

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
