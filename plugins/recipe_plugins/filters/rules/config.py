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


class FinewebQualityConfig(Config):
    """Thresholds of FineWeb (Penedo et al. 2024, section 3.6); a document that breaks one is removed."""

    preset: Literal["paper", "datatrove"] = "paper"
    words: Definition = by_preset(paper="whitespace", datatrove="unicode")
    strip: bool = by_preset(paper=True, datatrove=False)
    min_line_ends: Share = Field(default=0.12, description="share of lines that end in a mark that ends a sentence")
    short_line: int = Field(default=30, ge=0, description="characters of a short line, at most")
    max_short_lines: Share = 0.67
    max_duplicate_characters: Share = Field(default=0.01, description="share of characters in lines seen before")
    max_breaks: float = Field(default=0.3, ge=0, description="line breaks a word")


class C4Config(Config):
    """The rules of C4 (Raffel et al. 2020, section 2.2): lines that break one are taken out, some end the page.

    `paper` is as the paper and the code that made C4; the page's marks are looked for in the whole page. `datatrove`:
    in lines that no rule before took out.
    """

    preset: Literal["paper", "datatrove"] = "paper"
    min_words: int = by_preset(paper=5, datatrove=3)
    min_sentences: int = by_preset(paper=3, datatrove=5)
    end_marks: str = by_preset(paper='.?!"', datatrove=".?!\"'")
    need_end_mark: bool = Field(default=True, description="off in FineWeb; `...` is none")
    max_word: int = Field(default=1000, ge=1, description="characters of a line's longest word")
    drop_citations: bool = Field(default=True, description="take out `[1]`, `[edit]`, `[citation needed]`")
    drop_javascript: bool = True
    drop_policy: bool = Field(default=True, description="lines on cookies, privacy and terms of use")
    lorem_ipsum: bool = Field(default=True, description="such a page goes")
    curly_bracket: bool = Field(default=True, description="a page with `{` goes")
    whole_page: bool = by_preset(paper=True, datatrove=False)


class C4ParagraphsConfig(Config):
    """The rule of mC4 (Xue et al. 2021, section 3.1): enough lines that are long."""

    lines: int = Field(default=3, ge=1)
    min_characters: int = Field(default=200, ge=0, description="of each of so many lines")


class RefinedwebLinesConfig(Config):
    """The line rules of RefinedWeb (Penedo et al. 2023, appendix G.2) with the bounds of DCLM."""

    max_uppercase: Share = Field(default=0.5, description="share of a line's characters")
    max_numeric: Share = Field(default=0.999999, description="share of a line's characters but white space")
    min_words: int = Field(default=2, ge=0, description="of a line that is not empty")
    short_line: int = Field(default=10, ge=0, description="words of a line that phrases are taken out of, at most")
    max_removed: Share = Field(default=0.05, description="share of words; a document that loses more goes")
