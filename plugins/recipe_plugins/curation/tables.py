"""The account of a curation as people read it: what is left after each step, and what went, by reason."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from recipe_plugins.curation.ledger import Account, counted
from recipe_runner import Counts

REASONS = 12
"""Reasons of a domain and step that have rows of their own."""


def funnel(accounts: Mapping[str, Account]) -> dict[str, Any]:
    """What is left of each domain after each step, and what was written."""
    rows = []
    for domain, account in accounts.items():
        stops = [*account.funnel(), *({"step": split, **counted(c)} for split, c in account.written.items())]
        start = stops[0]["bytes"]
        rows += [[domain, s["step"], s["documents"], s["bytes"], _share(s["bytes"], start)] for s in stops]
    return {"title": "funnel", "columns": ["domain", "after", "documents", "bytes", "of what was read"], "rows": rows}


def removed(accounts: Mapping[str, Account]) -> list[dict[str, Any]]:
    """What could not be read, and what each step removed, the most first; no table, if that is nothing."""
    rows = [row for domain, account in accounts.items() for row in _removed(domain, account)]
    columns = ["domain", "in", "reason", "documents", "bytes", "of what came"]
    return [{"title": "removed", "columns": columns, "rows": rows}] if rows else []


def _removed(domain: str, account: Account) -> Iterator[list[Any]]:
    for reason, count in _most({reason: Counts(count) for reason, count in account.read.bad.items()}):
        yield [domain, "read", reason, count.documents, None, _share(count.documents, account.read.rows)]
    for name, passage in account.steps.items():
        for reason, count in _most(passage.removed):
            share = _share(count.documents, passage.entered.documents)
            yield [domain, name, reason, count.documents, count.bytes, share]


def _most(reasons: Mapping[str, Counts]) -> Iterator[tuple[str, Counts]]:
    """The most frequent reasons, and the others together."""
    order = sorted(reasons, key=lambda reason: (-reasons[reason].documents, reason))
    yield from ((reason, reasons[reason]) for reason in order[:REASONS])
    if others := order[REASONS:]:
        yield f"{len(others)} other reasons", sum((reasons[reason] for reason in others), Counts())


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "–"
