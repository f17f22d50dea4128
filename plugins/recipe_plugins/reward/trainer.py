"""The loop for reward models: −log σ(r(chosen) − r(rejected)).

Bradley and Terry 1952, as in Ouyang et al. 2022 (arXiv:2203.02155), section 3.5, equation 1, with two answers a prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.nn.functional import logsigmoid
from transformers import Trainer

from recipe_plugins.adapters.attaching import MovesAdapter
from recipe_plugins.reward.model import rewards, until_the_end
from recipe_plugins.training.log_probs import ahead, padded
from recipe_plugins.training.trainer import RecipeTrainerMixin


class RewardTrainer(RecipeTrainerMixin, Trainer):
    """Trains a model of `with_head` on `ExampleRows` of pairs; the loss is the mean over the step's pairs."""

    cross_entropy = False

    def __init__(self, **library: Any) -> None:
        super().__init__(**library)
        self._sums = torch.zeros(2, device=self.args.device)

    def collate(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Conversations up to their ends, the chosen ones first, padded to the longest."""
        documents = [until_the_end(row[side]) for side in ("first", "second") for row in rows]
        return padded(documents, self.model.config.pad_token_id)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """This micro-batch's share of the step's mean loss, times the ranks, over which gradients are averaged."""
        chosen, rejected = rewards(model, inputs).chunk(2)
        margins = chosen - rejected
        loss = -logsigmoid(margins).sum() / self.job.batch_size * self.accelerator.num_processes
        self._step_loss += loss.detach()
        self._sums += torch.stack([margins.detach().sum(), ahead(margins.detach()).sum()])
        return self.scaled(loss)

    def step_metrics(self) -> dict[str, float]:
        """`reward_margin` and `reward_accuracy` of the step's pairs."""
        margin, right = self.accelerator.reduce(self._sums, reduction="sum").tolist()
        self._sums.zero_()
        return {"reward_margin": margin / self.job.batch_size, "reward_accuracy": right / self.job.batch_size}


class AdapterRewardTrainer(MovesAdapter, RewardTrainer):
    """The same of an adapter and the head."""
