"""What spans are counted in: bytes of UTF-8, or tokens of a tokenizer.json.

A unit turns a text into an array of numbers, and spans of the array back into spans of the text's UTF-8, rounded
inwards to whole characters. Token ids are 32 bits, so no vocabulary is too large.
Limit: what a tokeniser makes equal (by normalising, or because it knows neither) is equal here: take one of bytes, or
of byte-level BPE.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate
from typing import Any, Protocol

import numpy as np

from recipe_runner import RecipeError

Spans = Sequence[Sequence[int]]


class Unit(Protocol):
    """`dtype` is that of the numbers."""

    dtype: np.dtype

    def numbers(self, text: str) -> bytes:
        """The text's numbers, as they lie in memory."""

    def spans(self, text: str, spans: Spans) -> list[tuple[int, int]]:
        """Spans of numbers as spans of the text's UTF-8; one of no whole character is left out."""


class Bytes:
    """A number for each byte."""

    dtype = np.dtype(np.uint8)

    def numbers(self, text: str) -> bytes:
        """UTF-8."""
        return text.encode("utf-8", "surrogatepass")

    def spans(self, text: str, spans: Spans) -> list[tuple[int, int]]:
        """They, rounded."""
        data = self.numbers(text)
        rounded = (_whole(data, *span) for span in spans)
        return [(start, end) for start, end in rounded if start < end]


def _whole(text: bytes, start: int, end: int) -> tuple[int, int]:
    while start < end and text[start] & 0xC0 == 0x80:
        start += 1
    while end > start and end < len(text) and text[end] & 0xC0 == 0x80:
        end -= 1
    return start, end


class Tokens:
    """A number for each token, without what the tokeniser would add around a text."""

    dtype = np.dtype("<u4")

    def __init__(self, path: str) -> None:
        self._path = path

    @cached_property
    def _tokenizer(self) -> Any:
        from tokenizers import Tokenizer

        try:
            found = Tokenizer.from_file(self._path)
        except Exception as error:  # the library raises no narrower kind
            raise RecipeError(
                f"{self._path} is no tokenizer.json: {error}", next="give the file of a tokeniser"
            ) from None
        found.no_truncation()
        found.no_padding()
        return found

    def _encoded(self, text: str) -> Any:
        return self._tokenizer.encode(text, add_special_tokens=False)

    def numbers(self, text: str) -> bytes:
        """Ids."""
        return np.array(self._encoded(text).ids, self.dtype).tobytes()

    def spans(self, text: str, spans: Spans) -> list[tuple[int, int]]:
        """From the first token's start to the last one's end; a character that a token outside shares stays."""
        offsets = self._encoded(text).offsets
        places = [0, *accumulate(len(character.encode("utf-8", "surrogatepass")) for character in text)]
        found = []
        for first, last in spans:
            start = max(offsets[first][0], offsets[first - 1][1] if first else 0)
            end = min(offsets[last - 1][1], offsets[last][0] if last < len(offsets) else len(text))
            if start < end:
                found.append((places[start], places[end]))
        return found
