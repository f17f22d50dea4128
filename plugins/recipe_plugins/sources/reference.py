"""The language reference that every CPython carries, in sections of 2 to 3 KB.

The one idea: topics repeat each other, so a paragraph stays only where it comes first, and then sections are cut.
Two sections that still share a line of some length (a grammar rule, an example with another introduction) carry the
same group, so the split never parts them. Limit: short lines may stand on both sides.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence

from recipe_plugins.sources.config import PythonReferenceConfig
from recipe_plugins.sources.stdlib import interpreter, root, telling
from recipe_runner import Piece, Row


class PythonReference:
    """The topics of `help()`, without what they repeat."""

    def __init__(self, config: PythonReferenceConfig) -> None:
        self.config = config

    def revision(self) -> tuple[str, bool]:
        """The interpreter's version and a digest of the topics."""
        digest = hashlib.sha256("\0".join(f"{k}\0{v}" for k, v in sorted(_topics().items())).encode())
        return f"{interpreter()}+{digest.hexdigest()[:16]}", True

    def pieces(self) -> Sequence[Piece]:
        """One: what is repeated is known only over all."""
        return [Piece("topics")]

    def read(self, piece: Piece) -> Iterator[Row]:
        """One row a section."""
        found = list(sections(_topics(), self.config.section))
        for (name, text), group in zip(found, clusters([text for _, text in found]), strict=True):
            yield {"id": f"reference/{name}", "text": text, "meta": {"group": f"reference/{found[group][0]}"}}


def _topics() -> dict[str, str]:
    from pydoc_data.topics import topics

    return topics


def sections(topics: Mapping[str, str], size: int) -> Iterator[tuple[str, str]]:
    """Name and text of each section: whole paragraphs, closed at `size` bytes; a short rest joins what precedes it."""
    seen: set[str] = set()
    for topic in sorted(topics):
        for number, parts in enumerate(_grouped(_fresh(topics[topic], seen), size)):
            yield f"{topic}/{number}", "\n\n".join(parts) + "\n"


def _grouped(paragraphs: Iterable[str], size: int) -> list[list[str]]:
    groups: list[list[str]] = [[]]
    length = 0
    for paragraph in paragraphs:
        if length >= size:
            groups.append([])
            length = 0
        groups[-1].append(paragraph)
        length += len(paragraph.encode()) + 2
    if len(groups) > 1 and length < size // 2:
        groups[-2:] = [groups[-2] + groups[-1]]
    return [group for group in groups if group]


def _fresh(text: str, seen: set[str]) -> Iterator[str]:
    """The paragraphs of a topic that no earlier one had, compared without their white space."""
    for paragraph in text.split("\n\n"):
        plain = " ".join(paragraph.split())
        if plain and plain not in seen:
            seen.add(plain)
            yield paragraph.strip("\n")


def clusters(texts: Sequence[str]) -> list[int]:
    """For each text the first of its cluster; texts that share a telling line are in one cluster."""
    home = {number: number for number in range(len(texts))}
    first: dict[str, int] = {}
    for number, text in enumerate(texts):
        for line in telling(text):
            a, b = sorted((root(home, first.setdefault(line, number)), root(home, number)))
            home[b] = a
    return [root(home, number) for number in range(len(texts))]
