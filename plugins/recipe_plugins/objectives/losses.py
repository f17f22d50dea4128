"""The objectives: pure functions of log-probabilities, one formula each.

Symbols: x a prompt, y_w and y_l the better and the worse answer, π the policy, π_ref the reference, |y| the tokens of
an answer, σ the logistic function. Everything is fp32, in nats.
"""

from __future__ import annotations

import math

import torch
from torch.nn.functional import logsigmoid

from recipe_plugins.objectives.config import (
    Answers,
    DpoConfig,
    IpoConfig,
    Judged,
    KtoConfig,
    OrpoConfig,
    Pairs,
    SimpoConfig,
)

CERTAIN = -1e-6
"""A mean log-probability above it has odds that fp32 cannot hold."""


class Dpo:
    """−log σ(β · [log π(y_w|x)/π_ref(y_w|x) − log π(y_l|x)/π_ref(y_l|x)]).

    Rafailov et al. 2023 (arXiv:2305.18290), section 4, equation 7. Reward: β log π/π_ref (equation 5, without Z).
    """

    def __init__(self, config: DpoConfig) -> None:
        self.config = config

    def losses(self, batch: Pairs) -> torch.Tensor:
        """See `Objective`."""
        return -logsigmoid(self.rewards(batch.chosen) - self.rewards(batch.rejected))

    def rewards(self, answers: Answers) -> torch.Tensor:
        """See `Objective`."""
        return self.config.beta * answers.ratio


class Ipo:
    """(h − 1/2β)², h = log π(y_w|x)/π_ref(y_w|x) / |y_w| − log π(y_l|x)/π_ref(y_l|x) / |y_l|.

    Azar et al. 2023 (arXiv:2310.12036), section 5.2, equation 17, with β for τ; by token, as its authors confirmed to
    those of TRL, so that the distance aimed at does not depend on the answers' lengths. Reward: β times the ratio.
    """

    def __init__(self, config: IpoConfig) -> None:
        self.config = config

    def losses(self, batch: Pairs) -> torch.Tensor:
        """See `Objective`."""
        chosen, rejected = batch.chosen, batch.rejected
        return (chosen.ratio / chosen.tokens - rejected.ratio / rejected.tokens - 1 / (2 * self.config.beta)) ** 2

    def rewards(self, answers: Answers) -> torch.Tensor:
        """See `Objective`."""
        return self.config.beta * answers.ratio / answers.tokens


class Kto:
    """λ_D · (1 − σ(β(r − z))) where the answer is desirable, else λ_U · (1 − σ(β(z − r))), r = log π(y|x)/π_ref(y|x).

    Ethayarajh et al. 2024 (arXiv:2402.01306), section 4.1, equation 8. z, an estimate of KL(π ‖ π_ref), is the mean
    ratio of answers after other prompts, at least 0. Here the mean is over the whole step, not a micro-batch of it, so
    that how a step is cut up changes nothing. Reward: β r.
    """

    def __init__(self, config: KtoConfig) -> None:
        self.config = config

    def losses(self, batch: Judged) -> torch.Tensor:
        """See `Objective`."""
        config = self.config
        above = config.beta * (batch.answers.ratio - batch.mismatched.clamp(min=0))
        wanted = config.desirable_weight * (1 - torch.sigmoid(above))
        return torch.where(batch.desirable, wanted, config.undesirable_weight * (1 - torch.sigmoid(-above)))

    def rewards(self, answers: Answers) -> torch.Tensor:
        """See `Objective`."""
        return self.config.beta * answers.ratio


class Orpo:
    """−log π(y_w|x)/|y_w| − λ · log σ(log odds(y_w|x)/odds(y_l|x)), odds(y|x) = P/(1 − P), log P = log π(y|x)/|y|.

    Hong et al. 2024 (arXiv:2403.07691), section 4.2, equations 6 and 7, with β for λ. The first term is learned on the
    answer only, as everywhere here, and by pair, not by token of the batch. Reward: λ log P.
    """

    def __init__(self, config: OrpoConfig) -> None:
        self.config = config

    def losses(self, batch: Pairs) -> torch.Tensor:
        """See `Objective`."""
        chosen, rejected = batch.chosen.mean, batch.rejected.mean
        return -chosen - self.config.beta * logsigmoid(log_odds(chosen) - log_odds(rejected))

    def rewards(self, answers: Answers) -> torch.Tensor:
        """See `Objective`."""
        return self.config.beta * answers.mean


def log_odds(log_probs: torch.Tensor) -> torch.Tensor:
    """log P − log(1 − P) of log P < 0, which is taken to be at most `CERTAIN`."""
    known = log_probs.clamp(max=CERTAIN)
    near_one = torch.log(-torch.expm1(known))  # each form is exact where the other loses its digits
    return known - torch.where(known > -math.log(2), near_one, torch.log1p(-torch.exp(known)))


class Simpo:
    """−log σ(β log π(y_w|x)/|y_w| − β log π(y_l|x)/|y_l| − γ).

    Meng et al. 2024 (arXiv:2405.14734), section 2.3, equation 6. Reward: β log π/|y| (equation 4).
    """

    def __init__(self, config: SimpoConfig) -> None:
        self.config = config

    def losses(self, batch: Pairs) -> torch.Tensor:
        """See `Objective`."""
        return -logsigmoid(self.rewards(batch.chosen) - self.rewards(batch.rejected) - self.config.gamma)

    def rewards(self, answers: Answers) -> torch.Tensor:
        """See `Objective`."""
        return self.config.beta * answers.mean
