"""Conditions on scores: `quality >= 0.8 and toxicity < 0.1 or copies == 1`.

    condition  = all ("or" all)*
    all        = comparison ("and" comparison)*
    comparison = name (">=" | "<=" | ">" | "<" | "==" | "!=") number

There are no brackets, and nothing is ever executed.
"""

from __future__ import annotations

import operator
import re
from typing import NamedTuple

NAME = r"[A-Za-z_][\w-]*(?:\.[A-Za-z_][\w-]*)*"
COMPARISON = re.compile(rf"\s*({NAME})\s*(>=|<=|==|!=|>|<)\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*")
OPERATORS = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt, "==": operator.eq,
             "!=": operator.ne}  # fmt: skip


class Comparison(NamedTuple):
    """A score against a number."""

    name: str
    sign: str
    bound: float

    def holds(self, value: float) -> bool:
        """Whether a value is on the right side of the bound."""
        return bool(OPERATORS[self.sign](value, self.bound))


Condition = tuple[tuple[Comparison, ...], ...]
"""One of these groups must hold; a group holds if all of it does."""


def parsed(text: str) -> Condition:
    """Raises `ValueError` that says which part is no comparison."""
    groups = [re.split(r"\band\b", group) for group in re.split(r"\bor\b", text)]
    return tuple(tuple(_comparison(part) for part in group) for group in groups)


def _comparison(part: str) -> Comparison:
    match = COMPARISON.fullmatch(part)
    if match is None:
        raise ValueError(f"{part.strip()!r} is no comparison such as `quality >= 0.8`; join several by `and` or `or`")
    return Comparison(match[1], match[2], float(match[3]))
