"""Text to ids in bulk: by the fastest library that does what the tokenizer does.

Guarantee: the ids are those of the tokenizer itself. `tokenizers` is its own backend without what transformers builds
around it. Another library is compared with that before it is used: on the corpus's first documents, on odd text, on
every entry of the vocabulary and on letters of all scripts. Whichever it is, the first documents of every domain are
compared with the tokenizer itself before any is written, and a difference is an error.

Limit: equal there, not proven equal everywhere.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from recipe_plugins.training.loading import PLAIN
from recipe_runner import RecipeError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from recipe_plugins.training.encoders import Encode

COMPARED = 8
"""Documents that are encoded in both ways first."""

WORTH = 16_000_000
"""Bytes of text from which on `auto` looks at other libraries than `tokenizers`: less is done before it has looked."""

ODD = (
    "", " a  b\n\tc \r\n\n x\u00a0y\u2028z\u3000", "don't DON'T we'Re it'S ’s", "naïve 世界 👍🏽 \x00\ufffd e\u0301",
    "!" * 99 + "\n" * 99 + " " * 99 + "x" * 999, "if (x):\n\treturn  {'a':1}\n\n\n    # —", "١٢٣ 12345 ½²",
)  # fmt: skip


class BulkEncoder:
    """Encodes batches of documents with a library; with the tokenizer itself if it has no backend."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, library: Encode | None = None) -> None:
        self.tokenizer = tokenizer
        self._library = library or (own(tokenizer) if tokenizer.is_fast else None)
        self._compared = self._library is None

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text. Raises `RecipeError` where library and tokenizer differ on the first ones."""
        if self._library is None:
            return self._plain(texts)
        found = self._library(texts)
        if not self._compared:
            self._compared = True
            if self._plain(texts[:COMPARED]) != found[:COMPARED]:
                raise RecipeError(
                    "the tokenizer and the library that encodes in its place encode these documents differently",
                    next="set `encoder: tokenizers`; if it is that, save the tokenizer anew with this version of "
                    "transformers, and report it",
                )
        return found

    def _plain(self, texts: Sequence[str]) -> list[list[int]]:
        return self.tokenizer(list(texts), return_attention_mask=False, **PLAIN)["input_ids"] if texts else []


def own(tokenizer: PreTrainedTokenizerBase) -> Encode:
    """The library `tokenizers`, with a copy of the tokenizer's backend."""
    from tokenizers import Tokenizer

    from recipe_plugins.training import encoders

    return encoders.tokenizers(Tokenizer.from_str(tokenizer.backend_tokenizer.to_str()))


def chosen(
    tokenizer: PreTrainedTokenizerBase, wanted: str, size: int, sample: Sequence[str]
) -> tuple[Encode | None, dict[str, Any]]:
    """The library for `size` bytes of text, or none for a tokenizer without a backend; and facts about the choice.

    `wanted` is a name of `LIBRARIES`, or `auto` for the first one that is installed, fit and equal. The facts are
    `used`, and `passed_over`: each library that is installed and was not taken, and why. Raises `RecipeError` where the
    one that is wanted by name is not all of that.
    """
    from recipe_plugins.training.encoders import LIBRARIES, Unfit

    if not tokenizer.is_fast:
        return None, {"used": "transformers", "passed_over": {}}
    passed_over: dict[str, str] = {}
    others = [name for name in LIBRARIES if name != "tokenizers" and (name == wanted or wanted == "auto")]
    for name in others if wanted != "auto" or size >= WORTH else []:
        try:
            library = LIBRARIES[name](tokenizer.backend_tokenizer)
            equal(tokenizer, library, sample)
            return library, {"used": name, "passed_over": passed_over}
        except ImportError as error:
            if wanted == name:
                raise RecipeError(
                    f"encoder: {name} needs {name}, which is not installed", next=f"pip install 'recipe-runner[{name}]'"
                ) from error
        except Unfit as error:
            if wanted == name:
                raise RecipeError(
                    f"{name} cannot encode in the place of this tokenizer: {error}", next="set `encoder: auto`"
                ) from error
            passed_over[name] = str(error)
    return own(tokenizer), {"used": "tokenizers", "passed_over": passed_over}


def equal(tokenizer: PreTrainedTokenizerBase, library: Encode, sample: Sequence[str]) -> None:
    """Raise `Unfit` where a library gives other ids than the backend does, for the texts that it is tried on."""
    from recipe_plugins.training.encoders import Unfit

    entries = [
        tokenizer.backend_tokenizer.decode([number], skip_special_tokens=False) for number in range(len(tokenizer))
    ]
    texts = [*sample, *ODD, *entries, *_letters()]
    for text, ours, theirs in zip(texts, own(tokenizer)(texts), library(texts), strict=True):
        if ours != theirs:
            raise Unfit(f"it encodes {text[:40]!r} as {theirs[:8]}, not as {ours[:8]}")


def _letters() -> list[str]:
    """Characters beside letters, digits and white space: all assigned ones below U+3400, every 64th above."""
    codes = [*range(0x3400), *range(0x3400, 0xD800, 64), *range(0xE000, 0x110000, 64)]
    letters = [chr(code) for code in codes if unicodedata.category(chr(code)) != "Cn"]
    return [f"a{letter}1 {letter}{letter} \n{letter}b" for letter in letters]
