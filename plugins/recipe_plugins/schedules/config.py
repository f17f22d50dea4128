"""Settings of the schedules.

A length is a number of steps (a whole number), a share of all steps (0.05, 5%; 1.0 is all of them), or tokens: the
steps that read as many, which the stage knows.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from recipe_runner import Config, Count, RecipeError, Share


class Tokens(Config):
    """A length in tokens, padding and prompts included: `{tokens: 375M}`."""

    tokens: Annotated[Count, Field(gt=0)]


Length = Annotated[int, Field(ge=0)] | Share | Tokens


def _in_steps(length: Length, total: int) -> int:
    """A length as steps: whole numbers are steps, fractions (1.0 included) a share of `total`."""
    assert not isinstance(length, Tokens), "the stage makes steps of tokens"
    return length if isinstance(length, int) else round(length * total)


def _both(warmup: Length, decay: Length | None, total: int) -> tuple[int, int]:
    """The steps of warm-up and decay; `decay` is a length, or `None` for all that the warm-up leaves.

    Raises `RecipeError` where they are more than `total`.
    """
    first = _in_steps(warmup, total)
    last = max(0, total - first) if decay is None else _in_steps(decay, total)
    if isinstance(warmup, float) and isinstance(decay, float):
        last = min(last, total - first)  # both may have been rounded up
    if first + last > total:
        raise RecipeError(
            f"a warm-up of {first} steps and a decay of {last} do not fit into {total} steps",
            next="shorten them, write them as shares (warmup: 0.05), or raise the budget",
            field=["schedule"],
        )
    return first, last


class ConstantConfig(Config):
    """The peak, after a linear warm-up."""

    stable: ClassVar[bool] = True
    """Whether there may be a phase at the peak, which `anneal` goes on from."""

    warmup: Annotated[Length, Field(description="steps, a share of all, or {tokens: N}")] = 0

    def lengths(self, total: int) -> tuple[int, int]:
        """The steps of warm-up and decay, of `total`; no length is in tokens any more. Raises `RecipeError` where they
        do not fit."""
        return _both(self.warmup, 0, total)


class DecayConfig(ConstantConfig):
    """A decay from the end of the warm-up to the end of training."""

    stable: ClassVar[bool] = False

    final: Annotated[Share, Field(description="the last rate, as a share of the peak")] = 0.0

    def lengths(self, total: int) -> tuple[int, int]:
        """See `ConstantConfig`."""
        return _both(self.warmup, None, total)


class CosineConfig(DecayConfig):
    """Half a cosine (Loshchilov & Hutter 2017, arXiv:1608.03983)."""


class LinearConfig(DecayConfig):
    """A straight line."""


class SqrtConfig(DecayConfig):
    """1 - sqrt (Hägele et al. 2024, arXiv:2405.18392, section 3)."""


class WSDConfig(DecayConfig):
    """Warm-up, stable, decay (Hu et al. 2024, arXiv:2404.06395, section 4)."""

    stable: ClassVar[bool] = True

    decay: Annotated[Length, Field(description="the last steps, a share of all, or {tokens: N}; 0 stays stable")] = 0
    shape: Literal["linear", "sqrt", "cosine"] = "linear"

    @model_validator(mode="after")
    def _no_more_than_all(self) -> WSDConfig:
        both = isinstance(self.warmup, float) and isinstance(self.decay, float)
        if both and self.warmup + self.decay > 1 + 1e-9:  # type: ignore[operator]
            raise ValueError(f"a warm-up of {self.warmup:g} and a decay of {self.decay:g} are more than all steps")
        return self

    def lengths(self, total: int) -> tuple[int, int]:
        """See `ConstantConfig`."""
        return _both(self.warmup, self.decay, total)


class InverseSqrtConfig(Config):
    """A fall with the inverse square root of the step (Vaswani et al. 2017, arXiv:1706.03762, section 5.3)."""

    stable: ClassVar[bool] = False

    warmup: Annotated[
        Length, Field(description="steps, a share of all, or {tokens: N}; how slow the fall is follows from it")
    ]

    @model_validator(mode="after")
    def _some(self) -> InverseSqrtConfig:
        if not self.warmup:
            raise ValueError("inverse-sqrt needs a warm-up: its length is the scale of the fall")
        return self

    def lengths(self, total: int) -> tuple[int, int]:
        """See `ConstantConfig`."""
        return _both(self.warmup, None, total)
