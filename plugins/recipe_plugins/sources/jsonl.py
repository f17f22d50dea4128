"""JSON Lines: one object a line, plain or packed with gzip or Zstandard.

The one idea: a plain file is read in ranges of bytes, each by a process of its own; a line belongs to the range in
which it starts. A packed file is one range. A line that cannot be read is a bad row with file and line, never a stop.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any

from recipe_plugins.sources.config import JsonlConfig
from recipe_plugins.sources.files import (
    FileSource,
    Found,
    Placed,
    chunks,
    lines,
    packed,
    size_of,
)
from recipe_runner import BadRow, Piece, Row

RANGE, LEAST, PARTS = 16_000_000, 1_000_000, 32
"""Bytes of a plain file that make a piece, at most and at least, and the pieces that a file has before they grow."""
NOT_TEXT, DETAIL = "not UTF-8", "a JSON Lines file has one object a line"


class Jsonl(FileSource[JsonlConfig]):
    """A file, a folder or a glob of JSON Lines."""

    suffixes = tuple(name + packing for name in (".jsonl", ".ndjson", ".json") for packing in ("", ".gz", ".zst"))

    def pieces(self) -> Sequence[Piece]:
        """Ranges of bytes, in the order of the files' names."""
        return [
            Piece(f"{self.name(file)}@{start}", (file, start, end))
            for file in self.files()
            for start, end in ranges(file)
        ]

    def read(self, piece: Piece) -> Iterator[Row | BadRow]:
        """One row a line that is not blank."""
        path, start, end = piece.payload
        place = _counter(path, start)
        for number, line in enumerate(self._lines(path, start, end), 1):
            if line is None:
                yield BadRow(place(number), f"longer than max_line, {self.config.max_line:,} bytes")
            elif line.strip():
                row = parse(line)
                detail = "" if row == NOT_TEXT else DETAIL
                yield BadRow(place(number), row, detail) if isinstance(row, str) else Placed(row, place, number)

    def _lines(self, path: Found, start: int, end: int | None) -> Iterator[bytes | None]:
        """The lines that start in the range; without an `end` that is the file."""
        blocks, position = chunks(path, max(0, start - 1)), start
        if start:  # from one byte before: what stands in front of the first line end started in the range before
            blocks, position = _behind_line(blocks, start - 1, end or 0)
        found = lines(blocks, self.config.max_line)
        for line, length in found:
            if end is not None and position >= end:
                return
            position += length
            yield line


def _behind_line(blocks: Iterator[bytes], position: int, end: int) -> tuple[Iterator[bytes], int]:
    """What stands behind the first line end, and where; nothing is read beyond `end`, where a line goes on that far."""
    for block in blocks:
        if (cut := block.find(b"\n") + 1) > 0:
            return chain((block[cut:],), blocks), position + cut
        position += len(block)
        if position >= end:
            break
    return iter(()), end


def ranges(file: Found) -> list[tuple[int, int | None]]:
    """Where the ranges of a file start and end; a packed file is one without an end."""
    if packed(file):
        return [(0, None)]
    size = size_of(file)
    step = min(RANGE, max(LEAST, -(-size // PARTS)))
    return [(start, start + step) for start in range(0, max(1, size), step)]


def parse(line: bytes) -> dict[str, Any] | str:
    """The object of a line, or what is wrong with it."""
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError:
        return NOT_TEXT
    except json.JSONDecodeError as error:
        return f"malformed JSON ({error.msg})"
    except ValueError:  # Python reads no whole number of more than 4,300 digits
        return "malformed JSON (a number with too many digits)"
    except RecursionError:
        return "malformed JSON (nested too deeply)"
    return row if isinstance(row, dict) else "not a JSON object"


def _counter(path: Found, start: int) -> Callable[[int], str]:
    """`file:line` of the n-th line of a range; the lines before the range are counted when first asked for."""
    before: list[int] = []

    def place(number: int) -> str:
        if not before:
            before.append(_count(path, start) if start else 0)
        return f"{path}:{before[0] + number}"

    return place


def _count(path: Found, start: int) -> int:
    """The number of lines that start before `start`, which is past the beginning of the file."""
    seen, left = 1, start - 1  # a line end in the last byte before `start` ends a line that is counted already
    for block in chunks(path):
        seen += block[:left].count(b"\n")
        left -= len(block)
        if left <= 0:
            break
    return seen
