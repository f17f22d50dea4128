"""Text to ids in bulk: the tokenizer's own backend, without what transformers builds around it.

Guarantee: the ids are those of the tokenizer itself, compared on the first documents before any is written. Nothing is
added, and a special token that stands in text is text like any other. Documents are encoded on all cores (rayon), in
order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from recipe_plugins.training.loading import PLAIN
from recipe_runner import RecipeError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

COMPARED = 8
"""Documents that are encoded in both ways first."""


class BulkEncoder:
    """Encodes batches of documents with a copy of the backend; with the tokenizer itself if it has none."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer, self._backend = tokenizer, None
        self._compared = not tokenizer.is_fast
        if tokenizer.is_fast:
            from tokenizers import Tokenizer

            self._backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
            self._backend.no_truncation()
            self._backend.no_padding()
            self._backend.encode_special_tokens = True

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text. Raises `RecipeError` where the backend and the tokenizer differ on the first ones."""
        if self._backend is None:
            return self._plain(texts)
        found = [encoding.ids for encoding in self._backend.encode_batch_fast(texts, add_special_tokens=False)]
        if not self._compared:
            self._compared = True
            if self._plain(texts[:COMPARED]) != found[:COMPARED]:
                raise RecipeError(
                    "the tokenizer and its own backend encode these documents differently",
                    next="save the tokenizer anew with this version of transformers, and report it",
                )
        return found

    def _plain(self, texts: Sequence[str]) -> list[list[int]]:
        return self.tokenizer(list(texts), return_attention_mask=False, **PLAIN)["input_ids"] if texts else []
