"""The quality rules of Gopher (Rae et al. 2021, appendix A1.1), in three readings.

`paper`: where it is silent we follow it in spirit: stop words count in lower case, and each once; `•`, `*` and `-` are
bullets; words of marks alone do not count for number and length. `datatrove`: stop words as they stand; `*` is no
bullet. `dolma`: the median length; `#` and `…` are one ratio, of words that hold one; each stop word counts as often
as it comes; lines are not stripped, and only `…` ends them. Limits: the stop words are English.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from recipe_plugins.filters.config import GopherQualityConfig
from recipe_plugins.filters.rules.rule import Rule, judged, share
from recipe_plugins.filters.text import text_of
from recipe_plugins.filters.words import ByWords
from recipe_runner import Record, Verdict


@dataclass(frozen=True, slots=True)
class Reading:
    """What the paper leaves open."""

    bullets: tuple[str, ...]
    ends: tuple[str, ...] = ("...", "…")
    words: str = "counts"
    fold: bool = False
    plain: bool = False


READINGS = {
    "paper": Reading(bullets=("•", "*", "-"), words="speaks", fold=True),
    "datatrove": Reading(bullets=("•", "-")),
    "dolma": Reading(bullets=("*", "-"), ends=("…",), plain=True),
}

RULES = (
    Rule("too_short", "words", "min", "min_words"),
    Rule("too_long", "words", "max", "max_words"),
    Rule("short_words", "mean_word_length", "min", "min_mean_word_length"),
    Rule("long_words", "mean_word_length", "max", "max_mean_word_length"),
    Rule("hashes", "hashes", "max", "max_hashes"),
    Rule("ellipses", "ellipses", "max", "max_ellipses"),
    Rule("bullets", "bullet_lines", "max", "max_bullet_lines"),
    Rule("ellipsis_lines", "ellipsis_lines", "max", "max_ellipsis_lines"),
    Rule("few_letters", "letter_words", "min", "min_letter_words"),
    Rule("few_stop_words", "stop_words", "min", "min_stop_words"),
)


class GopherQuality(ByWords):
    """Keeps what breaks none of the rules."""

    def __init__(self, config: GopherQualityConfig) -> None:
        super().__init__(config.words)
        self.config, self._reading = config, READINGS[config.preset]

    def judge_one(self, record: Record) -> Verdict:
        """The first broken rule is the reason."""
        return judged(RULES, self.config, self.statistics(text_of(record)))

    def statistics(self, text: str) -> dict[str, float]:
        """What the rules compare: counts, and shares in [0, 1] of words or of lines."""
        numbers, lines = self.words.numbers(text), self._lines(text)
        of_words = self._as_dolma(numbers) if self._reading.plain else self._as_gopher(text, numbers)
        return {
            **of_words,
            "letter_words": share(self._count("letter", numbers), len(numbers)),
            "bullet_lines": share(sum(line.startswith(self._reading.bullets) for line, _ in lines), len(lines)),
            "ellipsis_lines": share(sum(line.endswith(self._reading.ends) for _, line in lines), len(lines)),
        }

    def _count(self, feature: str, numbers: np.ndarray) -> int:
        return int(np.count_nonzero(self.words.features(feature, numbers)))

    def _as_gopher(self, text: str, numbers: np.ndarray) -> dict[str, float]:
        spoken = numbers[self.words.features(self._reading.words, numbers) > 0]
        stop = self.words.features("fold" if self._reading.fold else "stop", numbers)
        return {
            "words": len(spoken),
            "mean_word_length": share(self.words.lengths(spoken).sum(), len(spoken)),
            "hashes": share(text.count("#"), len(numbers)),
            "ellipses": share(text.count("...") + text.count("…"), len(numbers)),
            "stop_words": int(np.count_nonzero(np.bincount(stop, minlength=1)[1:])),
        }

    def _as_dolma(self, numbers: np.ndarray) -> dict[str, float]:
        lengths = self.words.lengths(numbers)
        return {
            "words": len(numbers),
            "mean_word_length": float(np.median(lengths)) if len(lengths) else 0.0,
            "hashes": share(self._count("symbol", numbers), len(numbers)),
            "ellipses": 0.0,  # they are among the hashes
            "stop_words": self._count("stop", numbers),
        }

    def _lines(self, text: str) -> list[tuple[str, str]]:
        """Each line as its start and as its end are looked at."""
        if self._reading.plain:
            return [(line, line) for line in text.split("\n")]
        return [(line.lstrip(), line.rstrip()) for line in text.splitlines()]
