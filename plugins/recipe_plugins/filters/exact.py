"""Documents with equal text, of which one survives."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import xxhash

from recipe_plugins.filters.config import ExactDedupConfig
from recipe_plugins.filters.copies import Seen, judged, packed
from recipe_plugins.filters.text import plain, text_of
from recipe_runner import Record, Verdict

DIGEST = np.dtype("S16")


def spaced(text: str) -> str:
    """NFC, with every run of white space as one space."""
    return " ".join(unicodedata.normalize("NFC", text).split())


class ExactDedup:
    """Compares 128-bit hashes (XXH3) of the texts."""

    def __init__(self, config: ExactDedupConfig) -> None:
        forms: dict[str, Callable[[str], str]] = {"text": str, "spaces": spaced, "letters": plain}
        self._form = forms[config.compare]

    def sketch(self, batch: Sequence[Record]) -> bytes:
        """A digest of each text."""
        texts = (self._form(text_of(record)).encode("utf-8", "surrogatepass") for record in batch)
        digests = [xxhash.xxh3_128_digest(text) for text in texts]
        return packed(batch, np.array(digests, DIGEST))

    def decide(self, sketches: Iterable[bytes], work: Path) -> Path:
        """Equal digests are one cluster."""
        seen = Seen(work)
        digests = np.concatenate([np.empty(0, DIGEST), *seen.rows(sketches, DIGEST)])
        return seen.decide(np.unique(digests, return_inverse=True)[1])

    def judge(self, batch: Sequence[Record], state: Path) -> list[Verdict]:
        """All but one copy go."""
        return judged(batch, np.load(state, mmap_mode="r"), "duplicate")
