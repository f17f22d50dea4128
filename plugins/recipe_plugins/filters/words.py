"""Words of a text as numbers, split once for all filters of a process.

The one idea: a vocabulary numbers words and remembers the features of each, so a text is split once and every
statistic is a sum over its numbers. The filters of one curation are given one memory (`share`), in which splitters of
one definition meet; the latest texts are held with their numbers. Both are bounded and forgetting changes no result.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from typing import Any

import numpy as np

from recipe_plugins.filters.marks import DATATROVE_MARKS

UNICODE_WORD = re.compile(r"\w+(?:[-'’]\w+)*|[^\w\s]+")
ASCII_WORD = re.compile(r"\w+(?:[-']\w+)*|[^\w\s\x1c-\x1f]+", re.ASCII)
"""The same for a text in ASCII, a third faster; Unicode counts the four separators as white space."""


def unicode_words(text: str) -> list[str]:
    """Letters and digits, joined by single hyphens and apostrophes; runs of other marks."""
    return (ASCII_WORD if text.isascii() else UNICODE_WORD).findall(text)


SPLITTERS: dict[str, Callable[[str], list[str]]] = {"whitespace": str.split, "unicode": unicode_words}
STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")
FLAGS = ("speaks", "counts", "letter", "symbol")
FEATURES = np.dtype([("length", "<u4"), *((flag, "?") for flag in FLAGS), ("stop", "u1"), ("fold", "u1")])


class Words:
    """`definition` is `whitespace` (as white space parts them) or `unicode` (letters and digits; runs of marks)."""

    VOCABULARY = 500_000
    """Words remembered at most before all are forgotten."""
    HELD = 8_000_000
    """Characters of texts whose numbers are held."""

    def __init__(self, definition: str) -> None:
        self._split = SPLITTERS[definition]
        self._vocabulary = _Vocabulary()
        self._held: dict[str, np.ndarray] = {}
        self._size = 0

    def numbers(self, text: str) -> np.ndarray:
        """(words,) int64; equal words have equal numbers within a text, and until the next text is asked for."""
        found = self._held.get(text)
        if found is not None:
            return found
        if len(self._vocabulary) > self.VOCABULARY:
            self._vocabulary.clear()
            self._held.clear()
        if self._size > self.HELD or not self._held:
            self._held.clear()
            self._size = 0
        words = self._split(text)
        found = np.fromiter(map(self._vocabulary.__getitem__, words), np.int64, len(words))
        self._held[text] = found
        self._size += len(text)
        return found

    def count(self, text: str) -> int:
        """How many words; a text that is not held is not taken in for that."""
        found = self._held.get(text)
        return len(self._split(text) if found is None else found)

    def features(self, numbers: np.ndarray) -> np.ndarray:
        """(words,) of `FEATURES`: length, whether it has more than marks (`speaks`; as datatrove sees it `counts`), a
        letter, `#` or `…`, which stop word it is (from 1; 0: none) as it stands, and in lower case."""
        return self._vocabulary.table[numbers]

    def lengths(self, numbers: np.ndarray) -> np.ndarray:
        """(words,) int64: characters of each word."""
        return self._vocabulary.table["length"][numbers].astype(np.int64)


class _Vocabulary(dict[str, int]):
    """Numbers words as they come."""

    def __init__(self) -> None:
        super().__init__()
        self.table = np.zeros(1024, FEATURES)

    def __missing__(self, word: str) -> int:
        number = self[word] = len(self)
        if number >= len(self.table):
            self.table = np.concatenate([self.table, np.zeros_like(self.table)])
        speaks, counts = not all(map(_mark, word)), not DATATROVE_MARKS.issuperset(word)
        letter, symbol = any(map(str.isalpha, word)), "#" in word or "…" in word
        self.table[number] = (len(word), speaks, counts, letter, symbol, _stop(word), _stop(word.lower()))
        return number


class ByWords:
    """A filter that looks at words."""

    def __init__(self, definition: str) -> None:
        self._definition = definition
        self.words = Words(definition)

    def share(self, memory: dict[str, Any]) -> None:
        """Split with whoever was here first with this definition of a word."""
        self.words = memory.setdefault(f"words: {self._definition}", self.words)


def _stop(word: str) -> int:
    return STOP_WORDS.index(word) + 1 if word in STOP_WORDS else 0


def _mark(character: str) -> bool:
    """Punctuation, a symbol or a control character."""
    return unicodedata.category(character)[0] in "PSC"
