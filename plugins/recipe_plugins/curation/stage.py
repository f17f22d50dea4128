"""`curation`: sources in, corpus out.

The one idea: pieces are carried, each by one process alone, from barrier to barrier; a barrier is a global filter.
Order is decided at the end by a hash of the ids, and every random choice by a hash of ids, so one worker or eight and
one file or forty give the same bytes. Killed anywhere, it goes on with the pieces that are not there yet.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from recipe_plugins.curation import tables
from recipe_plugins.curation.config import CurationConfig, SourceOptions
from recipe_plugins.curation.flow import Flow
from recipe_plugins.curation.folders import is_json, is_whole, link, read_json, whole, write_json
from recipe_plugins.curation.ledger import Account, counted
from recipe_plugins.curation.piece import SPLITS, Pieces, read_sketches
from recipe_plugins.curation.pool import Chain, Pool
from recipe_plugins.curation.steps import named
from recipe_runner import Counts, Interrupted, Piece, RecipeError, StageContext, exact

SHARD = 64_000_000
"""Bytes of text of a shard of the output."""


LITTLE = 10_000_000
"""Bytes that are read faster than processes start."""


class CurationStage:
    """Runs in rank 0, which gives work to processes of its own; there is nothing for other ranks to do."""

    def __init__(self, config: CurationConfig) -> None:
        self.config = config

    def run(self, ctx: StageContext) -> None:
        """Read, judge, split, write, and hold the account against itself."""
        if ctx.rank:
            return
        curation = Curation(self.config, ctx)
        with Pool(curation.pieces, curation.setup, workers(self.config), curation.look) as pool:
            for segment in range(len(curation.pieces.segments)):
                curation.carry(segment, pool)
            curation.write(pool)
        curation.finish()


def workers(config: CurationConfig) -> int:
    """Processes to use; `auto` is one for each processor that this one may run on, and one for little data."""
    if isinstance(config.execution.workers, int):
        return config.execution.workers
    sizes = [config.size(use) for use in config.sources.values()]
    if None not in sizes and sum(size or 0 for size in sizes) < LITTLE:
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Curation:
    """One run of the stage: what it has found so far is in `ctx.work`."""

    def __init__(self, config: CurationConfig, ctx: StageContext) -> None:
        self.config, self.ctx = config, ctx
        plan = [(domain, piece) for domain, use in config.sources.items() for piece in use.build().pieces()]
        self._begin(plan)
        self.setup = partial(Pieces, config, ctx.work, plan, ctx.seed("order"))
        self.pieces = self.setup(look=self.look)
        self._tables: list[dict[str, Any]] = []
        self._flow = Flow()
        self._reached = [self._last_whole(number) for number in range(len(plan))]

    def _begin(self, plan: list[tuple[str, Piece]]) -> None:
        """Clear away what a killed run left half done; and all of it, if the sources are no longer the same."""
        for left in self.ctx.work.rglob("*.tmp"):
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        written, file = [[domain, piece.key] for domain, piece in plan], self.ctx.work / "plan.json"
        if file.is_file() and not is_json(file, written):
            self.ctx.warn("the sources changed since this run was stopped: it starts over")
            for left in (*self.ctx.work.iterdir(), *self.ctx.payload.iterdir()):
                shutil.rmtree(left) if left.is_dir() else left.unlink()
        write_json(file, written)

    def _last_whole(self, number: int) -> int:
        """The last segment that a piece has passed in a run before this one; -1 for none."""
        segments = reversed(range(len(self.pieces.segments)))
        return next((segment for segment in segments if is_whole(self.pieces.folder(segment, number))), -1)

    def look(self) -> None:
        """Raise `Interrupted` when told to stop."""
        if self.ctx.stopping():
            raise Interrupted("interrupted; every finished piece is kept")

    # ── segments ─────────────────────────────────────────────────────────────────────────────────────────────────

    def carry(self, segment: int, pool: Pool) -> None:
        """All pieces through one segment, and what its global filter decides."""
        self._flow = Flow()
        pool.run(self._chains(segment), partial(self._progress, self._title(segment)))
        if segment == 0:
            self._check_sources()
        self._check_left(segment)
        self._decide(segment)
        if segment:  # what the segment before left for this one is not needed again
            for number in self._numbers():
                (self.pieces.folder(segment - 1, number) / "kept.jsonl").unlink(missing_ok=True)

    def _chains(self, segment: int) -> Iterator[Chain]:
        if segment:
            for number in self._numbers():
                yield self._piece(segment, number)
            return
        for domain, use in self.config.sources.items():
            assert isinstance(use.options, SourceOptions)
            numbers = [number for number, (owner, _) in enumerate(self.pieces.plan) if owner == domain]
            if use.options.limit is None:
                yield from (self._piece(0, number) for number in numbers)
            else:
                yield self._limited(numbers, use.options.limit)

    def _piece(self, segment: int, number: int) -> Chain:
        if self._reached[number] < segment:
            self._flow.add(*(yield "carry", (segment, number)))

    def _limited(self, numbers: list[int], limit: int) -> Chain:
        """One piece after the other, since what a piece may take depends on those before it."""
        for number in numbers:
            if self._reached[number] < 0:
                self._flow.add(*(yield "carry", (0, number, limit)))
            taken = read_json(self.pieces.folder(0, number) / "taken.json")
            limit -= taken["bytes"]
            if taken["full"]:
                return

    def _numbers(self, domain: str | None = None) -> list[int]:
        """The pieces that were read, of all domains or of one; a limit leaves some unread."""
        return [
            number
            for number, (owner, _) in enumerate(self.pieces.plan)
            if domain in (None, owner) and self.pieces.folder(0, number).is_dir()
        ]

    def _title(self, segment: int) -> str:
        now = self.pieces.segments[segment]
        names = [now.first.name if now.first else "read", *(step.name for step in now.steps)]
        return ", ".join(names)

    def _progress(self, title: str, done: int, total: int) -> None:
        self.ctx.progress(done, total, "pieces", f"{title}{self._flow.said(done, total)}")

    def _decide(self, segment: int) -> None:
        step = self.pieces.segments[segment].sketch
        target = self.ctx.work / f"{segment:02d}.state"
        if step is None:
            return
        if not is_whole(target):
            self.ctx.progress(0, None, "", f"{step.name}: decides over all documents")
            with whole(target) as folder, named(step.name):
                state = step.filter.decide(self._sketches(segment), folder)
                write_json(folder / "state.json", state.relative_to(folder).as_posix())
        if hasattr(step.filter, "tables"):
            found = step.filter.tables(self.pieces.state(segment))
            self._tables += [{**entry, "title": f"{step.name}: {entry['title']}"} for entry in found]
            self.ctx.note(tables=self._tables)  # before anything is written

    def _sketches(self, segment: int) -> Iterator[bytes]:
        for number in self._numbers():
            self.look()
            yield from read_sketches(self.pieces.folder(segment, number))

    # ── what was read ────────────────────────────────────────────────────────────────────────────────────────────

    def _check_sources(self) -> None:
        for domain in self.config.sources:
            account = self._account(domain, range(1))
            self._check_rows(domain, account)
            self._check_ids(domain)

    def _check_rows(self, domain: str, account: Account) -> None:
        bad = sum(account.read.bad.values())
        first = account.read.samples[0] if bad else {}
        if bad > exact(self.config.max_bad) * account.read.rows:
            raise RecipeError(
                f"{domain}: {bad:,} of {account.read.rows:,} rows cannot be read, more than max_bad "
                f"({self.config.max_bad:.2%}); the first: {first['where']}: {first['reason']}",
                next="repair the source, raise max_bad, or name its format and fields, as in\n"
                "format: {use: text, fields: {text: COLUMN}}",
            )
        if not account.read.documents.documents:
            raise RecipeError(f"{domain}: the source gave no document", next="check its path and its `limit`")
        if bad:
            said = f"{bad:,} of {account.read.rows:,} rows cannot be read"
            self.ctx.warn(f"{domain}: {said}; the first: {first['where']}: {first['reason']}")

    def _check_left(self, segment: int) -> None:
        """A domain of which nothing is left stops the stage here, not after all that would have followed."""
        for domain in self.config.sources:
            passages = list(self._account(domain, range(segment, segment + 1)).steps.values())
            if passages and not passages[-1].kept.documents:
                steps = self._account(domain, range(segment + 1)).steps
                worst = max(steps, key=lambda name: sum(steps[name].removed.values(), Counts()).bytes)
                reasons = [f"{reason} ({c.documents:,} documents)" for reason, c in steps[worst].removed.items()]
                raise RecipeError(
                    f"{domain}: the steps keep no document; most went in {worst!r}: {', '.join(reasons)}",
                    next=f"loosen {worst!r}, or apply it to other domains only: only: {{domain: [...]}}",
                )

    def _check_ids(self, domain: str) -> None:
        """Two documents of a domain may not share an id: every later choice is keyed by it."""
        numbers = self._numbers(domain)
        per_piece = [np.load(self.pieces.folder(0, number) / "ids.npy") for number in numbers]
        ids = np.concatenate(per_piece)
        order = np.argsort(ids, kind="stable")
        for at in np.flatnonzero(ids[order[1:]] == ids[order[:-1]]).tolist():
            first, second = (_place(per_piece, numbers, int(order[at + n])) for n in (0, 1))
            name = self.pieces.id_of(*first)
            if name == self.pieces.id_of(*second):  # else two ids with one hash
                places = (f"document {at + 1:,} of {self.pieces.plan[piece][1].key}" for piece, at in (first, second))
                raise RecipeError(
                    f"{domain}: two rows have the id {name!r} ({' and '.join(places)})",
                    next="give each row an id of its own, or name rows by their place: format: {fields: {id: null}}",
                )

    # ── what is written ──────────────────────────────────────────────────────────────────────────────────────────

    def write(self, pool: Pool) -> None:
        """The corpus: each split and domain in shards of equal ranges of the order, and the index of them.

        Beside it goes what was removed.
        """
        self._flow = Flow()
        shards = {(domain, split): self._shards(domain, split) for domain in self.config.sources for split in SPLITS}
        chains = [self._shard(*key, number, count) for key, count in shards.items() for number in range(count)]
        chains.append(self._removed())
        pool.run(chains, partial(self._progress, "write"))
        index = {
            domain: {split: self._publish(domain, split, shards[domain, split]) for split in SPLITS}
            for domain in self.config.sources
        }
        write_json(self.ctx.payload / "corpus.json", {"domains": index})

    def _shards(self, domain: str, split: str) -> int:
        """In how many files a split is written; none if it holds no document."""
        last = len(self.pieces.segments) - 1
        files = [self.pieces.folder(last, number) / f"{split}.jsonl" for number in self._numbers(domain)]
        return -(-sum(file.stat().st_size for file in files) // SHARD)

    def _shard(self, domain: str, split: str, shard: int, shards: int) -> Chain:
        target = self._gathered(domain, split, shard)
        if not is_whole(target):
            yield "write", (target, split, self._numbers(domain), shard, shards)

    def _removed(self) -> Chain:
        """What each step removed from each domain, in one unit: it is a sample, or copied line by line."""
        shutil.rmtree(self.ctx.folder / "removed", ignore_errors=True)
        files: dict[Path, list[Path]] = {}
        for segment, now in enumerate(self.pieces.segments):
            for step in [*([now.first] if now.first else []), *now.steps]:
                for domain in sorted(step.domains):
                    parts = [self.pieces.folder(segment, n) / f"{step.folder}.jsonl" for n in self._numbers(domain)]
                    target = self.ctx.folder / "removed" / step.folder / f"{domain}.jsonl"
                    files[target] = [part for part in parts if part.is_file()]
        yield "merge", ({target: parts for target, parts in files.items() if parts},)

    def _gathered(self, domain: str, split: str, shard: int) -> Path:
        return self.ctx.work / "shards" / split / domain / f"{shard:05d}"

    def _publish(self, domain: str, split: str, shards: int) -> dict[str, Any]:
        """Put a split's shards into the payload; what the index says of them."""
        entries = []
        for shard in range(shards):
            gathered = self._gathered(domain, split, shard)
            file = f"{split}/{domain}/{shard:05d}.jsonl"
            link(gathered / "lines.jsonl", self.ctx.payload / file)
            entries.append({"file": file, **read_json(gathered / "counts.json")})
        return {**{key: sum(entry[key] for entry in entries) for key in ("documents", "bytes")}, "shards": entries}

    # ── the account ──────────────────────────────────────────────────────────────────────────────────────────────

    def finish(self) -> None:
        """Hold the account against itself, and write it, the removed documents and the facts."""
        accounts = {domain: self._account(domain, range(len(self.pieces.segments))) for domain in self.config.sources}
        index = read_json(self.ctx.payload / "corpus.json")["domains"]
        for domain, account in accounts.items():
            for split, entry in index[domain].items():
                account.write(split, Counts(entry["documents"], entry["bytes"]))
            account.check(domain)
            if self.config.heldout and not account.written["heldout"].documents:
                self.ctx.warn(f"{domain}: no group fell into the held-out {self.config.heldout:.1%}; raise `heldout`")
        write_json(
            self.ctx.folder / "ledger.json",
            {"schema": 1, "domains": {domain: account.to_json() for domain, account in accounts.items()}},
        )
        self.ctx.note(
            domains={domain: {split: counted(c) for split, c in a.written.items()} for domain, a in accounts.items()},
            funnel={domain: account.funnel() for domain, account in accounts.items()},
            tables=[*self._tables, *tables.removed(accounts), tables.funnel(accounts)],
        )

    def _account(self, domain: str, segments: range) -> Account:
        total = Account()
        for segment in segments:
            for number in self._numbers(domain):
                total.add(Account.from_json(read_json(self.pieces.folder(segment, number) / "account.json")))
        return total


def _place(pieces: list[np.ndarray], numbers: list[int], at: int) -> tuple[int, int]:
    """Piece and position in it of the n-th document."""
    bounds = np.cumsum([len(ids) for ids in pieces])
    index = int(np.searchsorted(bounds, at, side="right"))
    return numbers[index], at - int(bounds[index] - len(pieces[index]))
