"""The config of `curation`: sources by domain, steps in order, and what is held out."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from recipe_runner import (
    Config,
    Corpus,
    Estimate,
    Filter,
    Format,
    GlobalFilter,
    Known,
    RecipeError,
    Share,
    Size,
    Slot,
    Source,
    StageConfig,
    Use,
    suggest,
)


class Only(Config):
    """What a step is applied to; all else passes it untouched and uncounted."""

    domain: Annotated[tuple[str, ...], Field(min_length=1, description="names of sources")]


class StepOptions(Config):
    """Keys that every step may have beside its filter's own."""

    only: Only | None = Field(default=None, description="what the step is applied to; none: all that comes")
    keep_scores: bool = Field(default=False, description="into the documents' `meta.scores`, under the step's name")


class SourceOptions(Config):
    """Keys that every source may have beside its own."""

    format: Annotated[Use[Format], Slot("format"), Field(description="which columns a document is made of")] = "auto"  # type: ignore[assignment]
    limit: Annotated[Size, Field(gt=0)] | None = Field(
        default=None, description="bytes of text at most: the source's first documents, in its stable order"
    )


class MixConfig(Config):
    """How much of each domain is kept of what may be trained on. Shares: `weights`, else the domains' sizes."""

    weights: dict[str, Annotated[float, Field(gt=0)]] = Field(
        default_factory=dict, description="of every domain; their sum does not matter; none: as much as each holds"
    )
    unit: Literal["bytes", "tokens"] = Field(default="bytes", description="of `weights` and `budget`")
    bytes_per_token: Annotated[float, Field(gt=0)] | dict[str, Annotated[float, Field(gt=0)]] = 4.0
    budget: Annotated[Size, Field(gt=0)] | None = Field(
        default=None, description="of all domains together; none: the largest that no domain is too small for"
    )
    temperature: float = Field(default=1.0, gt=0, description="shares to the power 1/temperature: above 1 flatter")
    repeat: float = Field(default=1.0, ge=1, description="how often a document may come at most, on average")
    upsample: dict[str, Annotated[float, Field(ge=1)]] = Field(
        default_factory=dict, description="a domain's size counts this often; without a budget it comes as often"
    )

    @model_validator(mode="after")
    def _one(self) -> MixConfig:
        if self.weights and self.upsample:
            what = "`upsample` scales the domains' sizes; beside `weights` give `repeat`"
            raise RecipeError(what, field=["upsample"])
        return self

    def ratio(self, domain: str) -> float:
        """Bytes of a token."""
        return self.bytes_per_token[domain] if isinstance(self.bytes_per_token, dict) else self.bytes_per_token

    def check(self, domains: Iterable[str]) -> None:
        """Raise `RecipeError` for a domain that is missing or not there."""
        ratios = self.bytes_per_token if isinstance(self.bytes_per_token, dict) else {}
        for name, given in {"weights": self.weights, "upsample": self.upsample, "bytes_per_token": ratios}.items():
            for domain in given:
                if domain not in (known := tuple(domains)):
                    raise unknown(domain, known, "mix", name, domain)
            if given and name != "upsample" and (missing := set(domains) - set(given)):
                raise RecipeError(
                    f"nothing is said of {min(missing)!r}", next="say it of every domain", field=["mix", name]
                )


def unknown(domain: str, known: Iterable[str], *field: str | int) -> RecipeError:
    """A domain that no source is called."""
    hint = suggest(domain, known, noun="domains of this stage")
    return RecipeError(f"no source is called {domain!r}", next=hint, field=field)


class CurationConfig(StageConfig):
    """`sources` and `steps` are ordered: of equal documents the one from the earlier source survives."""

    sources: Annotated[
        dict[str, Annotated[Use[Source], Slot("source", options=SourceOptions)]],
        Field(min_length=1, description="the key is the domain"),
    ]
    steps: dict[str, Annotated[Use[Filter | GlobalFilter], Slot("filter", options=StepOptions)]] = Field(
        default_factory=dict, description="the key is the step's name in the ledger"
    )
    mix: MixConfig | None = Field(default=None, description="after all steps; none: everything is kept")
    heldout: Share = Field(default=0.05, lt=1, description="share of groups that no stage trains on")
    max_bad: Share = Field(default=0.01, description="share of a source's rows that may be unreadable")
    keep_removed: Literal["sample", "all"] = Field(
        default="sample", description="removed documents to keep: some for each step, domain and reason, or all"
    )

    @model_validator(mode="after")
    def _names(self) -> CurationConfig:
        for name in [*self.sources, *self.steps]:
            if not re.fullmatch(r"\w[\w.-]*", name):
                part = "sources" if name in self.sources else "steps"
                what = f"{name!r} becomes a folder's name: letters, digits, _, - and . only"
                raise RecipeError(what, field=[part, name])
        for step, use in self.steps.items():
            learned = use.config.taught_by() if hasattr(use.config, "taught_by") else {}
            for keys, domains in {("only", "domain"): self.domains_of(use), **learned}.items():
                for number, domain in enumerate(domains):
                    if domain not in self.sources:
                        raise unknown(domain, self.sources, "steps", step, *keys, number)
        if self.mix:
            self.mix.check(self.sources)
            if "mix" in self.steps:
                raise RecipeError(
                    "the ledger calls the mixture `mix`; give the step another name", field=["steps", "mix"]
                )
        return self

    def domains_of(self, step: Use[Any]) -> tuple[str, ...]:
        """The domains that a step is applied to."""
        assert isinstance(step.options, StepOptions)
        return step.options.only.domain if step.options.only else tuple(self.sources)

    def produces(self) -> type[Corpus]:
        """A corpus."""
        return Corpus

    def estimate(self, known: Known) -> Estimate:
        """At most what the sources hold, where that is cheap to know; what the steps remove is not."""
        sizes = {domain: self.size(use) for domain, use in self.sources.items()}
        domains = {domain: {"train": {"bytes": size}} for domain, size in sizes.items() if size is not None}
        total = None if None in sizes.values() else sum(size or 0 for size in sizes.values())
        notes = [f"bytes of {domain} unknown before it is read" for domain, size in sizes.items() if size is None]
        return Estimate(disk=total, facts={"domains": domains}, notes=notes)

    @staticmethod
    def keeps_scores(step: Use[Any]) -> bool:
        """Whether a step leaves its scores in the documents."""
        assert isinstance(step.options, StepOptions)
        return step.options.keep_scores

    def size(self, use: Use[Source]) -> int | None:
        """Bytes that a source gives at most, where that is cheap to know."""
        assert isinstance(use.options, SourceOptions)
        measure = getattr(use.config, "size", None)
        sizes = [size for size in (measure() if measure else None, use.options.limit) if size is not None]
        return min(sizes, default=None)
