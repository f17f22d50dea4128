"""What a word is: two definitions, and how a text is split by the finer one without a regular expression's steps.

The one idea: a text becomes one byte a character that says its kind; where a word meets marks a space is put between
them, and white space parts the rest, as it does for the other definition. A text that is very short, very long or full
of different characters outside ASCII is split by the pattern itself, which gives the same words.
"""

from __future__ import annotations

import re

import numpy as np

from recipe_plugins.filters.marks import COMBINING
from recipe_plugins.filters.text import beyond_ascii

_COMBINING = "".join(sorted(COMBINING))
UNICODE_WORD = re.compile(rf"\w++(?:(?!\s)(?:[{_COMBINING}]++\w*+|[-'’]\w++))*+|[^\w\s]++")
"""Letters and digits with the combining marks after them, joined by single hyphens and apostrophes; runs of others."""
_ASCII_WORD = re.compile(r"\w++(?:[-'’]\w++)*+|[^\w\s]++")
"""The same where there is no combining mark, at twice the speed."""
LEAST, MOST, DIFFERENT = 300, 1_000_000, 64
"""Characters of a text that is split by kinds, and how many different ones outside ASCII it may have."""
SPACE, LETTER, JOINER, MARK, COMBINED = b" a-.\x80"
"""The kinds, each as one of its kind, but for combining marks: ASCII has none."""


def _kind(character: str) -> int:
    if character.isalnum() or character == "_":
        return LETTER
    if character in COMBINING:
        return COMBINED
    return SPACE if character.isspace() else JOINER if character in "-'’" else MARK


_KINDS = bytes(_kind(chr(code)) for code in range(128)) + bytes([COMBINED]) + bytes(127)


def unicode_words(text: str) -> list[str]:
    """The words of `UNICODE_WORD`, in their order."""
    kinds = _kinds(text)
    if kinds is None:
        return _found(text)
    word, space = _in_words(kinds), kinds == SPACE
    meet = (word[1:] != word[:-1]) & ~space[1:] & ~space[:-1]
    code, dtype = ("ascii", np.dtype(np.uint8)) if text.isascii() else ("utf-32-le", np.dtype("<u4"))
    places = np.arange(len(text))
    places[1:] += np.cumsum(meet)
    spaced = np.full(places[-1] + 1, SPACE, dtype)
    spaced[places] = np.frombuffer(text.encode(code, "surrogatepass"), dtype)
    return spaced.tobytes().decode(code, "surrogatepass").split()


def count_unicode_words(text: str) -> int:
    """How many words `unicode_words` finds; none becomes an object."""
    kinds = _kinds(text)
    if kinds is None:
        return len(_found(text))
    word = _in_words(kinds)
    runs = (word, (kinds != SPACE) & ~word)
    return sum(int(run[0]) + int(np.count_nonzero(run[1:] & ~run[:-1])) for run in runs)


def _found(text: str) -> list[str]:
    return (_ASCII_WORD if text.isascii() else UNICODE_WORD).findall(text)


def _kinds(text: str) -> np.ndarray | None:
    """(characters,) u8; None for a text that is not split by kinds."""
    if not LEAST <= len(text) <= MOST:
        return None
    if text.isascii():
        return np.frombuffer(text.encode("ascii").translate(_KINDS), np.uint8)
    others = set(beyond_ascii(text))
    if len(others) > DIFFERENT:
        return None
    for character in sorted(others):  # the one that is called COMBINED here is the first to go
        text = text.replace(character, chr(_kind(character)))
    return _combined(np.frombuffer(text.encode("latin-1").translate(_KINDS), np.uint8))


def _combined(kinds: np.ndarray) -> np.ndarray:
    """The kinds, where a combining mark is a letter after one, and another mark elsewhere."""
    combining = kinds == COMBINED
    if not combining.any():
        return kinds
    last = np.maximum.accumulate(np.where(combining, 0, np.arange(len(kinds))))
    return np.where(combining, np.where(kinds[last] == LETTER, LETTER, MARK), kinds).astype(np.uint8)


def _in_words(kinds: np.ndarray) -> np.ndarray:
    """(characters,) bool: letters and digits, and a joiner between two."""
    word = kinds == LETTER
    word[1:-1] |= (kinds[1:-1] == JOINER) & word[:-2] & word[2:]
    return word
