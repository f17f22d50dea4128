"""The loop for preferences: the mixin over transformers' own trainer, with an objective of ours.

Not over TRL's: its preference trainers make the reference anew at each start, mean their loss over micro-batches, and
are four classes for the five objectives here. What they compute is what the tests compare with.

Limit: the loss that balances a mixture's experts is not added.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from transformers import Trainer

from recipe_plugins.objectives.config import Answers, Judged, Objective, Pairs
from recipe_plugins.training.log_probs import ahead, answer_log_probs, padded
from recipe_plugins.training.trainer import RecipeTrainerMixin

MODEL_INPUTS = ("input_ids", "labels", "position_ids")
OTHER = "mismatched_"
"""What the keys of mismatched answers begin with."""


class PreferenceTrainer(RecipeTrainerMixin, Trainer):
    """Trains on `ExampleRows`; `objective` and `takes` are set on a class of its own.

    The loss is the mean over the step's rows, whatever they are cut into.
    """

    cross_entropy = False
    objective: Objective
    takes: str

    def __init__(self, **library: Any) -> None:
        super().__init__(**library)
        self._sums = torch.zeros(4, device=self.args.device)
        self._mismatched = torch.zeros((), device=self.args.device)

    def collate(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Padded to the longest; of pairs the chosen first, then the rejected, of single answers the mismatched apart.

        `reference` is fp32 (2 · rows,), `desirable` bool (rows,).
        """
        first, second = [row["first"] for row in rows], [row["second"] for row in rows]
        if self.takes == "pairs":
            batch = padded(first + second)
        else:
            batch = padded(first) | {OTHER + key: value for key, value in padded(second).items()}
        reference = [float(row["reference"][side]) for side in (0, 1) for row in rows]
        desirable = torch.tensor([row["desirable"] for row in rows])
        return {**batch, "reference": torch.tensor(reference), "desirable": desirable}

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: Any) -> tuple[list, Any]:
        """See the mixin; measures how far the policy is from the reference, once for the whole step."""
        batches, count = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self.takes == "judged":
            with self.compute_loss_context_manager():
                self._mismatched = self._mean_mismatched(batches)
        return batches, count

    @torch.no_grad()
    def _mean_mismatched(self, batches: Sequence[dict[str, torch.Tensor]]) -> torch.Tensor:
        """The mean log-ratio of the step's mismatched answers, over all ranks; without dropout, which draws nothing."""
        training = self.model.training
        self.model.eval()
        ratios = torch.zeros((), device=self.args.device)
        for batch in batches:
            given = [batch[OTHER + key].to(self.args.device) for key in MODEL_INPUTS]
            reference = batch["reference"].to(self.args.device).chunk(2)[1]
            ratios += (answer_log_probs(self.model, *given)[0] - reference).sum()
        self.model.train(training)
        return self.accelerator.reduce(ratios, reduction="sum") / self.job.batch_size

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """This micro-batch's share of the step's mean loss, times the ranks, over which gradients are averaged."""
        batch = self._batch(model, inputs)
        loss = self.objective.losses(batch).sum() / self.job.batch_size * self.accelerator.num_processes
        self._step_loss += loss.detach()
        self._sums += self._told(batch)
        return self.scaled(loss)

    def _batch(self, model: Any, inputs: Mapping[str, torch.Tensor]) -> Pairs | Judged:
        log_probs, tokens = answer_log_probs(model, *(inputs[key] for key in MODEL_INPUTS))
        reference, rows = inputs["reference"], len(inputs["desirable"])
        first = Answers(log_probs[:rows], reference[:rows], tokens[:rows])
        if self.takes == "judged":
            return Judged(first, inputs["desirable"], self._mismatched)
        return Pairs(first, Answers(log_probs[rows:], reference[rows:], tokens[rows:]))

    @torch.no_grad()
    def _told(self, batch: Pairs | Judged) -> torch.Tensor:
        """Sums, fp32 (4,): margins and right ones of pairs; rewards and numbers of answers that are wanted, and not."""
        if isinstance(batch, Pairs):
            margins = self.objective.rewards(batch.chosen) - self.objective.rewards(batch.rejected)
            zero = margins.new_zeros(())
            return torch.stack([margins.sum(), ahead(margins).sum(), zero, zero])
        rewards, wanted = self.objective.rewards(batch.answers), batch.desirable.float()
        return torch.stack([(rewards * wanted).sum(), wanted.sum(), (rewards * (1 - wanted)).sum(), (1 - wanted).sum()])

    def step_metrics(self) -> dict[str, float]:
        """`reward_margin` and, of pairs, `reward_accuracy`; a step without answers of both sorts has no margin."""
        sums = self.accelerator.reduce(self._sums, reduction="sum").tolist()
        self._sums.zero_()
        if self.takes == "pairs":
            return {"reward_margin": sums[0] / self.job.batch_size, "reward_accuracy": sums[1] / self.job.batch_size}
        wanted, unwanted = sums[1], sums[3]
        return {"reward_margin": sums[0] / wanted - sums[2] / unwanted} if wanted and unwanted else {}
