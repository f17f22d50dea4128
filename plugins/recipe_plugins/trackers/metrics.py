"""From events to rows of numbers, which is all that a tracker of metrics wants to know.

A resumed stage tells some steps again; a tracker is told from which, so that it can drop what it had.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from recipe_runner import Event


class Sink(Protocol):
    """Where the rows of one stage go."""

    def row(self, step: int, values: Mapping[str, float], time: float) -> None:
        """The metrics of a step, and when they were told, in seconds since the epoch."""
        ...

    def resumed(self, step: int) -> None:
        """Rows after `step` are void."""
        ...

    def close(self) -> None:
        """The stage is over."""
        ...


class Metrics:
    """A `Tracker` with a sink for each stage, opened by `open_sink(recipe, run, stage)` of the subclass."""

    def __init__(self) -> None:
        self._recipe, self._run = "", ""
        self._sinks: dict[str, Sink] = {}

    def open_sink(self, recipe: str, run: str, stage: str) -> Sink:
        """The sink of a stage, asked for at its first row."""
        raise NotImplementedError

    def on_event(self, event: Event) -> None:
        """See `Tracker`."""
        if event.kind == "run-started":
            self._recipe, self._run = event.data["recipe"], event.data["run"]
        elif event.kind == "metrics":
            values = {k: v for k, v in event.data.items() if k != "step" and isinstance(v, int | float)}
            self._sink(event.stage).row(event.data["step"], values, event.time)
        elif event.kind == "resumed":
            self._sink(event.stage).resumed(event.data["step"])
        elif event.kind in ("stage-finished", "stage-failed", "stage-interrupted") and event.stage in self._sinks:
            self._sinks.pop(event.stage).close()

    def _sink(self, stage: str) -> Sink:
        if stage not in self._sinks:
            self._sinks[stage] = self.open_sink(self._recipe, self._run, stage)
        return self._sinks[stage]
