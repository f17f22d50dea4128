"""The learning rate as a factor of its peak: a linear warm-up, a stable phase, a decay of some shape.

Steps count from 0 and `step == total` is answered too. The first step of a warm-up of w has the factor 1/w; the first
of a decay still has 1, so that a run which branches off there has no jump; the step after the last would have `final`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from recipe_plugins.schedules.config import (
    ConstantConfig,
    CosineConfig,
    DecayConfig,
    InverseSqrtConfig,
    LinearConfig,
    SqrtConfig,
    WSDConfig,
)

Phased = ConstantConfig | InverseSqrtConfig

SHAPES: dict[str, Callable[[float], float]] = {
    "linear": lambda done: 1 - done,
    "sqrt": lambda done: 1 - math.sqrt(done),
    "cosine": lambda done: (1 + math.cos(math.pi * done)) / 2,
}
"""What is left of the way from the peak to the end, by the share of the decay that is done."""


class Phases:
    """Warm-up, stable, decay; every schedule here is one of these, but for the fall of `InverseSqrt`."""

    def __init__(self, config: Phased, final: float, shape: str) -> None:
        self.config, self.final, self.shape = config, final, SHAPES[shape]

    def factor(self, step: int, total: int) -> float:
        """The factor for `step` of `total`."""
        warmup, decay = self.config.lengths(total)
        if step < warmup:
            return (step + 1) / warmup
        if not decay or step < total - decay:
            return 1.0
        done = min(1.0, (step - (total - decay)) / decay)
        return self.final + (1 - self.final) * self.shape(done)

    def phase(self, step: int, total: int) -> str:
        """`warmup`, `stable` or `decay`."""
        warmup, decay = self.config.lengths(total)
        if step < warmup:
            return "warmup"
        return "decay" if decay and step >= total - decay else "stable"


class WSD(Phases):
    """Warm-up, stable, decay."""

    def __init__(self, config: WSDConfig) -> None:
        super().__init__(config, config.final, config.shape)


class Constant(Phases):
    """The peak, after a warm-up."""

    def __init__(self, config: ConstantConfig) -> None:
        super().__init__(config, 1.0, "linear")


class _Decay(Phases):
    shape_name: str

    def __init__(self, config: DecayConfig) -> None:
        super().__init__(config, config.final, self.shape_name)


class Cosine(_Decay):
    """Half a cosine."""

    shape_name = "cosine"

    def __init__(self, config: CosineConfig) -> None:
        super().__init__(config)


class Linear(_Decay):
    """A straight line."""

    shape_name = "linear"

    def __init__(self, config: LinearConfig) -> None:
        super().__init__(config)


class Sqrt(_Decay):
    """1 - sqrt."""

    shape_name = "sqrt"

    def __init__(self, config: SqrtConfig) -> None:
        super().__init__(config)


class InverseSqrt(Phases):
    """min(n / w, sqrt(w / n)) at the n-th step (from 1) after a warm-up of w: section 5.3's rate over its peak."""

    def __init__(self, config: InverseSqrtConfig) -> None:
        super().__init__(config, 0.0, "sqrt")

    def factor(self, step: int, total: int) -> float:
        """The factor for `step` of `total`; the last step of the warm-up has 1."""
        number, warmup = step + 1, max(1, self.config.lengths(total)[0])  # a share of few steps may round to none
        return min(number / warmup, math.sqrt(warmup / number))
