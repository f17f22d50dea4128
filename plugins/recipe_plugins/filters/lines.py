"""Lines that stand in many documents: menus, notices, headers. They are taken out of the texts.

The one idea (CCNet, Wenzek et al. 2020, section 3.1): a line is known by a 64-bit hash of its words; one that stands in
`documents` documents or more is boilerplate. With `keep: first` the document with the lowest (source, hash of id)
keeps it, so the order in which documents come decides nothing.
Bounds: 20 bytes on disk and 60 in memory for each different line of a document while it decides, 20 bytes for each
repeated line afterwards. Limits: two lines in 2^64 share a hash; repetition within one document is left alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import xxhash

from recipe_plugins.filters.learned_config import LineDedupConfig
from recipe_plugins.filters.text import plain
from recipe_runner import RecipeError, Record, Verdict

ENTRY = np.dtype([("line", "<u8"), ("priority", "<u4"), ("key", "<u8")])


class LineDedup:
    """Changes texts; a document of which nothing is left goes."""

    def __init__(self, config: LineDedupConfig) -> None:
        self.config = config

    def _hash(self, line: str) -> int | None:
        """Of its words; None for a line that is too short to tell."""
        words = plain(line)
        return hashed(words) if len(words) >= self.config.min_characters else None

    def sketch(self, batch: Sequence[Record]) -> bytes:
        """The hashes of each document's lines, each once, with what ranks the document."""
        rows = [
            (line, record.priority, hashed(record.id))
            for record in batch
            for line in {self._hash(line) for line in text_to_change(record, "line-dedup").splitlines()} - {None}
        ]
        return np.array(rows, ENTRY).tobytes()

    def decide(self, sketches: Iterable[bytes], work: Path) -> Path:
        """The repeated lines, each with the document that ranks first."""
        found = np.concatenate([np.empty(0, ENTRY), *(np.frombuffer(sketch, ENTRY) for sketch in sketches)])
        found.sort(order=["line", "priority", "key"])
        starts = np.flatnonzero(np.concatenate([[True], found["line"][1:] != found["line"][:-1]])[: len(found)])
        counts = np.diff(starts, append=len(found))
        np.save(work / "lines.npy", found[starts[counts >= self.config.documents]])
        return work / "lines.npy"

    def judge(self, batch: Sequence[Record], state: Path) -> list[Verdict]:
        """Each text without its repeated lines; the score is how many were taken out."""
        repeated = np.load(state, mmap_mode="r")
        return [self._judge(record, repeated) for record in batch]

    def _judge(self, record: Record, repeated: np.ndarray) -> Verdict:
        text = text_to_change(record, "line-dedup")
        lines = text.splitlines(keepends=True)
        kept = [line for line in lines if not self._goes(line, record, repeated)]
        if len(kept) == len(lines):
            return Verdict(True)
        return rest("".join(kept), {"repeated_lines": len(lines) - len(kept)})

    def _goes(self, line: str, record: Record, repeated: np.ndarray) -> bool:
        found = self._hash(line)
        if found is None:
            return False
        at = int(np.searchsorted(repeated["line"], np.uint64(found)))
        if at == len(repeated) or int(repeated["line"][at]) != found:
            return False
        first = (int(repeated["priority"][at]), int(repeated["key"][at]))
        return self.config.keep == "none" or first != (record.priority, hashed(record.id))


def hashed(text: str) -> int:
    """64 bits of a text."""
    return xxhash.xxh3_64_intdigest(text.encode("utf-8", "surrogatepass"))


def rest(text: str, scores: dict[str, float]) -> Verdict:
    """What is left of a document, which goes if that is nothing."""
    return Verdict(True, text=text, scores=scores) if text.strip() else Verdict(False, "only_repeated", scores=scores)


def text_to_change(record: Record, step: str) -> str:
    """The text of a document; a conversation is an error."""
    if record.text is None:
        raise RecipeError(f"{step} changes texts, and {record.id} is a conversation",
                          next="apply it to other domains: only: {domain: [...]}")  # fmt: skip
    return record.text
