"""Mixtures of experts in the loop: the balancing loss, and how evenly experts are used.

The balance of a row at a layer is E · Σ f · P over its E experts: f the share of the row's choices that an expert gets
(a constant for the gradient), P its mean probability; 1 where all are used alike (Fedus et al. 2021, arXiv:2101.03961,
equations 4–6; for each row apart: DeepSeek-V3, arXiv:2412.19437, equations 17–20). The mean over layers and over the
rows of a step, times the `router_aux_loss_coef` of the model's config, is added to the loss; where that is 0 the use of
experts is told all the same. Since rows are never divided, it is the same however a step is cut into micro-batches and
ranks; a balance over a whole micro-batch, which is what transformers adds, is not.

Tokens after a row's last label, padding above all, train nothing and do not count.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

CHOSEN, WEIGHT = "num_experts_per_tok", "router_aux_loss_coef"


class Routing:
    """The balancing loss of a model, and the use of its experts since the last step.

    `rows` are those of a step, over all micro-batches and ranks.
    """

    arguments: Mapping[str, Any] = {"output_router_logits": True}

    def __init__(self, config: Any, rows: int) -> None:
        self.coefficient, self.chosen, self.rows = getattr(config, WEIGHT) or 0.0, getattr(config, CHOSEN), rows
        self._balance: torch.Tensor | None = None
        self._choices: torch.Tensor | None = None  # (layers, experts)

    @classmethod
    def of(cls, config: Any, rows: int) -> Routing | None:
        """For a model of this config; `None` where it has no experts, or is of a type without a balancing loss, which
        does not tell what its routers say."""
        return cls(config, rows) if getattr(config, CHOSEN, 0) and hasattr(config, WEIGHT) else None

    def loss(self, router_logits: Sequence[torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
        """This micro-batch's share of the step's term, a scalar in fp32; of weight 0 it is 0, and has no gradient.

        `router_logits` has (rows · tokens, experts) of each layer; `labels` is (rows, tokens).
        """
        counted = (labels != -100).flip(1).cumsum(1).flip(1) > 0
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.coefficient > 0):
            found = [balance(logits.view(*labels.shape, -1), counted, self.chosen) for logits in router_logits]
        share = torch.stack([term for term, _ in found]).mean(0).sum() / self.rows
        choices = torch.stack([choices for _, choices in found])
        self._balance = share.detach() if self._balance is None else self._balance + share.detach()
        self._choices = choices if self._choices is None else self._choices + choices
        return self.coefficient * share

    def metrics(self, summed: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, float]:
        """Of the step that ends now; `summed` adds a tensor up over the ranks.

        `balance` is the mean balance, `expert_load_max` and `expert_load_min` the tokens of the most and the least used
        expert, over those of an even use, as means over layers; `experts_unused` counts experts of all layers.
        """
        assert self._balance is not None
        assert self._choices is not None
        choices = summed(self._choices)
        load = choices / choices.mean(1, keepdim=True).clamp_min(1e-9)
        found = {
            "balance": float(summed(self._balance)),
            "expert_load_max": float(load.amax(1).mean()),
            "expert_load_min": float(load.amin(1).mean()),
            "experts_unused": float((choices == 0).sum()),
        }
        self._balance = self._choices = None
        return found


def balance(logits: torch.Tensor, counted: torch.Tensor, chosen: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The balance of each row, (rows,) in fp32, and how often each expert was chosen, (experts,).

    `logits` is (rows, tokens, experts), `counted` (rows, tokens) says which tokens count. A row without any has 0.
    """
    probabilities = logits.float().softmax(-1)
    picked = torch.zeros_like(probabilities).scatter_(2, logits.topk(chosen, dim=-1).indices, 1.0)
    weights = counted[..., None].to(probabilities.dtype)
    tokens = weights.sum(1).clamp_min(1.0)
    picked = (picked * weights).detach().sum(1)
    shares, means = picked / (chosen * tokens), (probabilities * weights).sum(1) / tokens
    return logits.shape[-1] * (shares * means).sum(1), picked.sum(0)
