"""Settings of the rewards, what they are given, and the protocol of their kind. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Protocol

from pydantic import Field

from recipe_plugins.filters.rules.config import Pattern
from recipe_runner import Config, Record


@dataclass(frozen=True, slots=True)
class Completion:
    """An answer that the model gave to `prompt` messages of a `record`, and whether it ended it itself.

    `expected` is the answer that the record has in its place.
    """

    record: Record
    text: str
    ended: bool
    expected: str


class Reward(Protocol):
    """Pure: the same for an answer whatever stands beside it."""

    def rewards(self, completions: Sequence[Completion]) -> Sequence[float]:
        """What each answer is worth, a finite number, in order."""
        ...


class RewardOptions(Config):
    """What a recipe adds to a reward."""

    weight: Annotated[float, Field(description="of this reward in their sum")] = 1.0


class ExactMatchConfig(Config):
    """The answer of the data, but for white space at both ends, and ended by the model."""

    within: Annotated[
        Pattern, Field(description="compare what the first group of this finds in both; empty: the whole answers")
    ] = ""


class FormatConfig(Config):
    """An answer that is, as a whole, what a regular expression says; `.` is any character but a line's end."""

    pattern: Pattern


class LengthConfig(Config):
    """Characters that an answer may have; one of twice as many, or that doesn't end, is worth nothing."""

    at_most: Annotated[int, Field(ge=1, description="characters")]
