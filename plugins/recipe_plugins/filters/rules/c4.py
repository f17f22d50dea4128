"""The rules of C4 (Raffel et al. 2020, section 2.2), and of mC4 for lines.

Lines are looked at one by one, stripped; what is left of a page is its kept lines with single line breaks. Limits:
sentences are parted at white space after `.`, `!` or `?`; the phrases are English.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from recipe_plugins.filters.rules.config import C4Config, C4ParagraphsConfig
from recipe_plugins.filters.text import text_of
from recipe_runner import Record, Verdict

CITATION = re.compile(r"\[\d*\]|\[edit\]|\[citation needed\]")
SENTENCE_END = re.compile(r"[.!?](?<![.!?]{2})[.!?]*[\"'”’)\]]*\s+")
"""Starts with the marks, so that the search jumps from one to the next; behind them it sees that a run starts here."""
POLICY = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")
DROPPED = ("long_word", "no_end_mark", "few_words", "javascript", "policy")
PAGE = ("lorem_ipsum", "curly_bracket")


class C4:
    """Takes lines out, and removes pages that are left with too few sentences, or hold what no text should."""

    def __init__(self, config: C4Config) -> None:
        self.config = config
        self._ends = tuple(config.end_marks)
        wanted = {
            "lorem_ipsum": ("lorem ipsum",) if config.lorem_ipsum else (),
            "javascript": ("javascript",) if config.drop_javascript else (),
            "curly_bracket": ("{",) if config.curly_bracket else (),
            "policy": POLICY if config.drop_policy else (),
        }
        self._phrases = [(phrase, name) for name, phrases in wanted.items() for phrase in phrases]

    def judge_one(self, record: Record) -> Verdict:
        """`scores` are the lines and sentences kept, and the lines taken out by each rule."""
        text = text_of(record)
        if self.config.whole_page and (found := self._page(text)):
            return Verdict(False, found)
        kept, dropped, sentences = [], Counter(dict.fromkeys(DROPPED, 0)), 0
        # Most pages hold no phrase, and then no line needs to be searched for any.
        low = self._cited(text).lower()
        phrases = [(phrase, name) for phrase, name in self._phrases if phrase in low]
        for raw in text.splitlines():
            line = self._cited(raw.strip())
            found = self._line(raw, line, phrases)
            if found in PAGE:
                return Verdict(False, found)
            if found:
                dropped[found] += 1
                continue
            kept.append(line)
            sentences += count_sentences(line)
        scores = {"lines": len(kept), "sentences": sentences, **{f"{name}_lines": n for name, n in dropped.items()}}
        if sentences < self.config.min_sentences:
            return Verdict(False, "few_sentences", scores=scores)
        left = "\n".join(kept).strip()
        return Verdict(True, text=None if left == text else left, scores=scores)

    def _cited(self, line: str) -> str:
        return CITATION.sub("", line) if self.config.drop_citations and "[" in line else line

    def _line(self, raw: str, line: str, phrases: Sequence[tuple[str, str]]) -> str:
        """Why a line is taken out, or its page removed; "" for a line that stays."""
        config = self.config
        if len(raw) > config.max_word and any(len(word) > config.max_word for word in raw.split()):
            return "long_word"
        if config.need_end_mark and (not line.endswith(self._ends) or line.endswith("...")):
            return "no_end_mark"
        if len((raw if config.count_citations else line).split(None, config.min_words)) < config.min_words:
            return "few_words"
        low = line.lower() if phrases else ""
        return next((name for phrase, name in phrases if phrase in low), "")

    def _page(self, text: str) -> str:
        if self.config.lorem_ipsum and "lorem ipsum" in text.lower():
            return "lorem_ipsum"
        return "curly_bracket" if self.config.curly_bracket and "{" in text else ""


def count_sentences(line: str) -> int:
    """Sentences of a line; what follows the last end of one is one too."""
    return sum(1 for part in SENTENCE_END.split(line) if part)


class C4Paragraphs:
    """Keeps a page with so many long lines."""

    def __init__(self, config: C4ParagraphsConfig) -> None:
        self.config = config

    def judge_one(self, record: Record) -> Verdict:
        """`long_lines` is how many are long enough."""
        long = sum(len(line) >= self.config.min_characters for line in text_of(record).split("\n"))
        keep = long >= self.config.lines
        return Verdict(keep, "" if keep else "few_long_lines", scores={"long_lines": long})
