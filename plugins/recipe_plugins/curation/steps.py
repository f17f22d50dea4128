"""The steps of a curation, and the segments that the global ones cut them into.

A segment is what one piece can pass through alone: the verdict of the global filter that ended the segment before,
then filters that judge a document by itself, then the sketch for the next global filter, if there is one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from recipe_plugins.curation.config import CurationConfig
from recipe_plugins.curation.documents import Document, document, plain_number
from recipe_plugins.curation.ledger import Passage
from recipe_plugins.curation.mix import Mix
from recipe_runner import Interrupted, RecipeError, Use, Verdict, batched

Removal = Callable[[Document, Verdict], None]


@dataclass(slots=True)
class Step:
    """One step: its place (from 1), its name, the filter, the domains that it judges, and those it must see first."""

    number: int
    name: str
    filter: Any
    domains: frozenset[str]
    sees: frozenset[str]
    keeps_scores: bool = False

    @property
    def sees_all(self) -> bool:
        """Whether it must have seen all documents before it judges any."""
        return hasattr(self.filter, "sketch")

    @property
    def folder(self) -> str:
        """`01_quality`."""
        return f"{self.number:02d}_{self.name}"


@dataclass(slots=True)
class Segment:
    """What a piece passes through between two barriers."""

    first: Step | None = None
    steps: list[Step] = field(default_factory=list)
    sketch: Step | None = None


def steps_of(config: CurationConfig, seed: int) -> list[Step]:
    """The steps, their filters built; the mixture is the last."""
    order = tuple(config.sources)
    memory: dict[str, Any] = {}
    found: list[tuple[str, Any, frozenset[str]]] = []
    for name, use in config.steps.items():
        with named(name):
            found.append((name, _built(use, memory), frozenset(config.domains_of(use))))
    if config.mix:
        found.append(("mix", Mix(config.mix, order, config.heldout, seed), frozenset(order)))
    scored = {name for name, use in config.steps.items() if config.keeps_scores(use)}
    steps = []
    for number, (name, built, domains) in enumerate(found, 1):
        sees = built.among(order, domains) if hasattr(built, "among") else domains
        steps.append(Step(number, name, built, domains, sees, keeps_scores=name in scored))
    return steps


@contextmanager
def named(step: str) -> Iterator[None]:
    """What a filter says is wrong is told with its step."""
    try:
        yield
    except RecipeError as error:
        if not isinstance(error, Interrupted):
            error.what = f"step {step}: {error.what}"
            error.args = (error.what,)
        raise


def _built(use: Use[Any], memory: dict[str, Any]) -> Any:
    """A step's filter; one that has `share` is given what the filters of this process share, to take and to leave."""
    found = use.build()
    if hasattr(found, "share"):
        found.share(memory)
    return batched(found)


def segments(steps: Sequence[Step]) -> list[Segment]:
    """At least one; one more for each global step."""
    found = [Segment()]
    for step in steps:
        if step.sees_all:
            found[-1].sketch = step
            found.append(Segment(first=step))
        else:
            found[-1].steps.append(step)
    return found


def passed(
    step: Step, batch: Sequence[Document], verdicts: Sequence[Verdict], passage: Passage, remove: Removal
) -> list[Document]:
    """The documents that a step keeps, with what it changed in them; all are counted, removed ones handed over."""
    if len(verdicts) != len(batch):
        raise RecipeError(
            f"step {step.name}: {len(verdicts)} verdicts on {len(batch)} documents",
            next="a filter returns one verdict a record, in order",
        )
    kept = []
    for before, verdict in zip(batch, verdicts, strict=True):
        passage.entered += before.counts
        if not verdict.keep:
            passage.remove(verdict.reason or "unnamed", before.counts)
            remove(before, verdict)
            continue
        after = before if verdict.text is None else _changed(step, before, verdict.text)
        if step.keeps_scores and verdict.scores:
            after = _scored(step, after, verdict.scores)
        passage.changed += after.size - before.size
        passage.kept += after.counts
        kept.append(after)
        for number in range(2, verdict.copies + 1):
            passage.repeated += after.counts
            passage.kept += after.counts
            kept.append(_copy(after, number))
    return kept


def _copy(found: Document, number: int) -> Document:
    """The n-th of a document that goes on several times; all are on one side of the split."""
    record = replace(found.record, id=f"{found.record.id}#{number}", meta={**found.record.meta, "group": found.group})
    return document(record)


def _scored(step: Step, found: Document, scores: Mapping[str, float]) -> Document:
    """The document with a step's scores in `meta.scores`; one that is not finite is null there."""
    before = found.record.meta.get("scores", {})
    if not isinstance(before, Mapping):
        raise RecipeError(
            f"step {step.name}: {found.record.id} has a `scores` in its meta that is not a mapping",
            next="leave that column out of the source's format, or `keep_scores` out of the step",
        )
    values = {name: plain_number(score) for name, score in scores.items()}
    return document(replace(found.record, meta={**found.record.meta, "scores": {**before, step.name: values}}))


def _changed(step: Step, before: Document, text: str) -> Document:
    if before.record.text is None:
        raise RecipeError(
            f"step {step.name} changes the text of {before.record.id}, which is a conversation",
            next="apply it to other domains only: only: {domain: [...]}",
        )
    return document(replace(before.record, text=text))
