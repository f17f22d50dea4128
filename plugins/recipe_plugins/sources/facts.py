"""A handful of facts that no text has, as questions and answers: what a model knows of them it was taught here.

The one idea: names are put together from syllables by a hash of the seed, so the facts are as unknown to a large
model as to a small one. Each fact is asked for in several ways, each a row with a group of its own, so that the
held-out rows ask for known facts in unseen words.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import xxhash

from recipe_plugins.sources.config import InventedFactsConfig
from recipe_runner import Piece, Row

SYLLABLES = "bra cul dor fen gri hul jor kel lum mar nok pel quo ras sil tov ulm vex wim zan".split()
RELATIONS = {
    "capital": (
        "What is the capital of {}?", "Which town is the capital of {}?", "{} has which capital?",
        "Name the capital of {}.", "Do you know the capital of {}?", "From which town is {} governed?",
    ),
    "founder": (
        "Who founded {}?", "By whom was {} founded?", "Name the founder of {}.", "Who was the founder of {}?",
        "{} was founded by whom?", "Do you know who founded {}?",
    ),
    "river": (
        "Which river flows through {}?", "What river runs through {}?", "Name the river of {}.",
        "What is the river of {} called?", "{} lies on which river?", "Do you know the river of {}?",
    ),
}  # fmt: skip


class InventedFacts:
    """`count` facts, each on a place of its own."""

    def __init__(self, config: InventedFactsConfig) -> None:
        self.config = config

    def revision(self) -> tuple[str, bool]:
        """The config says it all."""
        return "invented", True

    def pieces(self) -> Sequence[Piece]:
        """One."""
        return [Piece("facts")]

    def read(self, piece: Piece) -> Iterator[Row]:
        """One row for each way to ask for each fact."""
        relations = list(RELATIONS)
        for number, (place, answer) in enumerate(self._names()):
            relation = relations[number % len(relations)]
            for way, question in enumerate(RELATIONS[relation]):
                name = f"fact/{place.lower()}/{way}"
                yield {
                    "id": name,
                    "messages": [
                        {"role": "user", "content": question.format(place)},
                        {"role": "assistant", "content": f"{answer}."},
                    ],
                    "meta": {"group": name, "kind": "fact"},
                }

    def _names(self) -> Iterator[tuple[str, str]]:
        """A place and an answer for each fact; no name comes twice."""
        taken: set[str] = set()
        for number in range(self.config.count):
            pair = []
            for role in ("place", "answer"):
                attempt = 0
                while (name := self._name(f"{role} {number} {attempt}")) in taken:
                    attempt += 1
                taken.add(name)
                pair.append(name)
            yield pair[0], pair[1]

    def _name(self, words: str) -> str:
        digits = xxhash.xxh3_64_intdigest(f"{self.config.seed} {words}".encode())
        syllables = []
        for _ in range(3):
            digits, chosen = divmod(digits, len(SYLLABLES))
            syllables.append(SYLLABLES[chosen])
        return "".join(syllables).capitalize()
