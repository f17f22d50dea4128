"""Settings of the objectives, what they are given, and the protocol of their kind. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Protocol

from pydantic import Field

from recipe_runner import Config

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Answers:
    """n answers, each after its prompt: `log_probs` and `reference`, fp32 (n,), are the log-probabilities in nats,
    summed over an answer's tokens, under the policy and under the reference; `tokens`, int64 (n,), how many there are.
    """

    log_probs: torch.Tensor
    reference: torch.Tensor
    tokens: torch.Tensor

    @property
    def ratio(self) -> torch.Tensor:
        """log π(y|x) / π_ref(y|x), (n,)."""
        return self.log_probs - self.reference

    @property
    def mean(self) -> torch.Tensor:
        """Mean log-probability of a token, (n,)."""
        return self.log_probs / self.tokens


@dataclass(frozen=True, slots=True)
class Pairs:
    """A better and a worse answer to each of n prompts."""

    chosen: Answers
    rejected: Answers


@dataclass(frozen=True, slots=True)
class Judged:
    """n answers, `desirable`, bool (n,), or not; `mismatched` is the mean log-ratio, fp32 (), of the whole step's
    answers after other prompts than their own, through which no gradient goes."""

    answers: Answers
    desirable: torch.Tensor
    mismatched: torch.Tensor


class Objective(Protocol):
    """Its config has `takes`, `pairs` or `judged`, and `needs_reference`. Pure functions of log-probabilities."""

    def losses(self, batch: Pairs | Judged) -> torch.Tensor:
        """The loss of each pair or answer, fp32 (n,); the step's loss is their mean."""
        ...

    def rewards(self, answers: Answers) -> torch.Tensor:
        """What the objective holds each answer to be worth, fp32 (n,): margins and accuracy are told by it."""
        ...


class ObjectiveConfig(Config):
    """Base of the objectives' configs."""

    takes: ClassVar[str] = "pairs"
    needs_reference: ClassVar[bool] = True


class DpoConfig(ObjectiveConfig):
    """Direct preference optimization."""

    beta: Annotated[float, Field(gt=0, description="how much a deviation from the reference costs")] = 0.1


class IpoConfig(ObjectiveConfig):
    """Identity preference optimization."""

    beta: Annotated[float, Field(gt=0, description="τ of the paper: the distance aimed at is 1 / 2β nats a token")] = (
        0.1
    )


class KtoConfig(ObjectiveConfig):
    """Kahneman-Tversky optimization."""

    takes: ClassVar[str] = "judged"
    beta: Annotated[float, Field(gt=0, description="how much a deviation from the reference costs")] = 0.1
    desirable_weight: Annotated[float, Field(gt=0, description="λ_D")] = 1.0
    undesirable_weight: Annotated[float, Field(gt=0, description="λ_U")] = 1.0


class OrpoConfig(ObjectiveConfig):
    """Odds ratio preference optimization."""

    needs_reference: ClassVar[bool] = False
    beta: Annotated[float, Field(gt=0, description="λ of the paper: the weight of the odds ratio")] = 0.1


class SimpoConfig(ObjectiveConfig):
    """Simple preference optimization."""

    needs_reference: ClassVar[bool] = False
    beta: Annotated[float, Field(gt=0, description="the scale of the reward")] = 2.0
    gamma: Annotated[float, Field(ge=0, description="the margin of reward aimed at")] = 1.0
