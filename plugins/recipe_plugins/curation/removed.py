"""Removed documents, kept with the reason and the scores: all, or of each step, domain and reason a fixed sample.

The sample is the documents with the smallest hash of their id, so it is the same for any number of workers.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType

from recipe_plugins.curation.documents import Document, as_line, body, fingerprint, plain_number
from recipe_plugins.curation.steps import Step
from recipe_runner import Verdict

SAMPLE = 100
"""Documents of one step, domain and reason in the sample."""


class Removed:
    """Writes `<step>.jsonl` into a piece's folder for each step that removed something."""

    def __init__(self, folder: Path, keep_all: bool) -> None:
        self._folder, self._all = folder, keep_all
        self._sample: dict[tuple[str, str], list[tuple[int, bytes]]] = {}

    def __enter__(self) -> Removed:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: BaseException | TracebackType | None) -> None:
        if kind is None:
            for (step, _reason), lines in self._sample.items():
                self._append(step, (line for _, line in _smallest(lines)))

    def add(self, step: Step, found: Document, verdict: Verdict) -> None:
        """One document that a step removed."""
        scores = {name: plain_number(score) for name, score in verdict.scores.items()}
        entry = {**body(found.record), "reason": verdict.reason, "scores": scores}
        if verdict.spans:
            entry["spans"] = list(verdict.spans)
        if self._all:
            self._append(step.folder, [as_line(entry)])
            return
        held = self._sample.setdefault((step.folder, verdict.reason), [])
        held.append((fingerprint(found.record.id), as_line(entry)))
        if len(held) >= 2 * SAMPLE:
            held[:] = _smallest(held)

    def _append(self, step: str, lines: Iterable[bytes]) -> None:
        with open(self._folder / f"{step}.jsonl", "ab") as file:
            file.writelines(lines)


def _smallest(lines: Iterable[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
    return heapq.nsmallest(SAMPLE, lines)


def merge(parts: Iterable[Path], target: Path, keep_all: bool) -> None:
    """One file of the pieces' files: all lines in the order of the pieces, or the sample of the samples."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(target, "wb") as file:
        for part in parts if keep_all else ():
            file.writelines(_lines(part))
        if not keep_all:
            file.writelines(_sampled(parts))


def _sampled(parts: Iterable[Path]) -> Iterator[bytes]:
    by_reason: dict[str, list[tuple[int, bytes]]] = {}
    for part in parts:
        for line in _lines(part):
            entry = json.loads(line)
            held = by_reason.setdefault(entry["reason"], [])
            held.append((fingerprint(entry["id"]), line))
            if len(held) >= 2 * SAMPLE:
                held[:] = _smallest(held)
    for reason in sorted(by_reason):
        yield from (line for _, line in _smallest(by_reason[reason]))


def _lines(part: Path) -> Iterator[bytes]:
    with open(part, "rb") as file:
        yield from file
