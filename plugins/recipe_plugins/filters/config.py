"""The configs of the filters. A threshold is config; what it is compared with is named in the filter's module."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from recipe_plugins.filters.rules.config import Definition, by_preset
from recipe_runner import Config, Share


class GopherQualityConfig(Config):
    """Thresholds of Rae et al. 2021 (Gopher), appendix A1.1; a document that breaks one is removed.

    `words` are what white space parts (as in the paper), or runs of letters and digits, and of marks.
    """

    preset: Literal["paper", "datatrove", "dolma"] = "paper"
    words: Definition = by_preset(paper="whitespace", datatrove="unicode", dolma="whitespace")
    min_words: int = Field(default=50, ge=0)
    max_words: int = Field(default=100_000, ge=1)
    min_mean_word_length: float = Field(default=3.0, ge=0)
    max_mean_word_length: float = Field(default=10.0, ge=0)
    max_hashes: float = Field(default=0.1, ge=0, description="`#` a word")
    max_ellipses: float = Field(default=0.1, ge=0, description="`...` and `…` a word")
    max_bullet_lines: Share = 0.9
    max_ellipsis_lines: Share = 0.3
    min_letter_words: Share = Field(default=0.8, description="share of words with a letter")
    min_stop_words: int = Field(default=2, ge=0, le=8, description="different ones of the eight")


class ExactDedupConfig(Config):
    """Of documents with equal text the one with the lowest (source, id) survives."""

    compare: Literal["text", "spaces", "letters"] = Field(
        default="spaces",
        description="the text as it is; with white space run together, in Unicode's NFC; or its lower-case words alone",
    )


class MinHashDedupConfig(Config):
    """Of documents that are nearly equal the one with the lowest (source, id) survives."""

    ngram: int = Field(default=5, ge=1, description="words of a shingle")
    bands: int = Field(default=14, ge=1)
    rows: int = Field(default=8, ge=1, description="hashes a band; a pair is a candidate with 1-(1-s^rows)^bands")
    threshold: Share = Field(
        default=0.7, description="share of hashes that must agree, an estimate of the Jaccard index s; 0: any candidate"
    )
    verify: bool = Field(
        default=False, description="compare s itself with the threshold: the n-grams' hashes lie on disk meanwhile"
    )

    @model_validator(mode="after")
    def _against_something(self) -> MinHashDedupConfig:
        if self.verify and not self.threshold:
            raise ValueError("verify: true needs a threshold above 0; 0 takes any candidate")
        return self
