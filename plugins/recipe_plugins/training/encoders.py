"""The libraries that turn text into ids, each a function from texts to lists of ids, in order.

`tokenizers` always; `tiktoken` and `gigatoken`, where they are installed, for byte-level BPE. None adds anything, and a
special token that stands in text is text like any other. Measured on one core, 14 MB of source code and 4,096 entries:
2.7, 12 and 50 MB/s.

Limit: what a library cannot do is found by what the tokenizer says of itself; that it does the rest equally, by
comparison (`recipe_plugins.training.encoding`).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tokenizers import Tokenizer

Encode = Callable[[Sequence[str]], list[list[int]]]

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""GPT-2's rule (Radford et al. 2019), which keeps a space with the word after it; `ByteLevel` of tokenizers has it."""


BLANK = 100_000
"""Characters of white space in a row; tiktoken 0.14 panics somewhere between 600,000 and a million."""


class Unfit(Exception):
    """A tokenizer that a library cannot stand in for; says why."""


def tokenizers(backend: Tokenizer) -> Encode:
    """The backend itself, on all cores (rayon). `backend` is taken over, not copied."""
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True
    return lambda texts: [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]


def tiktoken(backend: Tokenizer) -> Encode:
    """The same by `tiktoken`, a thread a core. Raises `ImportError` without it, and `Unfit`."""
    from tiktoken import Encoding

    described = json.loads(backend.to_str())
    encoding = Encoding(
        "recipe", pat_str=_pattern(described), mergeable_ranks=_ranks(described["model"]), special_tokens={}
    )
    threads, own = os.cpu_count() or 1, tokenizers(Tokenizer.from_str(backend.to_str()))

    def encode(texts: Sequence[str]) -> list[list[int]]:
        for text in texts:
            text.encode()  # a lone surrogate is an error, as it is to the others; tiktoken would replace it
        blank = {number for number, text in enumerate(texts) if _has_blank(text)}
        rest = [text for number, text in enumerate(texts) if number not in blank]
        found = iter(encoding.encode_ordinary_batch(rest, num_threads=threads))
        return [own([text])[0] if number in blank else next(found) for number, text in enumerate(texts)]

    return encode


def _has_blank(text: str) -> bool:
    """Whether so much white space follows on itself that the regular expressions of tiktoken may run out of stack."""
    return len(text) >= BLANK and any(len(run[0]) >= BLANK for run in re.finditer(r"\s{64,}", text))


def gigatoken(backend: Tokenizer) -> Encode:
    """The same by `gigatoken`, on all cores. Raises `ImportError` without it, and `Unfit`."""
    from gigatoken import Tokenizer as Theirs

    described = json.loads(backend.to_str())
    described["added_tokens"] = [token for token in described["added_tokens"] if not token["special"]]
    try:
        theirs = Theirs.from_json(json.dumps({**described, "post_processor": None}))
    except (RuntimeError, ValueError) as error:
        raise Unfit(str(error).partition("\n")[0]) from error
    return lambda texts: theirs.encode_batch_list(list(texts))


LIBRARIES: Mapping[str, Callable[[Tokenizer], Encode]] = {
    "gigatoken": gigatoken,
    "tiktoken": tiktoken,
    "tokenizers": tokenizers,
}
"""The fastest first."""


# ── byte-level BPE, as tiktoken wants it ─────────────────────────────────────────────────────────────────────────


def _pattern(described: Mapping[str, Any]) -> str:
    """The regular expression that splits text. Raises `Unfit` where one expression is not all that is done to it."""
    if described["normalizer"] is not None:
        raise Unfit("it normalises text")
    if words := [token["content"] for token in described["added_tokens"] if not token["special"]]:
        raise Unfit(f"it has added words, such as {words[0]!r}")
    splitter = described["pre_tokenizer"] or {"type": "none"}
    parts = splitter.get("pretokenizers", [splitter])
    *before, last = parts
    if last["type"] == "ByteLevel" and not last["add_prefix_space"]:
        if last["use_regex"] and not before:
            return GPT2
        if not last["use_regex"] and len(before) == 1 and (found := _split(before[0])) is not None:
            return found
    raise Unfit(f"it splits text by {' and '.join(part['type'] for part in parts)}")


def _split(part: Mapping[str, Any]) -> str | None:
    """The expression of a `Split` that keeps every piece."""
    whole = part["type"] == "Split" and part["behavior"] == "Isolated" and not part["invert"]
    return part["pattern"].get("Regex") if whole else None


def _ranks(model: Mapping[str, Any]) -> dict[bytes, int]:
    """Bytes to ids, which must rise in the order of the merges: tiktoken merges by id."""
    if model["type"] != "BPE":
        raise Unfit(f"its model is {model['type']}")
    if odd := [key for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix") if model.get(key)]:
        raise Unfit(f"its model has {odd[0]}")
    letters, ids = _letters(), model["vocab"]
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
    merged = list(dict.fromkeys(left + right for left, right in pairs))
    if not (letters.keys() <= ids.keys() and all(letter in letters for token in merged for letter in token)):
        raise Unfit("its vocabulary is not of bytes")
    if sorted(merged, key=ids.__getitem__) != merged:
        raise Unfit("its ids are not in the order of its merges")
    return {bytes(letters[letter] for letter in token): ids[token] for token in [*letters, *merged]}


def _letters() -> dict[str, int]:
    """GPT-2's letters for bytes: what can be printed stands for itself, the others follow from U+0100 on."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(0x100 + place): byte for place, byte in enumerate(others)}
