"""Text files, one document each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from recipe_plugins.sources.config import TextConfig
from recipe_plugins.sources.files import Found, chunks, matching, named, revision, root_of, size_of
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
        groups: list[list[Found]] = [[]]
        size = 0
        for file in matching(self.config.path):
            if size >= PIECE:
                groups.append([])
                size = 0
            groups[-1].append(file)
            size += size_of(file)
        return [Piece(f"files-{number:06d}", group) for number, group in enumerate(groups)]

    def read(self, piece: Piece) -> Iterator[Row | BadRow]:
        """One row a file; its id is its relative name."""
        root = root_of(self.config.path)
        for file in piece.payload:
            try:
                text = b"".join(chunks(file)).decode("utf-8-sig")
            except UnicodeDecodeError:
                yield BadRow(str(file), "not UTF-8")
                continue
            yield {"id": named(file, root), "text": text}
