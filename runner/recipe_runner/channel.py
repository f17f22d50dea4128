"""The pipes between a run and the processes of one stage.

Guarantee: what a worker told before it died is heard, a torn last line is not; when the parent dies, or cannot write
what it hears, the workers' `alive` pipe ends and they leave.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from recipe_runner.contract import Event
from recipe_runner.events import decode
from recipe_runner.store import read_json, store_errors


class Channel:
    """A folder of pipes that lasts as long as the stage's processes do.

    `events` carries rank 0's events up, `acks` a byte down for each `flush`, `alive` nothing: its end tells the
    workers that their parent is gone. A file `stop` asks them to save and leave.
    """

    def __init__(self, hear: Callable[[Event], None], flush: Callable[[], None]) -> None:
        self._hear, self._flush = hear, flush
        self._failed: BaseException | None = None

    def __enter__(self) -> Channel:
        self.folder = Path(tempfile.mkdtemp(prefix="recipe-"))
        for name in ("events", "acks", "alive"):
            os.mkfifo(self.folder / name)
        self._ends = {name: os.open(self.folder / name, os.O_RDWR) for name in ("events", "acks", "alive")}
        self._reader = threading.Thread(target=self._read, daemon=True, name="events")
        self._reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._reader.is_alive():
            self._end()
        for descriptor in self._ends.values():
            os.close(descriptor)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _read(self) -> None:
        """Hear events until the empty line that `_end` writes."""
        with os.fdopen(os.dup(self._ends["events"]), "rb") as lines:
            for line in iter(lines.readline, b"\n"):
                try:
                    self._take(line)
                except BaseException as error:  # a full disk, say: kept for `drain`
                    self._failed = self._failed or error
                    self._hang_up()

    def _take(self, line: bytes) -> None:
        try:
            event = decode(line.decode())
        except (ValueError, TypeError):
            return  # the torn line of a worker that was killed while writing
        self._hear(event)
        if event.kind == "flush":
            self._flush()
            os.write(self._ends["acks"], b".")

    def _hang_up(self) -> None:
        """End the workers at once, as the parent's death would."""
        with suppress(KeyError):
            os.close(self._ends.pop("alive"))

    def stop(self) -> None:
        """Ask the workers to save and leave."""
        (self.folder / "stop").touch()

    def drain(self) -> None:
        """Hear what is still in the pipe; raises what went wrong while hearing."""
        self._end()
        if self._failed:
            with store_errors("the run cannot write what its stage tells"):
                raise self._failed

    def _end(self) -> None:
        os.write(self._ends["events"], b"\n\n")  # the first may end the torn line of a worker that was killed
        self._reader.join()

    def failure(self) -> Mapping[str, Any] | None:
        """What the rank that failed first left behind."""
        found = [read_json(path) for path in self.folder.glob("failure-*.json")]
        return min(filter(None, found), key=lambda failure: failure["time"], default=None)
