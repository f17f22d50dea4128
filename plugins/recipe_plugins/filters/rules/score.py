"""Documents by scores that steps before left (`keep_scores: true`), or that came with them in `meta`.

A score is called `step.score`; or by its own name, or by its step's if that has only one, where just one score of the
document is meant. A document has some measures without a step (`measures.NAMES`: `answer_words`, `diversity`, …), if
no score is called so. Another name that means none, or several, is an error: nothing passes for a slip of the pen.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from recipe_plugins.filters.copies import key_of
from recipe_plugins.filters.rules.config import ScoreConfig
from recipe_plugins.filters.rules.measures import NAMES, measured
from recipe_plugins.filters.rules.where import Condition, parsed
from recipe_runner import RecipeError, Record, Verdict, exact, suggest

ENTRY = np.dtype([("value", "<f8"), ("key", "S16")])


def score(config: ScoreConfig) -> Where | Top:
    """The filter of `where`, or of `top`."""
    if config.where is not None:
        return Where(parsed(config.where))
    return Top(str(config.by), float(config.top or 0))


class Where:
    """Keeps documents whose scores fulfil a condition."""

    def __init__(self, condition: Condition) -> None:
        self._condition = condition

    def judge_one(self, record: Record) -> Verdict:
        """Every score of the condition must be there, whether it decides or not."""
        scores = {name: value_of(record, name) for group in self._condition for name, *_ in group}
        keep = any(all(each.holds(scores[each.name]) for each in group) for group in self._condition)
        return Verdict(keep, "" if keep else "score", scores=scores)


class Top:
    """Keeps the documents with the highest score; of equal ones those with the lower hash of their id."""

    def __init__(self, by: str, share: float) -> None:
        self._by, self._share = by, share

    def sketch(self, batch: Sequence[Record]) -> bytes:
        """24 bytes a document."""
        return np.array([(value_of(record, self._by), key_of(record)) for record in batch], ENTRY).tobytes()

    def decide(self, sketches: Iterable[bytes], work: Path) -> Path:
        """Write the keys of what is kept: the share of the documents, rounded to the nearest, in order."""
        found = np.concatenate([np.empty(0, ENTRY), *(np.frombuffer(sketch, ENTRY) for sketch in sketches)])
        best = np.lexsort((found["key"], -found["value"]))[: round(exact(self._share) * len(found))]
        target = work / "kept.npy"
        np.save(target, np.sort(found["key"][best]))
        return target

    def judge(self, batch: Sequence[Record], state: Path) -> list[Verdict]:
        """All that is not among the best goes."""
        kept = np.load(state, mmap_mode="r")
        verdicts = []
        for record in batch:
            place, key = int(np.searchsorted(kept, key_of(record))), key_of(record)
            keep = place < len(kept) and kept[place] == np.array(key, "S16")
            scores = {self._by: value_of(record, self._by)}
            verdicts.append(Verdict(bool(keep), "" if keep else "not_top", scores=scores))
        return verdicts


def value_of(record: Record, name: str) -> float:
    """The score that a name means; raises `RecipeError` unless it is one."""
    found = _scores(record.meta)
    meant = {name} if name in found else {key for key in found if _means(name, key, found)}
    if not meant and name in NAMES:
        return measured(record, name)
    if len(meant) != 1:
        what = f"{' and '.join(sorted(meant))} are both called" if meant else "no score is called"
        raise RecipeError(f"{record.id}: {what} {name!r}", next=_instead(name, found))
    value = found[meant.pop()]
    if value is None:
        raise RecipeError(f"{record.id}: its score {name!r} is not a finite number", next="remove such documents first")
    return float(value)


def _instead(name: str, found: Iterable[str]) -> str:
    """The nearest name, in full or in short; else all of them, if there are other than those that need no step."""
    near = suggest(name, [*found, *(key.rpartition(".")[2] for key in found), *NAMES])
    if near.startswith("did you mean"):
        return near
    return (
        suggest(name, [*found, *NAMES], noun="scores") if found else "let the step that scores say `keep_scores: true`"
    )


def _scores(meta: Mapping[str, Any]) -> dict[str, Any]:
    """All scores of a document by their full names: what steps left, and numbers that came with it."""
    found = {key: value for key, value in meta.items() if _is_number(value)}
    given = meta.get("scores")
    for step, scores in given.items() if isinstance(given, Mapping) else ():
        each = scores.items() if isinstance(scores, Mapping) else ()
        found |= {f"{step}.{name}": value for name, value in each if value is None or _is_number(value)}
        if _is_number(scores):
            found[f"scores.{step}"] = scores
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _means(name: str, key: str, found: Mapping[str, Any]) -> bool:
    step, dot, own = key.rpartition(".")
    alone = sum(other.startswith(f"{step}.") for other in found) == 1
    return bool(dot) and (name == own or (name == step and alone))
