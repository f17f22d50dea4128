"""The line rules of RefinedWeb (Penedo et al. 2023, appendix G.2) as DCLM uses them: menus, counters, buttons.

Empty lines part paragraphs and stay, never more than one in a row. A document of which more goes than a share of its
words is no text with rubbish around it, but rubbish: it goes whole. Limits: the phrases are English.
"""

from __future__ import annotations

import re

from recipe_plugins.filters.rules.config import RefinedwebLinesConfig
from recipe_plugins.filters.rules.rule import DIGITS, share
from recipe_plugins.filters.text import text_of
from recipe_runner import Record, Verdict

COUNTER = re.compile(
    r"\W*\d[\d.,]*(?:\s*[kmb])?\s+(?:likes?|shares?|comments?|retweets?|reposts?|quotes?|bookmarks?|upvotes?|downvotes?"
    r"|downloads?|views?|followers?)\W*",
    re.IGNORECASE,
)
PHRASE = re.compile(r"^sign-in\b|\bread more(?:\.\.\.|…)$|\bitems in cart\b", re.IGNORECASE)
MANY_BREAKS = re.compile(r"\n{3,}")


class RefinedwebLines:
    """Takes lines and phrases out."""

    def __init__(self, config: RefinedwebLinesConfig) -> None:
        self.config = config

    def judge_one(self, record: Record) -> Verdict:
        """`removed_words` is the share of words that went."""
        text = text_of(record)
        edited = (self._edited(line) for line in text.split("\n"))
        left = MANY_BREAKS.sub("\n\n", "\n".join(line for line in edited if line is not None))
        before, after = len(text.split()), len(left.split())
        removed = share(before - after, before)
        scores = {"removed_words": round(removed, DIGITS)}
        if removed > self.config.max_removed or not after:
            return Verdict(False, "mostly_rubbish" if after else "no_text", scores=scores)
        return Verdict(True, text=None if left == text else left, scores=scores)

    def _edited(self, line: str) -> str | None:
        """The line without its phrases; None for one that goes."""
        words = len(line.split())
        if not words:
            return line
        if words <= self.config.short_line and (found := PHRASE.sub("", line.strip())) != line.strip():
            line, words = found.strip(), len(found.split())
        characters = "".join(line.split())
        if (
            words < self.config.min_words
            or share(sum(map(str.isupper, line)), len(line)) > self.config.max_uppercase
            or share(sum(map(str.isnumeric, characters)), len(characters)) > self.config.max_numeric
            or COUNTER.fullmatch(line.strip())
        ):
            return None
        return line
