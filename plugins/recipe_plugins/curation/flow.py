"""What has come through a segment in this run, how fast, and how long the rest takes: what curation's progress says.

Speeds of the segment are by the clock, of all processes; those of a step are of the time that it takes itself, in one.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import timedelta

from recipe_plugins.curation.ledger import Passage
from recipe_runner import Counts


class Flow:
    """Sums what pieces report."""

    def __init__(self) -> None:
        self._start, self._came, self._left = time.monotonic(), Counts(), Counts()
        self._steps: dict[str, Passage] = {}

    def add(self, came: Counts, left: Counts, steps: Mapping[str, Passage]) -> None:
        """A piece is through."""
        self._came += came
        self._left += left
        for name, passage in steps.items():
            self._steps.setdefault(name, Passage()).add(passage)

    def said(self, done: int, total: int) -> str:
        """`: 5,100 documents/s, 12.3 MB/s, 67.1% kept, 0:01:40 left`, and the same of each step if there are several;
        nothing before the first piece. What is left is reckoned from the pieces that are `done` of the `total`."""
        if not self._came.bytes:
            return ""
        seconds = time.monotonic() - self._start
        left = f", {timedelta(seconds=round(seconds / done * (total - done)))} left" if 0 < done < total else ""
        steps = [f"{name} {_speed(p.entered, p.kept, p.seconds)}" for name, p in self._steps.items()]
        each = f" ({'; '.join(steps)})" if len(steps) > 1 else ""
        return f": {_speed(self._came, self._left, seconds)}{left}{each}"


def _speed(came: Counts, left: Counts, seconds: float) -> str:
    seconds = max(seconds, 1e-3)
    kept = left.bytes / came.bytes if came.bytes else 1.0
    return f"{came.documents / seconds:,.0f} documents/s, {came.bytes / seconds / 1e6:.1f} MB/s, {kept:.1%} kept"
