"""Words of a text as numbers, split once for all filters of a process.

The one idea: a vocabulary numbers words and remembers the features of each, so a text is split once and every
statistic is a sum over its numbers. The filters of one curation are given one memory (`share`), in which splitters of
one definition meet; the latest texts are held with their numbers. Both are bounded and forgetting changes no result.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from typing import Any

import numpy as np

from recipe_plugins.filters.marks import DATATROVE_MARKS
from recipe_plugins.filters.splitting import count_unicode_words, unicode_words

SPLITTERS: dict[str, Callable[[str], list[str]]] = {"whitespace": str.split, "unicode": unicode_words}
COUNTERS: dict[str, Callable[[str], int]] = {
    "whitespace": lambda text: len(text.split()),
    "unicode": count_unicode_words,
}
STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")
STOPS = {word: number for number, word in enumerate(STOP_WORDS, 1)}
FEATURES = {"speaks": (0, 1), "counts": (1, 1), "letter": (2, 1), "symbol": (3, 1), "stop": (4, 15), "fold": (8, 15)}
"""Where each lies in a word's 16 bits: the lowest, and a mask."""


class Words:
    """`definition` is `whitespace` (as white space parts them) or `unicode` (letters, digits and the combining marks
    after them; runs of other marks)."""

    VOCABULARY = 500_000
    """Words remembered at most before all are forgotten."""
    HELD = 8_000_000
    """Characters of texts whose numbers are held."""

    def __init__(self, definition: str) -> None:
        self._split, self._counted = SPLITTERS[definition], COUNTERS[definition]
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
        return self._counted(text) if found is None else len(found)

    def features(self, name: str, numbers: np.ndarray) -> np.ndarray:
        """(words,) u16, one of `FEATURES`: whether it has more than marks (`speaks`; as datatrove sees it `counts`),
        a letter, `#` or `…` (`symbol`); which stop word it is (from 1; 0: none) as it is, or in lower case (`fold`).
        """
        lowest, mask = FEATURES[name]
        return (self._vocabulary.features[numbers] >> lowest) & mask

    def lengths(self, numbers: np.ndarray) -> np.ndarray:
        """(words,) int64: characters of each word."""
        return self._vocabulary.lengths[numbers]


class _Vocabulary(dict[str, int]):
    """Numbers words as they come."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.lengths = np.zeros(1024, np.uint16), np.zeros(1024, np.int64)

    def __missing__(self, word: str) -> int:
        number = self[word] = len(self)
        if number >= len(self.lengths):
            self.features, self.lengths = (np.concatenate([old, old]) for old in (self.features, self.lengths))
        letter = word.isalpha() or any(map(str.isalpha, word))
        # no letter is a mark, to neither of the two
        speaks, counts = letter or not all(map(_mark, word)), letter or not DATATROVE_MARKS.issuperset(word)
        symbol, stop, fold = "#" in word or "…" in word, STOPS.get(word, 0), STOPS.get(word.lower(), 0)
        self.features[number] = speaks | counts << 1 | letter << 2 | symbol << 3 | stop << 4 | fold << 8
        self.lengths[number] = len(word)
        return number


class ByWords:
    """A filter that looks at words."""

    def __init__(self, definition: str) -> None:
        self._definition = definition
        self.words = Words(definition)

    def share(self, memory: dict[str, Any]) -> None:
        """Split with whoever was here first with this definition of a word."""
        self.words = memory.setdefault(f"words: {self._definition}", self.words)


def _mark(character: str) -> bool:
    """Punctuation, a symbol or a control character."""
    return unicodedata.category(character)[0] in "PSC"
