"""The configs of the filters. A threshold is config; what it is compared with is named in the filter's module."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

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
    """Of documents that are nearly equal the one with the lowest (source, id) survives.

    By default candidates are copies if their Jaccard index itself is 0.7 or more: no copy above it is lost to an
    estimate's error, and none below it is merged, for 4 bytes a word on disk meanwhile. `threshold: 0` takes every
    candidate, as FineWeb did: a few pairs far less alike go too (at an index of 0.5 one in 20). `verify: false`
    compares signatures, half a kilobyte a document on disk, and loses some copies just above the threshold.
    """

    ngram: int = Field(default=5, ge=1, description="words of a shingle")
    bands: int = Field(default=14, ge=1)
    rows: int = Field(default=8, ge=1, description="hashes a band; a pair is a candidate with 1-(1-s^rows)^bands")
    threshold: Share = Field(default=0.7, description="the Jaccard index s that copies have; 0: any candidate is one")
    verify: bool = Field(
        default=True, description="compare s itself; false: the share of hashes that agree, an estimate of it"
    )
