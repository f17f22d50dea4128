"""The text of a page, extracted by trafilatura in a process of its own, which may hang or die without harm.

The one idea: the other process sets itself a timer before each page and is ended by it, even inside C code; whoever
reads its answer sees the end of the stream, and starts another. It ends when this process does.
"""

from __future__ import annotations

import importlib.util
import signal
import struct
import subprocess
import sys
from contextlib import suppress
from typing import IO

from recipe_runner import BadRow, RecipeError

HEAD = struct.Struct("<Q")


class Extractor:
    """Started at the first page; `timeout` is seconds a page."""

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Extractor:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._end(self._process)

    def text(self, page: bytes) -> str | BadRow:
        """The main text of a page, "" where there is none; a bad row where it takes too long or breaks the process."""
        process = self._process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            _send(process.stdin, page)
            answer = _receive(process.stdout)
        except BrokenPipeError:
            answer = None
        if answer is not None:
            return answer.decode()
        status = self._end(process)
        if status == -signal.SIGALRM:
            return BadRow("", f"extraction took longer than {self._timeout:g} s")
        return BadRow("", f"extraction ended with status {status}")

    def _start(self) -> subprocess.Popen[bytes]:
        if importlib.util.find_spec("trafilatura") is None:
            raise RecipeError(
                "text of pages is extracted by trafilatura, which is not installed",
                next="pip install 'recipe-runner[html]', or take WET files, or set `extract: none`",
            )
        command = [sys.executable, "-m", __name__, str(self._timeout)]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def _end(self, process: subprocess.Popen[bytes]) -> int:
        self._process = None
        assert process.stdin is not None
        assert process.stdout is not None
        with suppress(BrokenPipeError):  # it has ended already
            process.stdin.close()
        process.stdout.close()
        return process.wait()


def _send(stream: IO[bytes], data: bytes) -> None:
    stream.write(HEAD.pack(len(data)) + data)
    stream.flush()


def _receive(stream: IO[bytes]) -> bytes | None:
    head = stream.read(HEAD.size)
    return stream.read(HEAD.unpack(head)[0]) if len(head) == HEAD.size else None


def serve(timeout: float) -> None:
    """Pages in on stdin, texts out on stdout, until stdin ends; SIGALRM ends it sooner."""
    from trafilatura import extract

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    while (page := _receive(sys.stdin.buffer)) is not None:
        signal.setitimer(signal.ITIMER_REAL, timeout)
        # `deduplicate` would remember what it saw on other pages.
        text = extract(page, favor_precision=True, include_comments=False, deduplicate=False)
        signal.setitimer(signal.ITIMER_REAL, 0)
        _send(sys.stdout.buffer, (text or "").encode("utf-8", "replace"))


if __name__ == "__main__":
    serve(float(sys.argv[1]))
