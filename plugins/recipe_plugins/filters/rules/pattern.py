"""Documents by a regular expression. Limits: a pattern that backtracks without end does so here too."""

from __future__ import annotations

import re

from recipe_plugins.filters.rules.config import RegexConfig
from recipe_plugins.filters.text import text_of
from recipe_runner import Record, Verdict


class Regex:
    """Drops or keeps documents that hold the pattern, or replaces it."""

    def __init__(self, config: RegexConfig) -> None:
        self.config, self._pattern = config, re.compile(config.pattern)

    def judge_one(self, record: Record) -> Verdict:
        """`matches` is how many were replaced, or whether one was found."""
        text = text_of(record)
        if self.config.action == "replace":
            changed, count = self._pattern.subn(self.config.replacement, text)
            return Verdict(True, text=None if changed == text else changed, scores={"matches": count})
        found = self._pattern.search(text) is not None
        keep = found == (self.config.action == "keep")
        return Verdict(keep, "" if keep else "matches" if found else "no_match", scores={"matches": int(found)})
