"""The account of a curation: for each domain what was read, what each step took in, kept and removed, what was written.

The one idea: every process counts what it sees where it sees it, parts are summed, and `check` holds the sums against
each other: rows = bad + documents; a step's in = kept + removed; kept = in of the next; the last = written. Bytes are
UTF-8 bytes of text; a step that changes text books the difference as `changed`, copies that it makes as `repeated`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from recipe_runner import BadRow, Counts, RecipeError

NONE = Counts()
SAMPLES = 20
"""Bad rows of a domain whose place is kept."""


@dataclass(slots=True)
class Rows:
    """What a source gave: rows, of them unreadable by reason, documents; `samples` are places and reasons."""

    rows: int = 0
    documents: Counts = NONE
    bad: dict[str, int] = field(default_factory=dict)
    samples: list[dict[str, str]] = field(default_factory=list)

    def unreadable(self, row: BadRow) -> None:
        """One row that could not be read."""
        self.rows += 1
        self.bad[row.reason] = self.bad.get(row.reason, 0) + 1
        if len(self.samples) < SAMPLES:
            said = f"{row.reason}; {row.detail}" if row.detail else row.reason
            self.samples.append({"where": row.where, "reason": said})

    def add(self, other: Rows) -> None:
        """Sum the parts; of the samples the first are kept."""
        self.rows += other.rows
        self.documents += other.documents
        for reason, count in other.bad.items():
            self.bad[reason] = self.bad.get(reason, 0) + count
        self.samples = (self.samples + other.samples)[:SAMPLES]


@dataclass(slots=True)
class Passage:
    """What happened to one domain in one step; `changed` is bytes that the step added to (or took from) texts,
    `repeated` the copies that it made of documents."""

    entered: Counts = NONE
    kept: Counts = NONE
    removed: dict[str, Counts] = field(default_factory=dict)
    changed: int = 0
    repeated: Counts = NONE
    seconds: float = 0.0

    def remove(self, reason: str, counts: Counts) -> None:
        """Documents that were removed for a reason."""
        self.removed[reason] = self.removed.get(reason, NONE) + counts

    def add(self, other: Passage) -> None:
        """Sum the parts."""
        self.entered += other.entered
        self.kept += other.kept
        self.changed += other.changed
        self.repeated += other.repeated
        self.seconds += other.seconds
        for reason, counts in other.removed.items():
            self.remove(reason, counts)


@dataclass(slots=True)
class Account:
    """One domain from its source to its files."""

    read: Rows = field(default_factory=Rows)
    steps: dict[str, Passage] = field(default_factory=dict)
    written: dict[str, Counts] = field(default_factory=dict)

    def step(self, name: str) -> Passage:
        """The domain's passage through a step."""
        return self.steps.setdefault(name, Passage())

    def write(self, split: str, counts: Counts) -> None:
        """Documents that were written."""
        self.written[split] = self.written.get(split, NONE) + counts

    def add(self, other: Account) -> None:
        """Sum the parts."""
        self.read.add(other.read)
        for name, passage in other.steps.items():
            self.step(name).add(passage)
        for split, counts in other.written.items():
            self.write(split, counts)

    def check(self, domain: str) -> None:
        """Raise `RecipeError` unless everything that went in came out somewhere."""
        bad = sum(self.read.bad.values())
        _equal(f"{domain}: rows read", self.read.rows, "documents and bad rows", self.read.documents.documents + bad)
        running, last = self.read.documents, "read"
        for name, passage in self.steps.items():
            _equal(f"{domain}: {last}, documents and bytes", running, f"into {name}", passage.entered)
            out = sum(passage.removed.values(), passage.kept)
            _equal(f"{domain}: {name}, into and repeated", passage.entered + passage.repeated, "kept and removed",
                   Counts(out.documents, out.bytes - passage.changed))  # fmt: skip
            running, last = passage.kept, f"kept by {name}"
        _equal(f"{domain}: {last}", running, "written", sum(self.written.values(), NONE))

    def funnel(self) -> list[dict[str, Any]]:
        """Documents and bytes after reading and after each step."""
        stops = [("read", self.read.documents), *((name, passage.kept) for name, passage in self.steps.items())]
        return [{"step": name, **counted(counts)} for name, counts in stops]

    def to_json(self) -> dict[str, Any]:
        """As it stands in ledger.json."""
        return {
            "read": {
                "rows": self.read.rows,
                **counted(self.read.documents),
                "bad": dict(sorted(self.read.bad.items())),
                "bad_samples": self.read.samples,
            },
            "steps": {name: _passage(passage) for name, passage in self.steps.items()},
            "written": {split: counted(counts) for split, counts in sorted(self.written.items())},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Account:
        """What `to_json` gave."""
        read = data["read"]
        return cls(
            Rows(read["rows"], _counts(read), dict(read["bad"]), list(read["bad_samples"])),
            {
                name: Passage(
                    _counts(p["in"]),
                    _counts(p["kept"]),
                    {reason: _counts(c) for reason, c in p["removed"].items()},
                    p["changed_bytes"],
                    _counts(p["repeated"]),
                    p["seconds"],
                )
                for name, p in data["steps"].items()
            },
            {split: _counts(c) for split, c in data["written"].items()},
        )


def counted(counts: Counts) -> dict[str, int]:
    """`documents` and `bytes`."""
    return {"documents": counts.documents, "bytes": counts.bytes}


def _counts(data: Mapping[str, Any]) -> Counts:
    return Counts(data["documents"], data["bytes"])


def _passage(passage: Passage) -> dict[str, Any]:
    return {
        "in": counted(passage.entered),
        "kept": counted(passage.kept),
        "removed": {reason: counted(counts) for reason, counts in sorted(passage.removed.items())},
        "changed_bytes": passage.changed,
        "repeated": counted(passage.repeated),
        "seconds": round(passage.seconds, 3),
    }


def _equal(left: str, a: object, right: str, b: object) -> None:
    if a != b:
        raise RecipeError(
            f"the ledger does not balance: {left} {a}, {right} {b}",
            next="nothing was written; this is a defect of curation or of a filter: please report it",
        )
