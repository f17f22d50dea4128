"""Text files, one document each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from recipe_plugins.sources.config import TextConfig
from recipe_plugins.sources.files import FileSource, Found, chunks, size_of
from recipe_runner import BadRow, Piece, Row

PIECE = 16_000_000
"""Bytes of files from which on a piece is closed."""


class TextFiles(FileSource[TextConfig]):
    """A file, a folder or a glob; `.gz` and `.zst` are unpacked."""

    def pieces(self) -> Sequence[Piece]:
        """Runs of files, in the order of their names."""
        groups: list[list[Found]] = [[]]
        size = 0
        for file in self.files():
            if size >= PIECE:
                groups.append([])
                size = 0
            groups[-1].append(file)
            size += size_of(file)
        return [Piece(f"files-{number:06d}", group) for number, group in enumerate(groups)]

    def read(self, piece: Piece) -> Iterator[Row | BadRow]:
        """One row a file; its id is its relative name."""
        for file in piece.payload:
            try:
                text = b"".join(chunks(file)).decode("utf-8-sig")
            except UnicodeDecodeError:
                yield BadRow(str(file), "not UTF-8")
                continue
            yield {"id": self.name(file), "text": text}
