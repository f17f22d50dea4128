"""The config of `curation`: sources by domain, steps in order, and what is held out."""

from __future__ import annotations

import re
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

    domain: Annotated[tuple[str, ...], Field(min_length=1)]


class StepOptions(Config):
    """Keys that every step may have beside its filter's own."""

    only: Only | None = None


class SourceOptions(Config):
    """Keys that every source may have beside its own."""

    format: Annotated[Use[Format], Slot("format")] = "auto"  # type: ignore[assignment]
    limit: Annotated[Size, Field(gt=0)] | None = Field(
        default=None, description="bytes of text at most: the source's first documents, in its stable order"
    )


class CurationConfig(StageConfig):
    """`sources` and `steps` are ordered: of equal documents the one from the earlier source survives."""

    sources: Annotated[
        dict[str, Annotated[Use[Source], Slot("source", options=SourceOptions)]],
        Field(min_length=1, description="the key is the domain"),
    ]
    steps: dict[str, Annotated[Use[Filter | GlobalFilter], Slot("filter", options=StepOptions)]] = Field(
        default_factory=dict, description="the key is the step's name in the ledger"
    )
    heldout: Share = Field(default=0.05, lt=1, description="share of groups that no stage trains on")
    max_bad: Share = Field(default=0.01, description="share of a source's rows that may be unreadable")
    keep_removed: Literal["sample", "all"] = Field(
        default="sample", description="removed documents to keep: some for each step, domain and reason, or all"
    )

    @model_validator(mode="after")
    def _names(self) -> CurationConfig:
        for name in [*self.sources, *self.steps]:
            if not re.fullmatch(r"\w[\w.-]*", name):
                raise ValueError(f"{name!r} becomes a folder's name: letters, digits, _, - and . only")
        for step, use in self.steps.items():
            for domain in self.domains_of(use):
                if domain not in self.sources:
                    raise ValueError(
                        f"steps.{step}.only.domain: no source is called {domain!r}; "
                        + suggest(domain, self.sources, noun="domains of this stage")
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

    def size(self, use: Use[Source]) -> int | None:
        """Bytes that a source gives at most, where that is cheap to know."""
        assert isinstance(use.options, SourceOptions)
        measure = getattr(use.config, "size", None)
        sizes = [size for size in (measure() if measure else None, use.options.limit) if size is not None]
        return min(sizes, default=None)
