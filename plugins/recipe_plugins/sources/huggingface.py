"""Whatever the library `datasets` can load: a data set of the hub, a builder with files, a folder it has saved.

Limits: a hub data set without a full commit as its `revision` is not pinned, and may change under an equal key; a
streamed one is read shard by shard and cannot be counted beforehand.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from recipe_plugins.sources.config import HuggingFaceConfig
from recipe_plugins.sources.files import matching, revision, root_of
from recipe_runner import Piece, RecipeError, Row

ROWS = 10_000
"""Rows of a data set that make a piece."""


class HuggingFace:
    """One data set, one split."""

    def __init__(self, config: HuggingFaceConfig) -> None:
        self.config = config
        self._loaded: Any = None

    def revision(self) -> tuple[str, bool]:
        """A digest of local files; for the hub the revision as written, pinned if it is a full commit."""
        local = self.config.data_files or self.config.saved
        if local:
            return revision(matching(local), root_of(local))
        wanted = self.config.revision or "main"
        return f"{self.config.dataset}@{wanted}", bool(re.fullmatch(r"[0-9a-f]{40}", wanted))

    def pieces(self) -> Sequence[Piece]:
        """Runs of rows, or the shards of a stream."""
        data = self._data()
        if self.config.streaming:
            return [Piece(f"shard-{n:05d}", (n, data.num_shards)) for n in range(data.num_shards)]
        return [Piece(f"rows-{n:09d}", (n, min(n + ROWS, len(data)))) for n in range(0, len(data), ROWS)]

    def read(self, piece: Piece) -> Iterator[Row]:
        """The rows as `datasets` gives them."""
        first, last = piece.payload
        if self.config.streaming:
            yield from self._data().shard(num_shards=last, index=first)
        else:
            yield from self._data().select(range(first, last))

    def _data(self) -> Any:
        if self._loaded is None:
            self._loaded = self._saved() if self.config.saved else self._load()
        return self._loaded

    def _saved(self) -> Any:
        import datasets

        try:
            found = datasets.load_from_disk(str(self.config.saved))
        except FileNotFoundError as error:
            raise RecipeError(f"no saved data set: {error}", next="write one with Dataset.save_to_disk") from None
        return self._split(found) if isinstance(found, dict) else found

    def _split(self, found: Any) -> Any:
        if self.config.split not in found:
            have = ", ".join(found)
            raise RecipeError(f"{self.config.saved} has no split {self.config.split!r}", next=f"it has {have}")
        return found[self.config.split]

    def _load(self) -> Any:
        import datasets

        assert self.config.dataset is not None  # the config's validator saw to it
        try:
            return datasets.load_dataset(
                self.config.dataset,
                name=self.config.config,
                data_files=self._data_files(),
                split=self.config.split,
                revision=self.config.revision,
                streaming=self.config.streaming,
            )
        except (FileNotFoundError, ConnectionError, ValueError) as error:
            raise RecipeError(
                f"`datasets` cannot load {self.config.dataset!r}: {error}",
                next="check name, config and split; a machine without network needs the data set in its cache",
            ) from error

    def _data_files(self) -> list[str] | None:
        if self.config.data_files is None:
            return None
        return [str(file) for file in matching(self.config.data_files)]
