"""Settings of the optimizers, and the bytes of state that they keep for a number of trained parameters."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

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


class AdamW8bitConfig(AdamWConfig):
    """AdamW with block-wise 8-bit moments (Dettmers et al. 2022, arXiv:2110.02861)."""

    def state_bytes(self, parameters: int) -> int:
        """Two 8-bit moments a parameter and two fp32 scales a block of 256."""
        return 2 * parameters + 8 * -(-parameters // 256)


class PagedAdamW8bitConfig(AdamW8bitConfig):
    """The same, with the moments in paged memory."""


class MuonConfig(Config):
    """Muon for matrices (Jordan et al. 2024), AdamW for embeddings, the head and vectors.

    `adjust_lr: original` multiplies a matrix's rate by sqrt(max(1, outputs / inputs)), `match_rms_adamw` by
    0.2 sqrt(max(outputs, inputs)), so that rates of AdamW fit (Liu et al. 2025, arXiv:2502.16982, section 2.2).
    """

    lr: Annotated[float, Field(gt=0, description="the peak of the matrices")] = 0.02
    momentum: Fraction = 0.95
    weight_decay: Annotated[float, Field(ge=0, description="of matrices and the head")] = 0.1
    nesterov: bool = True
    ns_steps: Annotated[int, Field(ge=1, lt=100, description="Newton-Schulz iterations")] = 5
    adjust_lr: Literal["original", "match_rms_adamw"] = "original"
    adamw_lr: Annotated[float, Field(gt=0, description="the peak of all that is not a matrix")] = 3e-3
    adamw_betas: tuple[Fraction, Fraction] = (0.9, 0.95)
    adamw_eps: Annotated[float, Field(gt=0)] = 1e-8

    def state_bytes(self, parameters: int) -> int:
        """Two fp32 moments a parameter, as AdamW keeps them of what is not a matrix."""
        return 8 * parameters

    def matrix_state_bytes(self, parameters: int) -> int:
        """One fp32 momentum a parameter of a matrix."""
        return 4 * parameters


class LionConfig(Config):
    """Lion (Chen et al. 2023, arXiv:2302.06675, algorithm 2).

    Every weight moves by the whole rate, so that the rate is a third to a tenth of AdamW's and the decay as much
    larger (section 5 of the paper).
    """

    lr: Annotated[float, Field(gt=0, description="the peak; the schedule is a factor on it")] = 3e-4
    betas: Annotated[
        tuple[Fraction, Fraction], Field(description="of the momentum as a step sees it, and as it is kept")
    ] = (0.9, 0.99)
    weight_decay: Annotated[float, Field(ge=0, description="of matrices and the head")] = 0.3

    def state_bytes(self, parameters: int) -> int:
        """One fp32 momentum a parameter."""
        return 4 * parameters


class AdafactorConfig(Config):
    """Adafactor with a given rate (Shazeer & Stern 2018, arXiv:1804.04235, algorithms 4 and 5)."""

    lr: Annotated[float, Field(gt=0, description="the peak; the schedule is a factor on it")] = 1e-3
    eps: Annotated[
        tuple[float, float], Field(description="added to squared gradients; the least RMS of parameters in the scale")
    ] = (1e-30, 1e-3)
    clip_threshold: Annotated[float, Field(gt=0, description="the largest RMS of an update")] = 1.0
    decay_rate: Annotated[float, Field(lt=0, description="the second moment's decay at step t is 1 - t^this")] = -0.8
    beta1: Annotated[Fraction, Field(description="of the first moment; 0 keeps none")] = 0.0
    weight_decay: Annotated[float, Field(ge=0, description="of matrices and the head")] = 0.0
    scale_parameter: Annotated[bool, Field(description="rates are shares of a parameter's RMS")] = True

    def state_bytes(self, parameters: int) -> int:
        """At most, where no matrix has a side under 128: fp32 means of rows and columns, and any first moment."""
        return parameters // 16 + (4 * parameters if self.beta1 else 0)


class SGDConfig(Config):
    """Stochastic gradient descent with momentum (Sutskever et al. 2013), as torch has it; decay is not decoupled."""

    lr: Annotated[float, Field(gt=0, description="the peak; the schedule is a factor on it")] = 0.1
    momentum: Fraction = 0.9
    nesterov: bool = False
    weight_decay: Annotated[float, Field(ge=0, description="of matrices and the head; added to their gradient")] = 0.0

    @model_validator(mode="after")
    def _nesterov(self) -> SGDConfig:
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs a momentum above 0")
        return self

    def state_bytes(self, parameters: int) -> int:
        """One fp32 momentum a parameter, if there is any."""
        return 4 * parameters if self.momentum else 0
