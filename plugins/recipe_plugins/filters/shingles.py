"""Hashes of word n-grams over whole batches of texts: what MinHash, the classifiers and decontamination count with.

The one idea: the hash of an n-gram is a difference of prefix sums of a polynomial over the bytes, so no word becomes an
object. Guarantee: equal n-grams have equal hashes wherever they stand and however many spaces part their words.
Limit: 32 bits, so one pair of different n-grams in 4 billion is taken for equal.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

BASE = np.uint64(0x9E3779B97F4A7C15)
SPACE = 32


def mixed(values: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser (Steele et al. 2014) on u64: every bit depends on every other."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


class Shingles:
    """N-grams of `ngram` words. Fastest with some 100 KB at once, of which the sums stay in the processor's cache."""

    def __init__(self, ngram: int) -> None:
        self._ngram = ngram
        self._powers: np.ndarray = np.empty(0, np.uint64)
        self._inverses: np.ndarray = self._powers

    def of(self, texts: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
        """u32 hashes of the n-grams of all texts (of one word or more, spaces between), and where each text's start;
        a text of fewer words is one n-gram."""
        data, words = _joined(texts)
        ends = np.flatnonzero(data == SPACE)
        starts = np.concatenate([[0], ends[:-1] + 1])
        leading, closing, firsts = self._windows(words)
        return self._hashes(data, starts[leading], ends[closing]), firsts

    def _windows(self, words: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """First and last word of each n-gram, and which n-gram is a text's first; `words` are the texts' numbers."""
        after, counts = np.cumsum(words), np.maximum(words - self._ngram + 1, 1)
        firsts = np.cumsum(counts) - counts
        leads = np.ones(after[-1], bool)
        for back in range(1, self._ngram):  # a text's last words lead none, but for its first word
            leads[(after - back)[words > back]] = False
        leading = np.flatnonzero(leads)
        closing = leading + (self._ngram - 1)
        short = words < self._ngram
        closing[firsts[short]] = after[short] - 1
        return leading, closing, firsts

    def _hashes(self, data: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
        self._grow(len(data))
        sums = np.empty(len(data) + 1, np.uint64)
        sums[0] = 0
        np.multiply(data, self._powers[: len(data)], out=sums[1:])
        np.cumsum(sums[1:], out=sums[1:])
        return (mixed((sums[ends] - sums[starts]) * self._inverses[starts]) >> np.uint64(32)).astype(np.uint32)

    def _grow(self, length: int) -> None:
        if length > len(self._powers):
            inverse = np.uint64(pow(int(BASE), -1, 1 << 64))
            self._powers, self._inverses = (np.cumprod(np.full(length, base, np.uint64)) for base in (BASE, inverse))


def _joined(texts: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """The words of all texts, (bytes,) u8 with one space after each, and how many each text has, (texts,) int64."""
    data = np.frombuffer(b" ".join([*texts, b""]), np.uint8)
    space = data == SPACE
    fresh = np.concatenate([[True], space[:-1]])  # no word is under way
    bounds = np.cumsum([0, *(len(text) + 1 for text in texts)])
    words = np.diff(np.searchsorted(np.flatnonzero(fresh & ~space), bounds))
    return data[~(fresh & space)], words
