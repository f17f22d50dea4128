"""The configs of the filters that judge by rules. `preset` says whose definition a filter follows, with its thresholds;
a threshold that is written counts before the preset's."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from recipe_plugins.filters.rules.where import parsed
from recipe_runner import Config, Count, File, RecipeError, Share, Size

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
    count_citations: bool = by_preset(paper=False, datatrove=True)
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


class LengthConfig(Config):
    """Bounds of a document; at least one."""

    min_characters: Count | None = None
    max_characters: Count | None = None
    min_words: Count | None = Field(default=None, description="as white space parts them")
    max_words: Count | None = None
    min_bytes: Size | None = Field(default=None, description="of UTF-8")
    max_bytes: Size | None = None

    @model_validator(mode="after")
    def _some(self) -> LengthConfig:
        given = {name: value for name, value in self if value is not None}
        if not given:
            raise ValueError(f"give at least one of {', '.join(type(self).model_fields)}")
        for name, low in given.items():
            high = given.get(f"max_{name[4:]}")
            if name.startswith("min_") and high is not None and low > high:
                raise RecipeError(
                    f"{name} ({low}) is above max_{name[4:]} ({high}): nothing would be kept", field=[name]
                )
        return self


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from None
    return text


Pattern = Annotated[str, AfterValidator(_pattern)]
"""A regular expression of Python's."""


class RegexConfig(Config):
    """A pattern in the syntax of Python's `re`, looked for anywhere in the text."""

    pattern: Pattern = Field(min_length=1)
    action: Literal["drop", "keep", "replace"] = Field(
        description="drop or keep documents that hold it, or replace what matches"
    )
    replacement: str = Field(default="", description=r"what matches becomes this; `\1` is the first group")

    @model_validator(mode="after")
    def _used(self) -> RegexConfig:
        if self.replacement and self.action != "replace":
            what = f"`replacement` is for action: replace; this is action: {self.action}"
            raise RecipeError(what, field=["replacement"])
        if self.action == "replace":
            try:
                re.compile(self.pattern + "|").sub(self.replacement, "")
            except (re.error, IndexError) as error:
                raise RecipeError(f"`replacement` does not fit the pattern: {error}", field=["replacement"]) from None
        return self


Letters = Annotated[str, Field(pattern=r"^[A-Za-z0-9]+$")]
"""What addresses are parted into; anything else could never be met."""


class UrlConfig(Config):
    """What an address may not hold; lists are files of one entry a line, `#` begins a comment."""

    field: str = Field(default="url", description="of the record's `meta`")
    domains: Annotated[str, File()] | None = Field(default=None, description="hosts, with all below them")
    urls: Annotated[str, File()] | None = Field(default=None, description="whole addresses")
    words: tuple[Letters, ...] = Field(default=(), description="one of these as a whole part of the address")
    soft_words: tuple[Letters, ...] = Field(default=(), description="as many as `min_soft_words` of these")
    min_soft_words: int = Field(default=2, ge=1)
    parts: tuple[Letters, ...] = Field(default=(), description="one of these anywhere in the letters and digits")
    missing: Literal["error", "keep", "remove"] = Field(default="error", description="of a record without an address")

    @model_validator(mode="after")
    def _some(self) -> UrlConfig:
        if not (self.domains or self.urls or self.words or self.soft_words or self.parts):
            raise ValueError("give at least one of domains, urls, words, soft_words, parts")
        return self


def _language(code: str) -> str:
    if not re.fullmatch(r"[A-Za-z]{2,3}(_[A-Za-z]+)?", code):
        raise ValueError(f"a code of a language is expected, such as `en`, or `eng_Latn` for GlotLID; got {code!r}")
    return code


class LanguageConfig(Config):
    """Keeps documents in one of `languages`."""

    languages: tuple[Annotated[str, AfterValidator(_language)], ...] = Field(
        min_length=1, description="as the model calls them: `en` (py3langid, lid.176), `eng_Latn` (GlotLID)"
    )
    min_score: Share = Field(default=0.65, description="the model's probability of the language")
    model: Annotated[str, File()] | None = Field(
        default=None, description="a fastText model; none: what py3langid carries"
    )


PiiKind = Literal["email", "ip", "phone", "card"]


class PiiConfig(Config):
    """What is replaced; a conversation that holds any of it is removed, as `pii`."""

    kinds: tuple[PiiKind, ...] = Field(default=("email", "ip", "phone", "card"), min_length=1)


class ToxicityConfig(Config):
    """A list of words or phrases, one a line, `#` begins a comment; case does not count. Give one bound or both."""

    words: Annotated[str, File()]
    max_count: int | None = Field(default=None, ge=0, description="of all matches")
    max_share: Share | None = Field(default=None, description="matches a word")

    @model_validator(mode="after")
    def _some(self) -> ToxicityConfig:
        if self.max_count is None and self.max_share is None:
            raise ValueError("give max_count or max_share; `max_count: 0` removes every document with such a word")
        return self


def _condition(text: str) -> str:
    parsed(text)
    return text


class ScoreConfig(Config):
    """Either a condition on each document, or the best of all."""

    where: Annotated[str, AfterValidator(_condition)] | None = Field(
        default=None, description="such as `quality >= 0.8 and answer_words >= 5`"
    )
    top: Annotated[Share, Field(gt=0)] | None = Field(default=None, description="share of documents to keep")
    by: str | None = Field(default=None, description="the score of `top`")

    @model_validator(mode="after")
    def _one(self) -> ScoreConfig:
        if (self.where is None) == (self.top is None):
            raise ValueError("give either `where` (a condition) or `top` (a share), not both or none")
        if (self.by is None) != (self.top is None):
            raise ValueError("`top` and `by` belong together: top: 0.2, by: quality")
        return self
