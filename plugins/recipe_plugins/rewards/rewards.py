"""The built-in rewards: each from 0 to 1, of an answer's text alone."""

from __future__ import annotations

import re
from collections.abc import Sequence

from recipe_plugins.rewards.config import Completion, ExactMatchConfig, FormatConfig, LengthConfig


class ExactMatch:
    """See `ExactMatchConfig`."""

    def __init__(self, config: ExactMatchConfig) -> None:
        self._within = re.compile(config.within) if config.within else None

    def rewards(self, completions: Sequence[Completion]) -> list[float]:
        """1 or 0."""
        return [float(c.ended and self._part(c.text) == self._part(c.expected) is not None) for c in completions]

    def _part(self, text: str) -> str | None:
        """What is compared; None where it is not there."""
        if self._within is None:
            return text.strip()
        found = self._within.search(text)
        return found[1 if self._within.groups else 0].strip() if found else None


class Format:
    """See `FormatConfig`."""

    def __init__(self, config: FormatConfig) -> None:
        self._pattern = re.compile(config.pattern)

    def rewards(self, completions: Sequence[Completion]) -> list[float]:
        """1 or 0; an answer that was cut off has no shape."""
        return [float(c.ended and self._pattern.fullmatch(c.text.strip()) is not None) for c in completions]


class Length:
    """See `LengthConfig`."""

    def __init__(self, config: LengthConfig) -> None:
        self._at_most = config.at_most

    def rewards(self, completions: Sequence[Completion]) -> list[float]:
        """From 1, where an answer is short enough, in a straight line to 0 at twice the length."""
        return [min(1.0, max(0.0, 2 - len(c.text) / self._at_most)) if c.ended else 0.0 for c in completions]
