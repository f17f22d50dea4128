"""Tables: Parquet, read in row groups, and CSV with a header.

The one idea: a row is a mapping from column to value, nothing renamed; the format says which column is the text. Of
Parquet only the named `columns` are read. Limits: a CSV file is one piece, since a quoted value may hold line ends.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from recipe_plugins.sources.config import CsvConfig, ParquetConfig
from recipe_plugins.sources.files import FileSource, Found, Placed, chunks, lines, stream
from recipe_plugins.sources.remote import Remote
from recipe_runner import BadRow, Piece, RecipeError, Row

ROWS = 1_000
"""Rows of a Parquet file that are held at once."""


class Parquet(FileSource[ParquetConfig]):
    """A file, a folder or a glob of Parquet files; a row group is a piece."""

    suffixes = (".parquet",)

    def pieces(self) -> Sequence[Piece]:
        """Row groups, in the order of the files' names."""
        return [
            Piece(f"{self.name(file)}@{group}", (file, group))
            for file in self.files()
            for group in range(self._groups(file))
        ]

    def read(self, piece: Piece) -> Iterator[Row]:
        """The rows of a group."""
        path, group = piece.payload
        with self._opened(path) as file:
            number = sum(file.metadata.row_group(n).num_rows for n in range(group))
            columns = list(self.config.columns) or None
            for batch in _batches(path, file.iter_batches(batch_size=ROWS, row_groups=[group], columns=columns)):
                for row in batch.to_pylist():
                    number += 1
                    yield Placed(row, lambda line: f"{path}: row {line}", number)

    def _groups(self, file: Found) -> int:
        with self._opened(file) as found:
            return int(found.num_row_groups)

    @contextmanager
    def _opened(self, file: Found) -> Iterator[Any]:
        import pyarrow.parquet

        with stream(file) as data:
            with _readable(file):
                found = pyarrow.parquet.ParquetFile(data if isinstance(file, Remote) else file)
            have = found.schema_arrow.names
            if missing := [name for name in self.config.columns if name not in have]:
                raise RecipeError(f"{file} has no column {missing[0]!r}", next=f"it has {', '.join(have)}")
            yield found


@contextmanager
def _readable(file: Found) -> Iterator[None]:
    import pyarrow

    damaged = pyarrow.ArrowException if isinstance(file, Remote) else (pyarrow.ArrowException, OSError)
    try:
        yield
    except damaged as error:  # what the network does is told elsewhere
        what = f"{file} is no readable Parquet file: {error}"
        raise RecipeError(what, next="fetch or write it again") from None


def _batches(file: Found, batches: Iterator[Any]) -> Iterator[Any]:
    """The batches; a page of the file that is damaged is seen only where it is read."""
    while True:
        with _readable(file):
            found = next(batches, None)
        if found is None:
            return
        yield found


class Csv(FileSource[CsvConfig]):
    """A file, a folder or a glob of CSV files; the first line names the columns."""

    suffixes = (".csv", ".tsv", ".csv.gz", ".tsv.gz", ".csv.zst", ".tsv.zst")

    def read(self, piece: Piece) -> Iterator[Row | BadRow]:
        """One row a line of values; one with too many or too few of them is bad."""
        # The limit is the module's; it is only ever raised, since a document is longer than the 128 KB it starts at.
        csv.field_size_limit(max(csv.field_size_limit(), self.config.max_line))
        reader = csv.reader(self._lines(piece.payload), delimiter=self.config.delimiter, strict=True)
        try:
            header = next(reader, None)
            if header is None:
                raise RecipeError(f"{piece.payload} is empty", next="the first line names the columns")
            self._check_parted(header, piece.payload)
            if twice := [name for name, count in Counter(header).items() if name and count > 1]:
                raise RecipeError(f"{piece.payload} has two columns {twice[0]!r}", next="rename one in the first line")
            yield from self._rows(reader, header, piece.payload)
        except csv.Error as error:
            raise RecipeError(
                f"{piece.payload}:{reader.line_num}: {error}", next="repair the file's quotes, or check `delimiter`"
            ) from None

    def _check_parted(self, header: Sequence[str], path: Found) -> None:
        """One column whose name holds another mark than the default's: the file is parted by that."""
        marks = {"\t": r"\t", ";": ";", "|": "|"} if len(header) == 1 and self.config.delimiter == "," else {}
        if mark := next((said for mark, said in marks.items() if mark in header[0]), None):
            raise RecipeError(f"{path} has one column, {header[0][:60]!r}, as commas part it",
                              next=f'delimiter: "{mark}"')  # fmt: skip

    def _rows(self, reader: Any, header: Sequence[str], path: Found) -> Iterator[Row | BadRow]:
        for values in filter(None, reader):
            where = f"{path}:{reader.line_num}"
            if len(values) != len(header):
                yield BadRow(where, f"{len(values)} values under {len(header)} columns")
            elif any("\udc80" <= char <= "\udcff" for value in values if not value.isascii() for char in value):
                yield BadRow(where, "not UTF-8")
            else:
                yield Placed(zip(header, values, strict=True), lambda line: f"{path}:{line}", reader.line_num)

    def _lines(self, file: Found) -> Iterator[str]:
        for number, (line, _) in enumerate(lines(chunks(file), self.config.max_line), 1):
            if line is None:
                raise RecipeError(f"{file}:{number}: longer than max_line, {self.config.max_line:,} bytes",
                                  next="raise max_line, or check the file's quotes")  # fmt: skip
            text = line.decode("utf-8", "surrogateescape") + "\n"
            yield text.removeprefix("\ufeff") if number == 1 else text
