"""Documents by their length."""

from __future__ import annotations

from recipe_plugins.filters.rules.config import LengthConfig
from recipe_plugins.filters.text import text_of
from recipe_runner import Record, Verdict


class Length:
    """Keeps what is within all bounds; a bound itself is."""

    def __init__(self, config: LengthConfig) -> None:
        self._bounds = [(name[:3], name[4:], bound) for name, bound in config if bound is not None]

    def judge_one(self, record: Record) -> Verdict:
        """The first bound that is broken is the reason."""
        text = text_of(record)
        scores = {"characters": len(text), "words": len(text.split()), "bytes": record.size}
        for kind, unit, bound in self._bounds:
            if scores[unit] < bound if kind == "min" else scores[unit] > bound:
                return Verdict(False, f"{'few' if kind == 'min' else 'many'}_{unit}", scores=scores)
        return Verdict(True, scores=scores)
