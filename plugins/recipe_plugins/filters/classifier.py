"""`quality-classifier` and `toxicity-classifier`: documents judged by a model, trained here or loaded.

The one idea: examples of what is wanted and what is not, from files or from domains of the stage, train a linear model
(`linear`) before any document is judged; a fifth of the examples, chosen by hash, is held out and says how good it is.
Guarantee: equal examples and documents give equal verdicts, in any order. Limits: only the first `head` characters of
a document are seen, and stay on disk until the filter has decided; a class has at most `examples` of them, and a
`top` share is measured on at most `SAMPLE` documents, those with the lowest hashes (its standard error is then below
0.4 points).
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from recipe_plugins.filters import linear
from recipe_plugins.filters.learned_config import ClassifierConfig, Examples, Keep
from recipe_plugins.filters.models import Scorer, loaded
from recipe_plugins.filters.text import text_of
from recipe_plugins.sources.files import chunks, lines
from recipe_runner import RecipeError, Record, Verdict, exact

SAMPLE = 20_000
"""Judged documents that thresholds are measured on."""
HELD = 5
"""One example in so many is held out."""
SHOWN = 5
"""Documents shown on each side of the threshold."""
LINE = 64_000_000
Entry = tuple[int, str, str]
"""Hash, id and text."""


@dataclass(slots=True)
class Smallest:
    """The entries with the smallest hashes."""

    most: int
    held: list[Entry] = field(default_factory=list)

    def add(self, entry: Entry) -> None:
        """Take one; what is too much is forgotten now and then."""
        self.held.append(entry)
        if len(self.held) >= 2 * self.most + 100:
            self.held = heapq.nsmallest(self.most, self.held)

    def entries(self) -> list[Entry]:
        """They, in order."""
        return heapq.nsmallest(self.most, self.held)


class QualityClassifier:
    """Keeps what a model takes for one of the positives."""

    score, reason = "quality", "low_quality"

    def __init__(self, config: ClassifierConfig) -> None:
        self.config = config
        self._domains: Sequence[str] = ()
        self._judged: frozenset[str] = frozenset()
        self._cache: tuple[Path, Scorer, dict[str, Any]] | None = None

    def among(self, domains: Sequence[str], judged: frozenset[str]) -> frozenset[str]:
        """Told the stage's domains in the order of their priorities; returns those it must see."""
        self._domains, self._judged = domains, judged
        return judged.union(*self.config.taught_by().values())

    # ── before it decides ────────────────────────────────────────────────────────────────────────────────────────

    def sketch(self, batch: Sequence[Record]) -> bytes:
        """Domain, hash, id and the beginning of each document."""
        rows = [[r.priority, fingerprint(r.id), r.id, self._head(text_of(r))] for r in batch]
        return json.dumps(rows).encode()

    def _head(self, text: str) -> str:
        return text[: self.config.head]

    def decide(self, sketches: Iterable[bytes], work: Path) -> Path:
        """Train or load the model, choose the threshold, and measure both."""
        sample, classes = self._gathered(sketches)
        report: dict[str, Any] = {}
        scorer = self._external
        if scorer is None:
            kept, held = _parted(classes)
            model = linear.train([text for text, _ in kept], [label for _, label in kept])
            np.save(work / "model.npy", model)
            scorer = _scorer(model)
            report["held"] = [[float(s), label] for s, (_, label) in zip(_all(scorer, held), held, strict=True)]
        entries = sample.entries()
        values = _all(scorer, [(text, True) for *_, text in entries])
        report["threshold"] = self._threshold(values)
        report["scores"] = [round(float(value), 6) for value in np.sort(values)]
        report["around"] = self._around(entries, values, report["threshold"])
        (work / "decided.json").write_text(json.dumps(report, ensure_ascii=False), encoding="utf-8")
        return work / "decided.json"

    def _gathered(self, sketches: Iterable[bytes]) -> tuple[Smallest, dict[bool, list[Entry]]]:
        """A sample of the judged documents, and the examples of both classes."""
        sample = Smallest(SAMPLE)
        sides = {True: self.config.positives, False: self.config.negatives}
        classes = {label: Smallest(self.config.examples) for label in sides}
        for sketch in sketches:
            for domain, key, name, text in json.loads(sketch):
                if not self._domains or self._domains[domain] in self._judged:
                    sample.add((key, name, text))
                for label, side in sides.items():
                    if self._domains and self._domains[domain] in side.domains:
                        classes[label].add((key, f"{domain}/{name}", text))
        for label, side in sides.items():
            for entry in _from_files(side):
                classes[label].add((*entry[:2], self._head(entry[2])))
        return sample, {label: found.entries() for label, found in classes.items()}

    def _threshold(self, values: np.ndarray) -> float | None:
        """The score at which the verdict turns; `None` where all is kept or the rule is in steps."""
        keep = self.config.keep
        if keep == "all" or keep.int_score is not None:
            return None
        if keep.top is None:
            return keep.above if keep.above is not None else keep.below
        if not len(values) or not keep.top:
            return float("inf")
        return float(np.sort(values)[::-1][ceil(exact(keep.top) * len(values)) - 1])

    def _around(self, entries: Sequence[Entry], values: np.ndarray, threshold: float | None) -> list[list[Any]]:
        if threshold is None:
            threshold = float(np.median(values)) if len(values) else 0.0
        order = np.argsort(values, kind="stable")
        at = int(np.searchsorted(values[order], threshold))
        near = order[max(0, at - SHOWN) : at + SHOWN].tolist()
        return [[entries[n][1], round(float(values[n]), 4), " ".join(entries[n][2].split())[:160]] for n in near]

    @cached_property
    def _external(self) -> Scorer | None:
        return loaded(self.config.model, self.config.label) if self.config.model else None

    # ── once it has decided ──────────────────────────────────────────────────────────────────────────────────────

    def judge(self, batch: Sequence[Record], state: Path) -> list[Verdict]:
        """Each document's score, and whether it is kept."""
        scorer, report = self._state(state)
        values = scorer([self._head(text_of(record)) for record in batch])
        return [self._verdict(round(float(value), 6), report["threshold"]) for value in values]

    def _state(self, state: Path) -> tuple[Scorer, dict[str, Any]]:
        if self._cache is None or self._cache[0] != state:
            report = json.loads(state.read_text(encoding="utf-8"))
            scorer = self._external or _scorer(np.load(state.with_name("model.npy")))
            self._cache = state, scorer, report
        return self._cache[1], self._cache[2]

    def _verdict(self, value: float, threshold: float | None) -> Verdict:
        keep = kept(self.config.keep, value, threshold)
        return Verdict(keep, "" if keep else self.reason, scores={self.score: value})

    def tables(self, state: Path) -> list[dict[str, Any]]:
        """The threshold's curve on held-out examples, and documents around the threshold."""
        report = json.loads(state.read_text(encoding="utf-8"))
        around = {"title": "around the threshold", "columns": ["id", self.score, "begins"], "rows": report["around"]}
        return [*([curve(report)] if "held" in report else []), around]


class ToxicityClassifier(QualityClassifier):
    """The positives are what is not wanted: `keep: {below: 0.5}`."""

    score, reason = "toxicity", "toxic"


def kept(keep: Keep | str, value: float, threshold: float | None) -> bool:
    """Whether a score is good enough."""
    if isinstance(keep, str):
        return True
    if keep.int_score is not None:  # as FineWeb-Edu rounds it
        return round(min(max(value, 0.0), 5.0)) >= keep.int_score
    assert threshold is not None
    return value < threshold if keep.below is not None else value >= round(threshold, 6)


def curve(report: dict[str, Any]) -> dict[str, Any]:
    """Precision and recall of the positives among held-out examples, and the share of documents, at or above."""
    held = np.array([score for score, _ in report["held"]])
    labels = np.array([label for _, label in report["held"]], bool)
    documents = np.array(report["scores"])
    rows = []
    for at in sorted({*(n / 10 for n in range(1, 10)), *([report["threshold"]] if report["threshold"] else [])}):
        over = held >= at
        hits = int((over & labels).sum())
        precision = f"{hits / over.sum():.3f}" if over.any() else "none"
        share = f"{(documents >= at).mean():.1%}" if len(documents) else "none"
        rows.append([f"{at:.4g}", precision, f"{hits / labels.sum():.3f}", share])
    title = f"{int(labels.sum())} positives and {int((~labels).sum())} negatives held out"
    return {"title": title, "columns": ["at or above", "precision", "recall", "of the documents"], "rows": rows}


def _parted(classes: dict[bool, list[Entry]]) -> tuple[list[tuple[str, bool]], list[tuple[str, bool]]]:
    """Examples to train on, and the fifth of each class with the smallest hashes of their text, held out."""
    kept, held = [], []
    for label, entries in classes.items():
        found = sorted({text: fingerprint(text) for *_, text in entries}.items(), key=lambda pair: (pair[1], pair[0]))
        if len(found) < HELD:
            side = "positives" if label else "negatives"
            raise RecipeError(f"{len(found)} {side} to train a classifier with", next=f"give {HELD} or more, of {side}")
        cut = len(found) // HELD
        held += [(text, label) for text, _ in found[:cut]]
        kept += [(text, label) for text, _ in found[cut:]]
    return kept, held


def _scorer(model: np.ndarray) -> Scorer:
    return lambda texts: linear.scores(model, texts)


def _all(scorer: Scorer, examples: Sequence[tuple[str, bool]], batch: int = 512) -> np.ndarray:
    texts = [text for text, _ in examples]
    parts = [np.empty(0), *(scorer(texts[at : at + batch]) for at in range(0, len(texts), batch))]
    return np.concatenate(parts)


def _from_files(side: Examples) -> Iterator[Entry]:
    """Examples in files: JSON Lines with `text`, or one example a line."""
    for path in side.files:
        file = Path(path)
        rows = ".json" in "".join(file.suffixes[-2:])
        for number, (line, _) in enumerate(lines(chunks(file), LINE), 1):
            if line is None or line.strip():
                yield fingerprint(f"{file.name}:{number}"), f"{file.name}:{number}", _example(line, rows, file, number)


def _example(line: bytes | None, rows: bool, file: Path, number: int) -> str:
    try:
        text = json.loads(line or b"")["text"] if rows else (line or b"").decode("utf-8")
    except (ValueError, KeyError, TypeError):
        text = None
    if line is None or not isinstance(text, str):
        wanted = "an object with `text`" if rows else "a line of UTF-8"
        raise RecipeError(f"{file}:{number}: not {wanted}", next="repair the examples")
    return text


def fingerprint(text: str) -> int:
    """64 bits of a text."""
    return xxhash.xxh3_64_intdigest(text.encode("utf-8", "surrogatepass"))
