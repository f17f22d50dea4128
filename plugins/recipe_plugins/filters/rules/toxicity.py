"""Documents by a list of words. Limits: words are runs of letters and digits, so a language that parts none (Thai,
Japanese) is not served; a word says little about what is said, and dialects suffer (Dodge et al. 2021)."""

from __future__ import annotations

from recipe_plugins.filters.rules.config import ToxicityConfig
from recipe_plugins.filters.rules.lists import entries
from recipe_plugins.filters.rules.rule import DIGITS, share
from recipe_plugins.filters.text import plain, text_of
from recipe_runner import RecipeError, Record, Verdict


class Toxicity:
    """Counts whole words and phrases of the list, in any case; of phrases that lie in one another each counts."""

    def __init__(self, config: ToxicityConfig) -> None:
        self.config = config
        self._listed = frozenset(plain(entry) for entry in entries(config.words))
        if "" in self._listed:
            raise RecipeError(f"{config.words}: an entry without a letter or digit", next="take it out of the list")
        self._lengths = sorted({entry.count(" ") + 1 for entry in self._listed})

    def judge_one(self, record: Record) -> Verdict:
        """`toxic_words` and `toxic_share` are the matches, and those a word."""
        words = plain(text_of(record)).split()
        count = sum(self._count(words, length) for length in self._lengths)
        part = share(count, len(words))
        scores = {"toxic_words": count, "toxic_share": round(part, DIGITS)}
        if self.config.max_count is not None and count > self.config.max_count:
            return Verdict(False, "toxic_words", scores=scores)
        if self.config.max_share is not None and part > self.config.max_share:
            return Verdict(False, "toxic_share", scores=scores)
        return Verdict(True, scores=scores)

    def _count(self, words: list[str], length: int) -> int:
        if length == 1:
            return sum(word in self._listed for word in words)
        return sum(" ".join(words[at : at + length]) in self._listed for at in range(len(words) - length + 1))
