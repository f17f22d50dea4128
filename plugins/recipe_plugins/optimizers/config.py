"""Settings of the optimizers, and the bytes of state that they keep."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from recipe_runner import Config

Fraction = Annotated[float, Field(ge=0, lt=1)]


class AdamWConfig(Config):
    """AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101, algorithm 2)."""

    lr: Annotated[float, Field(gt=0, description="the peak; the schedule is a factor on it")] = 1e-3
    betas: tuple[Fraction, Fraction] = (0.9, 0.95)
    eps: Annotated[float, Field(gt=0)] = 1e-8
    weight_decay: Annotated[float, Field(ge=0, description="of matrices and the head")] = 0.1

    def state_bytes(self, parameters: int) -> int:
        """Two fp32 moments a parameter."""
        return 8 * parameters


class PagedAdamW8bitConfig(AdamWConfig):
    """AdamW with block-wise 8-bit moments (Dettmers et al. 2022, arXiv:2110.02861)."""

    def state_bytes(self, parameters: int) -> int:
        """Two 8-bit moments a parameter and two fp32 scales a block of 256."""
        return 2 * parameters + 8 * -(-parameters // 256)
