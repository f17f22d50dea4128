"""The configs of the filters that judge by rules. `preset` says whose definition a filter follows, with its thresholds;
a threshold that is written counts before the preset's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

from pydantic import Field

from recipe_runner import Config, Share

Definition = Literal["whitespace", "unicode"]


def by_preset(**values: Any) -> Any:
    """A field whose default depends on the `preset`, a field before it; the first is that of the preset's default."""
    return Field(default_factory=_chosen(values))


def _chosen(values: Mapping[str, Any]) -> Callable[[dict[str, Any]], Any]:
    return lambda data: values.get(data.get("preset", ""), next(iter(values.values())))


class GopherRepetitionConfig(Config):
    """Thresholds of Rae et al. 2021 (Gopher), table A1; a document that is above one is removed."""

    preset: Literal["paper", "datatrove", "dolma"] = "paper"
    words: Definition = by_preset(paper="whitespace", datatrove="unicode", dolma="whitespace")
    max_duplicate_paragraphs: Share = 0.3
    max_duplicate_paragraph_characters: Share = 0.2
    max_duplicate_lines: Share = 0.3
    max_duplicate_line_characters: Share = by_preset(paper=0.2, datatrove=0.2, dolma=0.3)
    max_top_2_gram: Share = 0.2
    max_top_3_gram: Share = 0.18
    max_top_4_gram: Share = 0.16
    max_duplicate_5_grams: Share = 0.15
    max_duplicate_6_grams: Share = 0.14
    max_duplicate_7_grams: Share = 0.13
    max_duplicate_8_grams: Share = 0.12
    max_duplicate_9_grams: Share = 0.11
    max_duplicate_10_grams: Share = 0.1
