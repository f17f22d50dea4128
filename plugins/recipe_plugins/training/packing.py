"""Rows of one length, made of whole conversations: packed by best fit, isolated from each other, stored on disk.

Each conversation stands whole in one row. `position_ids` start at 0 with each, and with the padding at the end of a
row, which is how transformers tells documents apart where there is neither an attention mask nor a cache. The first
label of each is -100, since what precedes it is another's. Padding is known by its position, never by its id, so a pad
token that is also the stop token hides nothing.

Same conversations, same rows: order and ties are decided by number.
"""

from __future__ import annotations

import json
from bisect import bisect_left, insort
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from recipe_plugins.training.conversations import IGNORED, Encoded

NAMES = "records.json"
"""The ids of the records of each row."""

COLUMNS = ("input_ids", "labels", "position_ids")


def best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Numbers of documents by row: the longest first, each into the fullest row that still has room for it.

    Best-fit decreasing: at most 11/9 of the fewest rows, plus 4 (Johnson 1974, "Fast algorithms for bin packing").
    Rows come in the order of their first document. Raises `ValueError` for a document longer than `capacity`.
    """
    if max(lengths, default=0) > capacity:
        raise ValueError(f"a document of {max(lengths)} tokens does not fit into a row of {capacity}")
    open_rows: list[tuple[int, int]] = []  # (room, row), sorted
    rows: list[list[int]] = []
    for number in sorted(range(len(lengths)), key=lambda n: (-lengths[n], n)):
        place = bisect_left(open_rows, (lengths[number], -1))
        if place == len(open_rows):
            room, row = capacity, len(rows)
            rows.append([])
        else:
            room, row = open_rows.pop(place)
        rows[row].append(number)
        if room > lengths[number]:
            insort(open_rows, (room - lengths[number], row))
    return sorted((sorted(row) for row in rows), key=lambda row: row[0])


def layout(documents: Sequence[Encoded], sequence_length: int) -> dict[str, np.ndarray]:
    """One row: `input_ids`, `labels` and `position_ids`, int32 of shape (sequence_length,), padded at the end."""
    lengths = [len(document.input_ids) for document in documents]
    padding = sequence_length - sum(lengths)
    return {
        "input_ids": np.concatenate([*(d.input_ids for d in documents), np.zeros(padding, np.int32)]),
        "labels": np.concatenate([*(d.labels for d in documents), np.full(padding, IGNORED, np.int32)]),
        "position_ids": np.concatenate([np.arange(length, dtype=np.int32) for length in (*lengths, padding)]),
    }


def write_rows(encoded: Sequence[Encoded], folder: Path, *, sequence_length: int, packing: bool) -> None:
    """Store the rows of `encoded` in `folder`, as int32 of shape (rows, sequence_length).

    Without `packing`, each conversation has a row of its own.
    """
    numbers = [[number] for number in range(len(encoded))]
    if packing:
        numbers = best_fit([len(document.input_ids) for document in encoded], sequence_length)
    shape = (len(numbers), sequence_length)
    columns = {
        name: np.lib.format.open_memmap(folder / f"{name}.npy", mode="w+", dtype=np.int32, shape=shape)
        for name in COLUMNS
    }
    for row, documents in enumerate(numbers):
        for name, values in layout([encoded[number] for number in documents], sequence_length).items():
            columns[name][row] = values
    for column in columns.values():
        column.flush()
    names = [[encoded[number].record.id for number in documents] for documents in numbers]
    (folder / NAMES).write_text(json.dumps(names), encoding="utf-8")


class StoredRows:
    """Rows as `training.order.Rows`, read from where `write_rows` put them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._columns = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in COLUMNS}

    def __len__(self) -> int:
        return len(self._columns["input_ids"])

    def __getitem__(self, number: int) -> Mapping[str, np.ndarray]:
        return {name: column[number] for name, column in self._columns.items()}

    def documents(self, number: int) -> list[str]:
        """The ids of the records that stand in row `number`."""
        names: list[list[str]] = json.loads((self._folder / NAMES).read_text(encoding="utf-8"))
        return names[number]
