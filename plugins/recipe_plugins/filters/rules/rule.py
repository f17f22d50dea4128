"""Rules as data: a statistic, a comparison, a threshold.

The first rule that a document breaks is its reason; all statistics are its scores, rounded only after the comparison.
A bound itself is kept: only what is below a minimum or above a maximum is removed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from recipe_runner import Config, Verdict

DIGITS = 6
"""Decimals of a score."""


class Rule(NamedTuple):
    """`threshold` is the name of the config's field."""

    reason: str
    statistic: str
    bound: Literal["min", "max"]
    threshold: str


def judged(rules: Sequence[Rule], config: Config, statistics: Mapping[str, float]) -> Verdict:
    """The verdict of the rules in their order."""
    scores = {name: round(float(value), DIGITS) for name, value in statistics.items()}
    for reason, statistic, bound, name in rules:
        threshold, value = getattr(config, name), statistics[statistic]
        if value < threshold if bound == "min" else value > threshold:
            return Verdict(False, reason, scores=scores)
    return Verdict(True, scores=scores)


def share(part: float, whole: float) -> float:
    """A share of a whole; of nothing 0."""
    return float(part) / float(whole) if whole else 0.0
