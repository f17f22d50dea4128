"""What GGUF's types with blocks of 32 weights may lose, and what they lost.

A block has a scale d in fp16 and integers q (ggml-quants.c of github.com/ggml-org/ggml): a weight is d q, or d q + m
where m is the block's least, in fp16 too. So a weight is off by at most half a step d; with a sign and an even number
of integers, by a whole one at the end that has no integer of its own (-8 … 7). Rounding d and m to fp16 adds its share.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

BLOCK = 32
"""Weights that share a scale."""

HALF, LEAST = 2.0**-11, 2.0**-25
"""By how much fp16 rounds: as a share, and at least."""


@dataclass(frozen=True, slots=True)
class Type:
    """`steps` from 0 to a block's largest magnitude, or from its least to its largest where there is an `offset`.

    `reach` is how many of them a weight may be off by.
    """

    steps: int
    reach: float
    offset: bool

    def limit(self, weights: torch.Tensor) -> torch.Tensor:
        """By how much each of `weights` (rows, columns), fp32, may be off; (rows, columns / 32, 1)."""
        blocks = weights.reshape(len(weights), -1, BLOCK)
        top = blocks.abs().amax(dim=-1, keepdim=True)
        least = blocks.amin(dim=-1, keepdim=True)
        span = blocks.amax(dim=-1, keepdim=True) - least if self.offset else top
        rounded = (span + least.abs() if self.offset else span) * HALF + (self.steps + 1) * LEAST
        return span / self.steps * self.reach + rounded * 1.01  # which numpy's own fp32 sums are within


TYPES = {
    "q8_0": Type(steps=127, reach=0.5, offset=False),
    "q5_1": Type(steps=31, reach=0.5, offset=True),
    "q5_0": Type(steps=16, reach=1.0, offset=False),
    "q4_1": Type(steps=15, reach=0.5, offset=True),
    "q4_0": Type(steps=8, reach=1.0, offset=False),
}
"""By the names of `dtype`."""


@dataclass(slots=True)
class Loss:
    """Sums of squares over all quantised weights: of them, and of what they are off by."""

    of_weights: float = 0.0
    of_errors: float = 0.0

    def add(self, kind: str, weights: torch.Tensor, found: torch.Tensor) -> bool:
        """Count a tensor, fp32 (rows, columns); whether each weight of `found` is within the type's limit."""
        off = found - weights
        self.of_weights += float(weights.square().sum(dtype=torch.float64))
        self.of_errors += float(off.square().sum(dtype=torch.float64))
        return bool((off.abs().reshape(len(off), -1, BLOCK) <= TYPES[kind].limit(weights)).all())

    @property
    def relative(self) -> float:
        """The errors' root mean square, as a share of the weights'."""
        return float((self.of_errors / self.of_weights) ** 0.5) if self.of_weights else 0.0
