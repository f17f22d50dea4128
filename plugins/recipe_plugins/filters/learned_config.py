"""The configs of filters that learn from files: classifiers, and what removes evaluation sets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from recipe_runner import Config, Execution, File, RecipeError, Share, Size


class Examples(Config):
    """Texts of one kind, from files and from domains of the stage."""

    files: tuple[Annotated[str, File()], ...] = Field(
        default=(), description="JSON Lines with `text`, or text with one example a line"
    )
    domains: tuple[str, ...] = Field(default=(), description="all documents of these domains that came so far")


class Keep(Config):
    """Which scores are good enough; one of these."""

    above: float | None = Field(default=None, description="this score or more")
    below: float | None = Field(default=None, description="less than this score")
    top: Share | None = Field(default=None, description="this share of the documents, rounded up: the highest scores")
    int_score: int | None = Field(default=None, ge=0, le=5, description="the score rounded, as FineWeb-Edu has it")

    @model_validator(mode="after")
    def _one(self) -> Keep:
        if sum(value is not None for _, value in self) != 1:
            raise ValueError("`keep` is `all`, or one of `above`, `below`, `top`, `int_score`")
        return self


def _over_all(keep: Any) -> Any:
    """A fork's `{above: 0.5}` over `all` arrives with `use: all`: layers take a word under a block for a component."""
    if isinstance(keep, Mapping) and keep.get("use") == "all":
        return {key: value for key, value in keep.items() if key != "use"} or "all"
    return keep


class ClassifierConfig(Config):
    """A model by path, or one that is trained on `positives` and `negatives`."""

    keep: Annotated[Literal["all"] | Keep, BeforeValidator(_over_all)] = Field(
        description="`all` scores the documents and removes none"
    )
    positives: Examples = Field(default_factory=dict)  # type: ignore[assignment,arg-type]
    negatives: Examples = Field(default_factory=dict)  # type: ignore[assignment,arg-type]
    model: Annotated[str | None, File()] = Field(
        default=None, description="a fastText .bin or .ftz, or the weights in the folder of a transformers classifier"
    )
    label: str | None = Field(default=None, description="of a loaded model: whose probability is the score")
    head: Size = Field(default=4_000, gt=0, description="characters of a document that the model sees, from its start")
    examples: int = Field(default=10_000, ge=5, description="of each kind at most, those with the lowest hashes")

    @model_validator(mode="after")
    def _taught(self) -> ClassifierConfig:
        given = [bool(side.files or side.domains) for side in (self.positives, self.negatives)]
        if given != [self.model is None] * 2:
            raise ValueError("give either `model`, or both `positives` and `negatives`")
        if both := set(self.positives.domains) & set(self.negatives.domains):
            raise RecipeError(f"{min(both)!r} is among the positives and the negatives", field=["negatives", "domains"])
        return self

    def taught_by(self) -> dict[tuple[str, str], tuple[str, ...]]:
        """The domains that it is trained on, by the keys that name them."""
        return {("positives", "domains"): self.positives.domains, ("negatives", "domains"): self.negatives.domains}


class DecontaminateConfig(Config):
    """A document that shares an n-gram with one of the evaluation sets is removed."""

    files: tuple[Annotated[str, File()], ...] = Field(min_length=1, description="JSON Lines, or text, an item a line")
    fields: tuple[str, ...] = Field(default=(), description="of a JSON row; none: every string in it")
    ngram: int = Field(default=13, ge=2, description="words in a row")
    shortest: int = Field(default=8, ge=2, description="words from which on a shorter item is sought whole")
    matches: int = Field(default=1, ge=1, description="n-grams from which on a document is contaminated")


class LineDedupConfig(Config):
    """Lines that stand in several documents are taken out of them."""

    documents: int = Field(default=3, ge=2, description="documents from which on a line is boilerplate")
    min_characters: int = Field(default=20, ge=1, description="of a line's words; a shorter line is left alone")
    keep: Literal["first", "none"] = Field(default="first", description="whether one document keeps the line")


class SubstringDedupConfig(Config):
    """Spans that came before are cut out of the texts."""

    length: Size = Field(default=200, ge=16, description="bytes, or tokens, from which on a span counts")
    tokeniser: Annotated[str | None, File()] = Field(
        default=None, description="a tokenizer.json: spans are of its tokens; none: of bytes, 200 are about 50 tokens"
    )
    memory: Annotated[Size, Execution(), Field(ge=1_000_000)] = 1_000_000_000
