"""What one process does with one piece, or with one shard of the output: a pure function of it and the config.

Everything it finds goes into a folder that appears when it is whole; nothing is passed between processes but the
numbers of pieces. So a run that is killed redoes at most the pieces in flight.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from recipe_plugins.curation.config import CurationConfig, SourceOptions
from recipe_plugins.curation.documents import Document, batches, fingerprint, read_row, side, stored
from recipe_plugins.curation.folders import read_json, whole, write_json
from recipe_plugins.curation.ledger import Account, Passage, Rows, counted
from recipe_plugins.curation.removed import Removed, merge
from recipe_plugins.curation.runs import Runs, gather
from recipe_plugins.curation.steps import Segment, named, passed, segments, steps_of
from recipe_runner import BadRow, Counts, Format, Piece, RecipeError, Source, Verdict

SPLITS = ("train", "heldout")


class Pieces:
    """Built once in each process. `plan` is each piece's domain, in the stable order of the whole curation.

    `look` is called before each batch of documents, and may raise.
    """

    def __init__(
        self,
        config: CurationConfig,
        work: Path,
        plan: Sequence[tuple[str, Piece]],
        seed: int,
        look: Callable[[], None] = lambda: None,
    ) -> None:
        self.config, self.work, self.plan, self.seed, self.look = config, work, plan, seed, look
        self._sources: dict[str, tuple[Source, Format]] = {}

    @cached_property
    def segments(self) -> list[Segment]:
        """What pieces pass through."""
        return segments(steps_of(self.config, self.seed))

    def folder(self, segment: int, number: int) -> Path:
        """Where a piece's result of a segment lies."""
        return self.work / f"{segment:02d}" / f"{number:06d}"

    # ── a piece through a segment ────────────────────────────────────────────────────────────────────────────────

    def carry(self, segment: int, number: int, budget: int | None = None) -> tuple[Counts, Counts, dict[str, Passage]]:
        """Carry a piece through a segment; the first reads it from its source, at most `budget` bytes of text.

        Returns what came, what is left of it, and what each step did.
        """
        account, came, left = Account(), Counts(), Counts()
        with whole(self.folder(segment, number)) as folder, ExitStack() as stack:
            if segment:
                documents = self._stored(segment - 1, number)
            else:
                documents = stack.enter_context(_Reading(folder, account.read, budget)).of(self.rows(number))
            removed = stack.enter_context(Removed(folder, self.config.keep_removed == "all"))
            output = self._output(folder, segment)
            stack.enter_context(output)
            sketches = stack.enter_context(open(folder / "sketches", "wb"))
            for batch in batches(documents):
                self.look()
                kept = self._judged(segment, number, batch, account, removed)
                _write_sketch(sketches, self._sketch(segment, number, kept))
                output.add(kept)
                came, left = (
                    sum((found.counts for found in each), flow) for each, flow in ((batch, came), (kept, left))
                )
            write_json(folder / "account.json", account.to_json())
        return came, left, account.steps

    def rows(self, number: int) -> Iterator[Document | BadRow]:
        """The documents and bad rows of a piece, as its source and format give them."""
        domain, piece = self.plan[number]
        priority = list(self.config.sources).index(domain)
        source, form = self._source(domain)
        for position, row in enumerate(source.read(piece), 1):
            yield read_row(row, form, f"{piece.key}:{position}", priority)

    def _source(self, domain: str) -> tuple[Source, Format]:
        if domain not in self._sources:
            use = self.config.sources[domain]
            assert isinstance(use.options, SourceOptions)
            self._sources[domain] = use.build(), use.options.format.build()
        return self._sources[domain]

    def _stored(self, segment: int, number: int) -> Iterator[Document]:
        priority = list(self.config.sources).index(self.plan[number][0])
        with open(self.folder(segment, number) / "kept.jsonl", "rb") as lines:
            for line in lines:
                yield stored(line, priority)

    def _judged(
        self, segment: int, number: int, batch: list[Document], account: Account, removed: Removed
    ) -> list[Document]:
        """What is left of a batch after the segment's steps."""
        now = self.segments[segment]
        for step in [*([now.first] if now.first else []), *now.steps]:
            if self.plan[number][0] not in step.domains:
                continue
            records = [found.record for found in batch]
            start = time.perf_counter()
            state = (self.state(segment - 1),) if step is now.first else ()
            with named(step.name):
                verdicts: Sequence[Verdict] = step.filter.judge(records, *state)
            passage = account.step(step.name)
            batch = passed(step, batch, verdicts, passage, partial(removed.add, step))
            passage.seconds += time.perf_counter() - start
        return batch

    def state(self, segment: int) -> Path:
        """What the global filter at the end of a segment decided."""
        found: str = read_json(self.work / f"{segment:02d}.state" / "state.json")
        return self.work / f"{segment:02d}.state" / found

    def _sketch(self, segment: int, number: int, kept: Sequence[Document]) -> bytes | None:
        step = self.segments[segment].sketch
        if step is None or self.plan[number][0] not in step.sees or not kept:
            return None
        with named(step.name):
            sketch: bytes = step.filter.sketch([found.record for found in kept])
        return sketch

    def _output(self, folder: Path, segment: int) -> _Stored | _Split:
        last = segment + 1 == len(self.segments)
        return _Split(folder, self.config.heldout, self.seed) if last else _Stored(folder)

    # ── duplicate ids ────────────────────────────────────────────────────────────────────────────────────────────

    def id_of(self, number: int, position: int) -> str:
        """The id of the n-th document of a piece, read from its source again."""
        found = (entry for entry in self.rows(number) if isinstance(entry, Document))
        return next(islice(found, position, None)).record.id

    # ── a shard of the output ────────────────────────────────────────────────────────────────────────────────────

    def write(self, target: Path, split: str, numbers: Sequence[int], shard: int, shards: int) -> None:
        """Gather one shard; the folder `target` gets `lines.jsonl` and `counts.json`."""
        last = len(self.segments) - 1
        counts = Counts()
        with whole(target) as folder:
            with open(folder / "lines.jsonl", "wb") as file:
                before = None
                for line in gather([self.folder(last, number) / split for number in numbers], shard, shards):
                    found = stored(line, 0)
                    if found.record.id == before:  # only a copy may be called as another was
                        raise RecipeError(
                            f"{target.parent.name}: two documents are called {before!r}, one of them as a copy",
                            next="name rows by their place: format: {fields: {id: null}}",
                        )
                    counts, before = counts + found.counts, found.record.id
                    file.write(line)
            write_json(folder / "counts.json", counted(counts))

    def merge(self, files: Mapping[Path, Sequence[Path]]) -> None:
        """Gather what steps removed from the pieces into the files that the keys name."""
        for target, parts in files.items():
            merge(parts, target, self.config.keep_removed == "all")


class _Reading:
    """Counts what is read, stops at the budget, and leaves `ids.npy` and `taken.json`."""

    def __init__(self, folder: Path, rows: Rows, budget: int | None) -> None:
        self._folder, self._rows, self._budget = folder, rows, budget
        self._ids: list[int] = []
        self._full = False

    def __enter__(self) -> _Reading:
        return self

    def of(self, rows: Iterable[Document | BadRow]) -> Iterator[Document]:
        """The documents; one that would go over the budget ends the reading and is not counted."""
        for found in rows:
            if isinstance(found, BadRow):
                self._rows.unreadable(found)
                continue
            if self._budget is not None and self._rows.documents.bytes + found.size > self._budget:
                self._full = True
                return
            self._rows.rows += 1
            self._rows.documents += found.counts
            self._ids.append(fingerprint(found.record.id))
            yield found

    def __exit__(self, *_: object) -> None:
        np.save(self._folder / "ids.npy", np.array(self._ids, np.uint64))
        write_json(self._folder / "taken.json", {"bytes": self._rows.documents.bytes, "full": self._full})


class _Stored:
    """Lines for the next segment, in their order."""

    def __init__(self, folder: Path) -> None:
        self._file = open(folder / "kept.jsonl", "wb")  # noqa: SIM115

    def __enter__(self) -> _Stored:
        return self

    def add(self, kept: Iterable[Document]) -> None:
        self._file.writelines(found.line for found in kept)

    def __exit__(self, *_: object) -> None:
        self._file.close()


class _Split:
    """Lines for the output: train and heldout apart, sorted by a hash of the id."""

    def __init__(self, folder: Path, heldout: float, seed: int) -> None:
        self._runs = {split: Runs(folder / split) for split in SPLITS}
        self._heldout, self._seed = heldout, seed

    def __enter__(self) -> _Split:
        return self

    def add(self, kept: Iterable[Document]) -> None:
        for found in kept:
            split = side(found.group, self._heldout)
            self._runs[split].add(fingerprint(found.record.id, self._seed), found.line)

    def __exit__(self, *_: object) -> None:
        for runs in self._runs.values():
            runs.close()


def _write_sketch(file: Any, sketch: bytes | None) -> None:
    if sketch is not None:
        file.write(struct.pack("<Q", len(sketch)))
        file.write(sketch)


def read_sketches(folder: Path) -> Iterator[bytes]:
    """The sketches of a piece's batches, in order."""
    with open(folder / "sketches", "rb") as file:
        while head := file.read(8):
            yield file.read(struct.unpack("<Q", head)[0])
