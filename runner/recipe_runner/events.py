"""Telling about a run: what happens is an event, and everything else listens.

A worker's rank 0 writes events as JSON lines into a pipe; the parent alone writes files and calls listeners, in
order. A listener that fails is told once and dropped: a notifier must not cost a training run.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from recipe_runner.contract import Event

KINDS: Mapping[str, str] = {
    "run-started": "a run began; data: recipe, run",
    "run-finished": "a run ended; data: status, seconds",
    "stage-cached": "a stage was found complete; data: path, key",
    "stage-waiting": "another run holds the stage; data: holder",
    "stage-started": "a stage began or goes on; data: reason, key, path",
    "stage-finished": "a stage was committed; data: path, seconds",
    "stage-failed": "a stage ended with an error; data: error",
    "stage-interrupted": "a stage saved its state and stopped",
    "metrics": "a row of metrics; data: step and values",
    "resumed": "a stage goes on; rows after data.step are void",
    "progress": "how far a stage is; data: done, total, unit, note",
    "note": "facts for the manifest; data: the facts",
    "warning": "a warning that is a result; data: text",
    "flush": "asks the parent to have everything on disk",
}
"""Every kind of event the runner itself tells, with what its data holds."""

Listener = Callable[[Event], None]


def encode(event: Event) -> str:
    """An event as one line of ASCII JSON; NaN and infinities become strings, so the line stays JSON."""
    data = {"kind": event.kind, "stage": event.stage, "time": event.time or round(time.time(), 3), "data": event.data}
    return json.dumps(_finite(data), allow_nan=False) + "\n"


def decode(line: str) -> Event:
    """The event of a line."""
    return Event(**json.loads(line))


def _finite(value: Any) -> Any:
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(entry) for entry in value]
    return value


class Listeners:
    """Calls each listener with each event; one that raises is dropped with a line on stderr."""

    def __init__(self, listeners: Sequence[Listener]) -> None:
        self._listeners = list(listeners)

    def __call__(self, event: Event) -> None:
        for listener in list(self._listeners):
            try:
                listener(event)
            except (Exception, SystemExit) as error:  # whatever it is, the run goes on
                self._listeners.remove(listener)
                name = f"{listener.__module__}.{getattr(listener, '__qualname__', type(listener).__name__)}"
                print(f"listener {name} failed and is off for this run: {error!r}", file=sys.stderr)


class RunLog:
    """Appends every event but progress to `events.jsonl`, which it holds while it is open, and lines to `log.txt`."""

    def __init__(self, folder: Path) -> None:
        from recipe_runner.store import hold

        self._events = open(folder / "events.jsonl", "ab", buffering=0)  # noqa: SIM115  (lives as long as the run)
        hold(self._events)
        self._text = open(folder / "log.txt", "a", encoding="utf-8")  # noqa: SIM115
        self._lines = Plain(self._text, every=60.0)

    def __call__(self, event: Event) -> None:
        self._lines(event)
        if event.kind == "stage-failed":
            print(event.data["error"], file=self._text, flush=True)
        if event.kind not in ("progress", "flush"):
            self._events.write(encode(event).encode())

    def close(self) -> None:
        """Close the files."""
        self._events.close()
        with suppress(OSError):  # a full disk, which was told when the line was written
            self._text.close()


class StageRecord:
    """What a stage told, in files beside its payload: metrics.jsonl, facts.json, warnings.json."""

    def __init__(self, folder: Path) -> None:
        from recipe_runner.store import read_json

        self._folder = folder
        self._path = folder / "metrics.jsonl"
        self._drop_rows(lambda row: True)
        self._metrics = open(self._path, "a", encoding="utf-8")  # noqa: SIM115  (closed by `close`)
        self.facts: dict[str, Any] = read_json(folder / "facts.json") or {}
        self.warnings: list[str] = read_json(folder / "warnings.json") or []

    def __call__(self, event: Event) -> None:
        if event.kind == "metrics":
            self._metrics.write(json.dumps(_finite(event.data), allow_nan=False) + "\n")
        elif event.kind == "resumed":
            self._metrics.close()
            self._drop_rows(lambda row: row["step"] <= event.data["step"])
            self._metrics = open(self._path, "a", encoding="utf-8")  # noqa: SIM115
        elif event.kind == "note":
            self.facts.update(event.data)
        elif event.kind == "warning" and event.data["text"] not in self.warnings:
            self.warnings.append(event.data["text"])

    def flush(self) -> None:
        """Have everything on disk."""
        from recipe_runner.store import write_json

        self._metrics.flush()
        os.fsync(self._metrics.fileno())
        write_json(self._folder / "facts.json", self.facts)
        write_json(self._folder / "warnings.json", self.warnings)

    def close(self) -> None:
        """Flush, and close the file."""
        self.flush()
        self._metrics.close()

    def _drop_rows(self, keep: Callable[[Mapping[str, Any]], bool]) -> None:
        """Keep the whole rows for which `keep` holds; a torn last line goes."""
        if not self._path.is_file():
            return
        kept = []
        for line in self._path.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if keep(row):
                kept.append(line + "\n")
        temporary = self._path.with_suffix(".tmp")
        with open(temporary, "w", encoding="utf-8") as file:
            file.writelines(kept)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self._path)


class Plain:
    """Progress as lines on a stream, at most one every few seconds a stage."""

    def __init__(self, stream: TextIO, every: float = 10.0) -> None:
        self._stream, self._every, self._last = stream, every, 0.0

    def __call__(self, event: Event) -> None:
        line = self._line(event)
        if line:
            print(line, file=self._stream, flush=True)

    def _line(self, event: Event) -> str:
        data, stage = event.data, event.stage
        if event.kind == "progress":
            now = time.monotonic()
            if now - self._last < self._every:
                return ""
            self._last = now
            return f"{stage:<12} {progress_text(data)}"
        return {
            "run-started": lambda: f"run {data['run']}",
            "stage-cached": lambda: f"{stage:<12} cached   {data['path']}",
            "stage-waiting": lambda: f"{stage:<12} waiting  {data['holder']}",
            "stage-started": lambda: f"{stage:<12} running  {data['reason']}",
            "stage-finished": lambda: f"{stage:<12} done     {data['seconds']:.1f} s  {data['path']}",
            "stage-interrupted": lambda: f"{stage:<12} stopped  state saved",
            "stage-failed": lambda: f"{stage:<12} failed",
            "warning": lambda: f"{stage:<12} warning  {data['text']}",
        }.get(event.kind, lambda: "")()


def progress_text(data: Mapping[str, Any]) -> str:
    """`120/400 steps  loss 3.21`."""
    total = f"/{data['total']:,.0f}" if data.get("total") else ""
    return f"{data['done']:,.0f}{total} {data.get('unit') or ''}  {data.get('note') or ''}".rstrip()


class Rich:
    """Progress as a live bar on a terminal; other events as lines above it."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        console = Console(stderr=True, highlight=False)
        self._bar = Progress(
            TextColumn("{task.description:<12}"), BarColumn(), TextColumn("{task.fields[text]}"), TimeRemainingColumn(),
            console=console, transient=True,
        )  # fmt: skip
        self._lines = Plain(sys.stderr)
        self._console = console
        self._task: Any = None

    def __call__(self, event: Event) -> None:
        if event.kind == "progress":
            self._show(event)
            return
        line = self._lines._line(event)
        if line:
            self._bar.console.print(line, markup=False)
        if event.kind in ("stage-finished", "stage-failed", "stage-interrupted", "run-finished"):
            self._hide()

    def _show(self, event: Event) -> None:
        if self._task is None:
            self._task = self._bar.add_task(event.stage, text="")
            self._bar.start()
        self._bar.update(
            self._task, completed=event.data["done"], total=event.data.get("total"), text=progress_text(event.data)
        )

    def _hide(self) -> None:
        if self._task is not None:
            self._bar.remove_task(self._task)
            self._bar.stop()
            self._task = None


def for_people() -> Listener:
    """The listener for stderr: a bar on a terminal, lines elsewhere."""
    return Rich() if sys.stderr.isatty() else Plain(sys.stderr)
