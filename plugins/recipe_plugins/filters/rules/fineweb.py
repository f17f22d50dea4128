"""The quality rules of FineWeb (Penedo et al. 2024, section 3.6).

`paper` strips lines, so that a space after a full stop does not hide it; `datatrove` does not.
"""

from __future__ import annotations

from recipe_plugins.filters.marks import TERMINALS
from recipe_plugins.filters.rules.config import FinewebQualityConfig
from recipe_plugins.filters.rules.repetition import again
from recipe_plugins.filters.rules.rule import Rule, judged, share
from recipe_plugins.filters.text import text_of
from recipe_plugins.filters.words import ByWords
from recipe_runner import Record, Verdict

RULES = (
    Rule("few_line_ends", "line_ends", "min", "min_line_ends"),
    Rule("short_lines", "short_lines", "max", "max_short_lines"),
    Rule("duplicate_characters", "duplicate_characters", "max", "max_duplicate_characters"),
    Rule("list", "breaks", "max", "max_breaks"),
)


TERMINAL = frozenset(TERMINALS)


class FinewebQuality(ByWords):
    """Keeps what breaks none of the rules."""

    def __init__(self, config: FinewebQualityConfig) -> None:
        super().__init__(config.words)
        self.config = config

    def judge_one(self, record: Record) -> Verdict:
        """The first broken rule is the reason."""
        statistics = self.statistics(text_of(record))
        if not statistics["lines"]:
            return Verdict(False, "empty", scores=statistics)
        return judged(RULES, self.config, statistics)

    def statistics(self, text: str) -> dict[str, float]:
        """Lines that are not blank; shares of those, of characters, and breaks a word."""
        lines = [line for line in text.split("\n") if line.strip()]
        shown = [line.strip() for line in lines] if self.config.strip else lines
        breaks, words = text.count("\n"), self.words.count(text)
        return {
            "lines": len(lines),
            "line_ends": share(sum(line[-1] in TERMINAL for line in shown), len(shown)),
            "short_lines": share(sum(len(line) <= self.config.short_line for line in shown), len(shown)),
            "duplicate_characters": share(again(shown, each=False)[1], len(text) - breaks),
            "breaks": share(breaks, words),
        }
