"""Text files, one document each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from recipe_plugins.sources.config import TextConfig
from recipe_plugins.sources.files import chunks, matching, revision, root_of
from recipe_runner import BadRow, Piece, Row

PIECE = 16_000_000
"""Bytes of files from which on a piece is closed."""


class TextFiles:
    """A file, a folder or a glob; `.gz` and `.zst` are unpacked."""

    def __init__(self, config: TextConfig) -> None:
        self.config = config

    def revision(self) -> tuple[str, bool]:
        """A digest of names, sizes and contents."""
        return revision(matching(self.config.path), root_of(self.config.path))

    def pieces(self) -> Sequence[Piece]:
        """Runs of files, in the order of their names."""
        groups: list[list[str]] = [[]]
        size = 0
        for file in matching(self.config.path):
            if size >= PIECE:
                groups.append([])
                size = 0
            groups[-1].append(str(file))
            size += file.stat().st_size
        return [Piece(f"files-{number:06d}", group) for number, group in enumerate(groups)]

    def read(self, piece: Piece) -> Iterator[Row | BadRow]:
        """One row a file; its id is its relative name."""
        root = root_of(self.config.path)
        for name in piece.payload:
            file = Path(name)
            try:
                text = b"".join(chunks(file)).decode("utf-8-sig")
            except UnicodeDecodeError:
                yield BadRow(name, "not UTF-8")
                continue
            yield {"id": file.relative_to(root).as_posix(), "text": text}
