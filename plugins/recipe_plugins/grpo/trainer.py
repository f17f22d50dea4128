"""GRPO on the common loop: answers are drawn, judged and learned from within a step.

Shao et al. 2024 (arXiv:2402.03300), section 4.1, equation 3 with outcome rewards (4.1.2): the advantage of an answer is
its reward less its group's mean, divided by the group's deviation; each answer's loss is a mean over its tokens. Each
draw is learned from once, so the ratio of policies is 1 and nothing is ever clipped. With `beta` the policy is held to
the reference (`divergence`), which is the model as it came, whatever a checkpoint holds: the base with its adapter off,
or a frozen copy. Without, the loss itself is 0 but for rounding: the rewards tell how it goes.

Guarantee: what is drawn is a function of (seed, step, prompt) and the weights, whatever else is in the batch, on
whichever rank; so a resumed run draws what the straight one would have drawn. A prompt that a step asks again, where an
epoch ends in it or prompts are few, is answered anew.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

import numpy as np
import torch
from transformers import Trainer

from recipe_plugins.grpo.config import GrpoConfig
from recipe_plugins.grpo.prompts import Judge, Prompt
from recipe_plugins.rewards.config import Completion
from recipe_plugins.training import sharding
from recipe_plugins.training.conversations import IGNORED, Renderer
from recipe_plugins.training.generation import drawn, reply, stops
from recipe_plugins.training.log_probs import Document, learned, padded, token_log_probs
from recipe_plugins.training.trainer import RecipeTrainerMixin

IDLE_STEPS = 10
"""Steps in a row without anything to learn from which on there is a warning."""
MODEL_INPUTS = ("input_ids", "labels", "position_ids")
EVEN = 1e-4
"""Added to a group's deviation, so that answers that are all alike push nowhere."""


class GrpoTrainer(RecipeTrainerMixin, Trainer):
    """Trains on `PromptRows`; the rest is set on a class of its own."""

    cross_entropy = False
    moves_at_once = False  # the answers to each prompt of a step may be worth the same
    settings: GrpoConfig
    prompts: Sequence[Prompt]
    renderer: Renderer
    judge: Judge
    initial: Any

    def __init__(self, **library: Any) -> None:
        super().__init__(**library)
        self._sums: dict[str, float] = {}
        self._idle_steps = 0
        copied = self.settings.beta and self.settings.adapter is None
        self._frozen = self._copied().requires_grad_(False).eval() if copied else None

    def _copied(self) -> Any:
        """The model as it came, sharded like the one that trains; called before anything is restored."""
        if not sharding.is_sharded(self.model):
            return copy.deepcopy(self.initial)
        execution = self.settings.execution
        return sharding.sharded(self.initial, self.args.device, self.job.ctx.world_size, execution.shard)

    def collate(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """The numbers of the prompts; answers are drawn once the step begins."""
        return {"numbers": torch.tensor([row["number"] for row in rows])}

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: Any) -> tuple[list, Any]:
        """The step's answers, drawn and judged, in the micro-batches that their prompts came in."""
        asked = [batch["numbers"].tolist() for batch in islice(epoch_iterator, num_batches)]
        if not asked:  # the library asks once more where a run resumes after its last step
            return super().get_batch_samples(iter(()), num_batches, device)
        with self.compute_loss_context_manager(), sharding.gathered(self.model):
            groups = iter(self._groups([number for numbers in asked for number in numbers]))
        made = [self._micro_batch(list(islice(groups, len(numbers)))) for numbers in asked]
        return super().get_batch_samples(iter(made), num_batches, device)

    def _groups(self, numbers: Sequence[int]) -> list[tuple[list[Document], np.ndarray]]:
        """For each prompt its answers as documents, and their advantages, float32 (group,)."""
        config = self.settings
        rows = [number for number in numbers for _ in range(config.group)]
        shape = (config.group, config.max_new_tokens)
        uniform = np.concatenate([np.random.default_rng(seed).random(shape) for seed in self._seeds(numbers)])
        prompts = [self.prompts[number] for number in rows]
        answers = drawn(
            self.model,
            [prompt.ids for prompt in prompts],
            stops(self.renderer),
            uniform,
            temperature=config.temperature,
        )
        rewards = self._judged(prompts, answers).reshape(-1, config.group)
        spread = rewards.std(axis=1, keepdims=True)
        self._add("idle_groups", int((spread == 0).sum()))
        advantages = ((rewards - rewards.mean(axis=1, keepdims=True)) / (spread + EVEN)).astype(np.float32)
        documents = [_document(prompt.ids, answer) for prompt, answer in zip(prompts, answers, strict=True)]
        size = config.group
        return [(documents[n * size : (n + 1) * size], advantages[n]) for n in range(len(numbers))]

    def _seeds(self, numbers: Sequence[int]) -> list[int]:
        """For each prompt of this rank's step what its answers are drawn from: another one each time it is asked."""
        step, begin = self.state.global_step, self.job.ctx.rank * len(numbers)
        asked, seeds = self.batches.of_all_ranks(step), []
        for place, number in enumerate(numbers, begin):
            before = asked[:place].count(number)
            seeds.append(self.job.ctx.seed("answers", step, number, *([before] if before else [])))
        return seeds

    def _judged(self, prompts: Sequence[Prompt], answers: Sequence[list[int]]) -> np.ndarray:
        """What each answer is worth; adds up what is told of the step."""
        completions = [completion(p, a, self.renderer) for p, a in zip(prompts, answers, strict=True)]
        parts = self.judge.parts(completions)
        total = self.judge.total(parts)
        told = {f"reward/{name}": sum(values) for name, values in parts.items()} | {"reward": sum(total)}
        told["ended"] = sum(c.ended for c in completions)
        told["answer_tokens"] = sum(len(answer) for answer in answers)
        for name, value in told.items():
            self._add(name, value / self.settings.group)
        return np.array(total)

    def _add(self, name: str, value: float) -> None:
        self._sums[name] = self._sums.get(name, 0.0) + value

    def _micro_batch(self, groups: Sequence[tuple[list[Document], np.ndarray]]) -> dict[str, torch.Tensor]:
        documents = [document for group, _ in groups for document in group]
        advantages = torch.from_numpy(np.concatenate([advantages for _, advantages in groups]))
        batch = {**padded(documents), "advantages": advantages}
        return {**batch, "reference": self._reference(batch)} if self.settings.beta else batch

    @torch.no_grad()
    def _reference(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """What the model as it came gives the tokens of the answers, fp32 (answers, tokens - 1)."""
        given = (batch[key].to(self.args.device) for key in MODEL_INPUTS)
        with self._as_it_came() as model, self.compute_loss_context_manager():
            return token_log_probs(model, *given, temperature=self.settings.temperature)

    @contextmanager
    def _as_it_came(self) -> Iterator[Any]:
        """The reference, in eval mode."""
        if self._frozen is not None:
            yield self._frozen
            sharding.after_forward(self._frozen)
            return
        training = self.model.training
        self.model.eval()
        with self.model.disable_adapter():
            yield self.model
            sharding.after_forward(self.model)  # what the adapter gets its gradients back on must be the shards
        self.model.train(training)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """This micro-batch's share of the step's mean loss, times the ranks, over which gradients are averaged."""
        given = (inputs[key] for key in MODEL_INPUTS)
        log_probs = token_log_probs(model, *given, temperature=self.settings.temperature)
        tokens = learned(inputs["labels"])
        losses = objective(log_probs.sum(dim=1), tokens, inputs["advantages"])
        if self.settings.beta:
            far = divergence(log_probs, inputs["reference"]).sum(dim=1) / tokens
            self._add("kl", float(far.detach().sum()) / self.settings.group)
            losses = losses + self.settings.beta * far
        answers = self.job.batch_size * self.settings.group
        loss = losses.sum() / answers * self.accelerator.num_processes
        self._step_loss += loss.detach()
        return self.scaled(loss)

    def own_state(self) -> dict[str, Any]:
        """See `Resumable`."""
        return {"idle_steps": self._idle_steps}

    def take_own(self, state: Mapping[str, Any]) -> None:
        """See `Resumable`."""
        self._idle_steps = state["idle_steps"]

    def step_metrics(self) -> dict[str, float]:
        """Means over the step's answers; `idle_groups`: the share of prompts whose answers were all worth the same;
        `kl`, with `beta`: how far the policy is from the reference, in nats a token."""
        names = sorted(self._sums)
        sums = torch.tensor([self._sums[name] for name in names], dtype=torch.float32, device=self.args.device)
        self._sums = {}
        totals = self.accelerator.reduce(sums, reduction="sum").tolist()
        found = {name: value / self.job.batch_size for name, value in zip(names, totals, strict=True)}
        self._idle_steps = self._idle_steps + 1 if found["idle_groups"] == 1 else 0
        if self._idle_steps == min(IDLE_STEPS, self.job.steps):
            self.job.ctx.warn(
                f"{self._idle_steps} steps in a row taught nothing: all answers to each prompt were worth the same"
            )
        return found


def objective(log_probs: torch.Tensor, tokens: torch.Tensor, advantages: torch.Tensor) -> torch.Tensor:
    """Minus each answer's advantage times the mean ratio of its tokens, which is 1: the gradient is what counts.

    All fp32 (answers,); `log_probs` are sums over an answer's tokens, so their gradient over `tokens` is that of the
    mean ratio where the policy is the one that drew.
    """
    mean = log_probs / tokens
    return -advantages * (1 + mean - mean.detach())


def divergence(log_probs: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """An unbiased estimate of the divergence from the reference, never below 0, by token; all fp32 of one shape.

    Equation 4 of Shao et al., the k3 of Schulman 2020 (joschu.net/blog/kl-approx.html): r - log r - 1, where r is what
    the reference gives a token over what the policy gives it.
    """
    ratio = reference - log_probs
    return ratio.exp() - ratio - 1


def completion(prompt: Prompt, answer: list[int], renderer: Renderer) -> Completion:
    """A drawn answer as rewards take it."""
    given = reply(renderer, answer, stops(renderer))
    return Completion(prompt.record, given.text, given.ended, prompt.expected)


def _document(prompt: list[int], answer: list[int]) -> Document:
    """Only the answer learned."""
    ids = np.array([*prompt, *answer], dtype=np.int32)
    return ids, np.where(np.arange(len(ids)) < len(prompt), IGNORED, ids).astype(np.int32)
