"""The quality rules of FineWeb (Penedo et al. 2024, section 3.6).

`paper` strips lines, so that a space after a full stop does not hide it; `datatrove` does not. A sentence ends where
Unicode says so (Sentence_Terminal of PropList.txt, Unicode 16, and three Khmer signs); closing quotes end none.
"""

from __future__ import annotations

from recipe_plugins.filters.rules.config import FinewebQualityConfig
from recipe_plugins.filters.rules.repetition import again
from recipe_plugins.filters.rules.rule import Rule, judged, share
from recipe_plugins.filters.text import text_of
from recipe_plugins.filters.words import ByWords
from recipe_runner import Record, Verdict

_TERMINALS = (
    "21 2E 3F 589 61D-61F 6D4 700-702 7F9 837 839 83D-83E 964-965 104A-104B 1362 1367-1368 166E 1735-1736 17D4-17D6 "
    "17D9-17DA 1803 1809 1944-1945 1AA8-1AAB 1B4E-1B4F 1B5A-1B5B 1B5E-1B5F 1B7D-1B7F 1C3B-1C3C 1C7E-1C7F 2024 "
    "203C-203D 2047-2049 2CF9-2CFB 2E2E 2E3C 2E53-2E54 3002 A4FF A60E-A60F A6F3 A6F7 A876-A877 A8CE-A8CF A92F "
    "A9C8-A9C9 AA5D-AA5F AAF0-AAF1 ABEB FE12 FE15-FE16 FE52 FE56-FE57 FF01 FF0E FF1F FF61 10A56-10A57 10F55-10F59 "
    "10F86-10F89 11047-11048 110BE-110C1 11141-11143 111C5-111C6 111CD 111DE-111DF 11238-11239 1123B-1123C 112A9 "
    "113D4-113D5 1144B-1144C 115C2-115C3 115C9-115D7 11641-11642 1173C-1173E 11944 11946 11A42-11A43 11A9B-11A9C "
    "11C41-11C42 11EF7-11EF8 11F43-11F44 16A6E-16A6F 16AF5 16B37-16B38 16B44 16D6E-16D6F 16E98 1BC9F 1DA88"
)
RULES = (
    Rule("few_line_ends", "line_ends", "min", "min_line_ends"),
    Rule("short_lines", "short_lines", "max", "max_short_lines"),
    Rule("duplicate_characters", "duplicate_characters", "max", "max_duplicate_characters"),
    Rule("list", "breaks", "max", "max_breaks"),
)


def _terminals() -> tuple[str, ...]:
    ranges = [part.partition("-") for part in _TERMINALS.split()]
    return tuple(chr(code) for low, _, high in ranges for code in range(int(low, 16), int(high or low, 16) + 1))


TERMINALS = _terminals()


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
        breaks, words = text.count("\n"), len(self.words.numbers(text))
        return {
            "lines": len(lines),
            "line_ends": share(sum(line.endswith(TERMINALS) for line in shown), len(shown)),
            "short_lines": share(sum(len(line) <= self.config.short_line for line in shown), len(shown)),
            "duplicate_characters": share(again(shown, each=False)[1], len(text) - breaks),
            "breaks": share(breaks, words),
        }
