"""Peak memory of a stretch of a process, for benchmarks: anonymous pages only, since mapped files can be let go."""

from __future__ import annotations

import re
import threading
from pathlib import Path


def anonymous() -> int:
    """Bytes of this process that no file backs."""
    found = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return 1024 * int(found[1])


class Peak:
    """`with Peak() as peak: …`, then `peak.bytes`: the most that was held, looked at every 10 ms."""

    def __enter__(self) -> Peak:
        self.bytes, self._done = anonymous(), threading.Event()
        self._watcher = threading.Thread(target=self._watch)
        self._watcher.start()
        return self

    def _watch(self) -> None:
        while not self._done.wait(0.01):
            self.bytes = max(self.bytes, anonymous())

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._watcher.join()
