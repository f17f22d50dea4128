"""Documents that hold text of an evaluation set, removed with the spans that give them away.

The one idea (GPT-3, Brown et al. 2020, appendix C; Llama 2): a document that shares `ngram` words in a row with an
item of an evaluation set is contaminated. N-grams are looked up by hash, all of a batch at once, and every hit is
compared word by word. What is compared is lower-case words (`filters.text.plain`).
Guarantee: an item of `ngram` words or more that stands in a document is found wherever it stands. Limits: an item
shorter than that is looked for whole if it has at least `shortest` words, else not at all; paraphrases are not found.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from recipe_plugins.filters.learned_config import DecontaminateConfig
from recipe_plugins.filters.shingles import Shingles
from recipe_plugins.filters.text import plain, text_of
from recipe_plugins.sources.files import chunks, lines
from recipe_runner import RecipeError, Record, Verdict

LINE = 64_000_000
SPANS = 5
"""Spans of a document that are kept."""


class Decontaminate:
    """Removes what holds `matches` or more n-grams of an evaluation set."""

    def __init__(self, config: DecontaminateConfig) -> None:
        self.config = config
        self._held = self._read()
        self._shingles = {length: Shingles(length) for length in self._held}
        self._hashes = {
            length: np.unique(self._shingles[length].of([gram.encode("utf-8", "surrogatepass") for gram in grams])[0])
            for length, grams in self._held.items()
        }

    def _read(self) -> dict[int, dict[str, str]]:
        """For each length in words its n-grams, each with the place that it comes from."""
        held: dict[int, dict[str, str]] = {}
        shortest = min(self.config.shortest, self.config.ngram)
        for path in self.config.files:
            before = sum(map(len, held.values()))
            for place, item in items(Path(path), self.config.fields):
                words = plain(item).split()
                length = min(len(words), self.config.ngram)
                if length >= shortest:
                    grams = held.setdefault(length, {})
                    for at in range(len(words) - length + 1):
                        grams.setdefault(" ".join(words[at : at + length]), place)
            if sum(map(len, held.values())) == before:
                raise RecipeError(
                    f"{path}: no item of {shortest} words that no other file has",
                    next="check the file and `fields`, or lower `shortest`",
                )
        return held

    def judge(self, batch: Sequence[Record]) -> list[Verdict]:
        """`contaminated` where a document holds n-grams of a set; the spans say which."""
        return [self._judge(record) for record in batch]

    def _judge(self, record: Record) -> Verdict:
        words = plain(text_of(record)).split()
        hits = list(self._hits(words)) if words else []
        scores = {"matches": len(hits)}
        if len(hits) < self.config.matches:
            return Verdict(True, scores=scores)
        spans = [{"from": at, "to": end, "text": " ".join(words[at:end]), "found_in": place}
                 for at, end, place in _joined(hits)]  # fmt: skip
        return Verdict(False, "contaminated", scores=scores, spans=spans[:SPANS])

    def _hits(self, words: Sequence[str]) -> Iterator[tuple[int, int, str]]:
        """First word, word after the last, and the item's place, of each n-gram that a set holds."""
        text = " ".join(words).encode("utf-8", "surrogatepass")
        for length, hashes in sorted(self._hashes.items()):
            if length > len(words):
                continue
            found, _ = self._shingles[length].of([text])
            for at in np.flatnonzero(np.isin(found, hashes)).tolist():
                place = self._held[length].get(" ".join(words[at : at + length]))
                if place is not None:
                    yield at, at + length, place


def _joined(hits: Sequence[tuple[int, int, str]]) -> list[tuple[int, int, str]]:
    """Overlapping spans of one item as one."""
    joined: list[tuple[int, int, str]] = []
    for at, end, place in sorted(hits):
        if joined and joined[-1][2] == place and at <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]), place)
        else:
            joined.append((at, end, place))
    return joined


def items(file: Path, fields: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Place and text of each item: of JSON Lines the named fields, or all strings; of text each line."""
    rows = ".json" in "".join(file.suffixes[-2:])
    for number, (line, _) in enumerate(lines(chunks(file), LINE), 1):
        place = f"{file.name}:{number}"
        if line is None:
            raise RecipeError(f"{place}: a line longer than {LINE:,} bytes", next="is this an evaluation set?")
        if line.strip():
            for text in _strings(_row(line, place), fields, place) if rows else [line.decode("utf-8", "replace")]:
                yield place, text


def _row(line: bytes, place: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        raise RecipeError(f"{place}: malformed JSON", next="repair the evaluation set") from None


def _strings(row: Any, fields: Sequence[str], place: str) -> Iterator[str]:
    if missing := [name for name in fields if not isinstance(row, dict) or name not in row]:
        there = f"it has {', '.join(map(repr, row))}" if isinstance(row, dict) else "the line is no object"
        raise RecipeError(f"{place}: no field {missing[0]!r}; {there}", next="check `fields` of the filter")
    values = [row[name] for name in fields] if fields else [row]
    while values:
        value = values.pop(0)
        if isinstance(value, str):
            yield value
        elif isinstance(value, (list, dict)):
            values += value.values() if isinstance(value, dict) else value
