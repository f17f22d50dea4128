"""Finding copies: what the deduplicating filters share.

The one idea: a filter leaves of each document a fixed row of numbers (a digest, a signature) beside its priority and
id; clusters are found over all rows; of a cluster the document with the lowest (priority, id) survives. So the order
in which documents arrive decides nothing. Ids are kept on disk; in memory are 28 bytes a document, beside what the
filter itself needs.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import xxhash

from recipe_runner import Record, Verdict

HEAD = struct.Struct("<QQ")
MEMBER = np.dtype([("key", "S16"), ("size", "<u8"), ("survives", "?")])


def key_of(record: Record) -> bytes:
    """16 bytes that stand for a record."""
    return xxhash.xxh3_128_digest(f"{record.priority}\0{record.id}".encode("utf-8", "surrogatepass"))


def packed(batch: Sequence[Record], rows: np.ndarray) -> bytes:
    """The sketch of a batch: keys, priorities, ids, and one row for each."""
    names = [record.id.encode("utf-8", "surrogatepass") for record in batch]
    parts = (
        np.array([key_of(record) for record in batch], "S16"),
        np.array([record.priority for record in batch], "<u4"),
        np.array([len(name) for name in names], "<u8"),
    )
    head = HEAD.pack(len(batch), sum(map(len, names)))
    return b"".join((head, *(part.tobytes() for part in parts), *names, np.ascontiguousarray(rows).tobytes()))


class Seen:
    """All documents that were sketched. `keys` is (n,) of 16 bytes, `priorities` (n,) u4."""

    def __init__(self, work: Path) -> None:
        self._file = work / "ids"
        self.keys = np.empty(0, "S16")
        self.priorities = np.empty(0, "<u4")
        self._bounds = np.zeros(1, "<u8")

    def rows(self, sketches: Iterable[bytes], row: np.dtype) -> Iterator[np.ndarray]:
        """The rows of each sketch in turn, (documents,) of dtype `row`; what else it holds is taken in."""
        keys, priorities, lengths = [self.keys], [self.priorities], [np.zeros(0, "<u8")]
        with open(self._file, "wb") as ids:
            for sketch in sketches:
                count, text = HEAD.unpack_from(sketch)
                at = HEAD.size
                for held, kind in ((keys, "S16"), (priorities, "<u4"), (lengths, "<u8")):
                    held.append(np.frombuffer(sketch, kind, count, at).copy())  # a view would hold the sketch
                    at += count * np.dtype(kind).itemsize
                ids.write(sketch[at : at + text])
                yield np.frombuffer(sketch, row, count, at + text)
        self.keys, self.priorities = np.concatenate(keys), np.concatenate(priorities)
        self._bounds = np.concatenate([self._bounds, np.cumsum(np.concatenate(lengths))])

    def decide(self, labels: np.ndarray) -> Path:
        """Write which members of each cluster survive; documents with one label, (n,) int64, are one cluster."""
        order = np.argsort(labels, kind="stable")
        starts = np.flatnonzero(np.diff(labels[order], prepend=-1))
        sizes = np.diff(starts, append=len(labels))
        clusters = [order[a : a + size] for a, size in zip(starts[sizes > 1], sizes[sizes > 1], strict=True)]
        members = np.zeros(sum(map(len, clusters)), MEMBER)
        at = 0
        with open(self._file, "rb") as ids:
            for cluster in clusters:
                part = members[at : at + len(cluster)]
                part["key"], part["size"] = self.keys[cluster], len(cluster)
                part["survives"][self._lowest(cluster.tolist(), ids)] = True
                at += len(cluster)
        members.sort(order="key")
        target = self._file.with_name("members.npy")
        np.save(target, members)
        return target

    def _lowest(self, cluster: list[int], ids: object) -> int:
        """Position in a cluster of the document with the lowest (priority, id)."""
        ranks = [(int(self.priorities[number]), self._id(number, ids)) for number in cluster]
        return ranks.index(min(ranks))

    def _id(self, number: int, ids: object) -> bytes:
        ids.seek(int(self._bounds[number]))  # type: ignore[attr-defined]
        return ids.read(int(self._bounds[number + 1] - self._bounds[number]))  # type: ignore[attr-defined]


def judged(batch: Sequence[Record], members: np.ndarray, reason: str) -> list[Verdict]:
    """A verdict for each record; a member of a cluster has its size as the score `copies`."""
    keys = np.array([key_of(record) for record in batch], "S16")
    verdicts = [Verdict(True)] * len(batch)
    if not len(members):
        return verdicts
    places = np.minimum(np.searchsorted(members["key"], keys), len(members) - 1)
    for number in np.flatnonzero(members["key"][places] == keys).tolist():
        _, size, survives = members[places[number]].item()
        verdicts[number] = Verdict(survives, "" if survives else reason, scores={"copies": size})
    return verdicts


def components(count: int, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Labels, (count,) int64, of the connected components of a graph; `left` and `right` are its edges' ends."""
    labels = np.arange(count)
    while True:
        lowest = np.minimum(labels[left], labels[right])
        before = labels.copy()
        for end in (left, right):
            np.minimum.at(labels, labels[end], lowest)
        while not np.array_equal(labels, labels[labels]):
            labels = labels[labels]
        if np.array_equal(labels, before):
            return labels
