"""The quality rules of Gopher (Rae et al. 2021, appendix A1.1).

The one idea: a rule is a statistic, a comparison and a threshold; the first that a document breaks is its reason, and
all statistics are its scores. A vocabulary remembers the features of each word, so a text is split once and every
statistic is a sum over its words. Limits: the stop words are English. Where the paper is silent we follow it in
spirit: stop words count in lower case, and each once; `•`, `*` and `-` are bullets.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence

import numpy as np

from recipe_plugins.filters.config import GopherQualityConfig
from recipe_plugins.filters.text import text_of
from recipe_runner import Record, Verdict

STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")
UNICODE_WORD = re.compile(r"\w+(?:[-'’]\w+)*|[^\w\s]+")
BULLETS = ("•", "*", "-")
ELLIPSES = ("...", "…")

RULES = (
    # reason, statistic, whether it must not be below (or not above) the threshold, the threshold's name
    ("too_short", "words", "min", "min_words"),
    ("too_long", "words", "max", "max_words"),
    ("short_words", "mean_word_length", "min", "min_mean_word_length"),
    ("long_words", "mean_word_length", "max", "max_mean_word_length"),
    ("hashes", "hashes", "max", "max_hashes"),
    ("ellipses", "ellipses", "max", "max_ellipses"),
    ("bullets", "bullet_lines", "max", "max_bullet_lines"),
    ("ellipsis_lines", "ellipsis_lines", "max", "max_ellipsis_lines"),
    ("few_letters", "letter_words", "min", "min_letter_words"),
    ("few_stop_words", "stop_words", "min", "min_stop_words"),
)


class GopherQuality:
    """Keeps what breaks none of the rules."""

    def __init__(self, config: GopherQualityConfig) -> None:
        self.config = config
        self._split: Callable[[str], list[str]] = str.split if config.words == "whitespace" else UNICODE_WORD.findall
        self._vocabulary = Vocabulary()

    def judge(self, batch: Sequence[Record]) -> list[Verdict]:
        """The first broken rule is the reason."""
        return [self._judge(text_of(record)) for record in batch]

    def _judge(self, text: str) -> Verdict:
        scores = self.statistics(text)
        for reason, statistic, bound, name in RULES:
            threshold, value = getattr(self.config, name), scores[statistic]
            if value < threshold if bound == "min" else value > threshold:
                return Verdict(False, reason, scores=scores)
        return Verdict(True, scores=scores)

    def statistics(self, text: str) -> dict[str, float]:
        """What the rules compare: counts, and shares in [0, 1] of words or of lines."""
        words = self._split(text)
        features = self._vocabulary.features(words)
        spoken = features[features["speaks"]]
        lines = text.splitlines()
        return {
            "words": len(spoken),
            "mean_word_length": _share(spoken["length"].sum(), len(spoken)),
            "hashes": _share(text.count("#"), len(words)),
            "ellipses": _share(sum(text.count(mark) for mark in ELLIPSES), len(words)),
            "bullet_lines": _share(sum(line.lstrip().startswith(BULLETS) for line in lines), len(lines)),
            "ellipsis_lines": _share(sum(line.rstrip().endswith(ELLIPSES) for line in lines), len(lines)),
            "letter_words": _share(features["letter"].sum(), len(words)),
            "stop_words": int(np.count_nonzero(np.bincount(features["stop"], minlength=1)[1:])),
        }


def _share(part: float, whole: int) -> float:
    return round(float(part) / whole, 6) if whole else 0.0


class Vocabulary(dict[str, int]):
    """Words seen so far, with their features; forgotten when they become too many, which changes no result."""

    MOST = 500_000
    FEATURES = np.dtype([("length", "<u4"), ("speaks", "?"), ("letter", "?"), ("stop", "u1")])

    def __init__(self) -> None:
        super().__init__()
        self._table = np.zeros(1024, self.FEATURES)

    def __missing__(self, word: str) -> int:
        number = self[word] = len(self)
        if number >= len(self._table):
            self._table = np.concatenate([self._table, np.zeros_like(self._table)])
        stop = STOP_WORDS.index(word.lower()) + 1 if word.lower() in STOP_WORDS else 0
        self._table[number] = (len(word), not all(map(_mark, word)), any(map(str.isalpha, word)), stop)
        return number

    def features(self, words: Sequence[str]) -> np.ndarray:
        """One row a word: length, whether it has more than marks, whether it has a letter, which stop word it is."""
        if len(self) > self.MOST:
            self.clear()
        rows = np.fromiter(map(self.__getitem__, words), np.int64, len(words))
        return self._table[rows]


def _mark(character: str) -> bool:
    """Punctuation, a symbol or a control character."""
    return unicodedata.category(character)[0] in "PSC"
