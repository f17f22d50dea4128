"""What every run with an adapter asserts: it changes nothing before the first step, and the first step moves it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from recipe_plugins.adapters.config import AdapterMethod
from recipe_plugins.training import checkpoints, sharding
from recipe_plugins.training.job import Job
from recipe_plugins.training.trainer import TokenTrainer
from recipe_runner import RecipeError

if TYPE_CHECKING:
    _Trainer = TokenTrainer
else:
    _Trainer = object

ROUNDING = {torch.float32: 1.0, torch.float16: 64.0, torch.bfloat16: 500.0}
"""By how much a base's dtype widens a tolerance that is not zero: 2^-8 of bf16 is that much more than fp32's in long
sums, 2^-11 of fp16 an eighth of it."""


def attach(
    method: AdapterMethod,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    row: Mapping[str, np.ndarray],
    *,
    seed: int,
    new_tokens: Sequence[int] = (),
    reference: bool = False,
    ask: Callable[[Any], AbstractContextManager[Any]] = nullcontext,
) -> PeftModel:
    """`model` with the adapter of `method`, in eval mode.

    `row` is one of those that will be trained on; `ask` puts a model where it can be asked. Raises `RecipeError` where
    the adapted model's logits on the row are not those of the model; also where they are not with the adapter off, as
    what is saved is put on the model as it was (but PiSSA, saved as LoRA, unless it is to have a `reference`).
    """
    with ask(model.eval()) as there:
        before = logits(there, row)
    del there  # if those were shards, before there are others
    adapted = method.attach(model, tokenizer, seed, new_tokens).eval()
    with ask(adapted) as there:
        neutral(before, logits(there, row), method.tolerance * ROUNDING.get(model.dtype, 1.0))
        if reference or not hasattr(adapted, "pissa_start"):
            _is_off(there, before, row, reference)
    return adapted


def _is_off(adapted: PeftModel, before: torch.Tensor, row: Mapping[str, np.ndarray], reference: bool) -> None:
    """Raise `RecipeError` unless the logits without the adapter are those of `before` it."""
    with adapted.disable_adapter():
        same = torch.equal(before, logits(adapted, row))
    if not same:
        what, instead = "so what is saved of it would be put on other weights", "; or for PiSSA `use: pissa`"
        if reference:
            what, instead = "so it cannot be the reference", ", or leave `beta` out"
        raise RecipeError(
            f"with the adapter off the model is not what it was, {what}",
            next=f"take an adapter that leaves the frozen weights alone, such as lora{instead}",
        )


@torch.no_grad()
def logits(model: torch.nn.Module, row: Mapping[str, np.ndarray]) -> torch.Tensor:
    """Of one prepared row, (1, tokens, vocabulary)."""
    device = next(model.parameters()).device
    given = {name: torch.from_numpy(values[None].copy()).long().to(device) for name, values in row.items()}
    given.pop("labels", None)
    found: torch.Tensor = model(**given, use_cache=False).logits
    return found


def neutral(before: torch.Tensor, after: torch.Tensor, tolerance: float) -> None:
    """Raise `RecipeError` where logits differ by more than the share `tolerance` of the largest; by nothing, if 0."""
    if tolerance == 0 and torch.equal(before, after):
        return
    far = float((after - before).abs().max())
    if tolerance == 0 or not far <= tolerance * float(before.abs().max()):
        raise RecipeError(f"the adapter changes the model before it is trained: logits differ by up to {far:g}")


class MovesAdapter(_Trainer):
    """Mixed into a trainer before the loop's own mixin: trains a `PeftModel` in the dtype that it was made in.

    Raises `RecipeError` if the first step does not move its weights; where a step may rightly have no gradient, if all
    of them together do not.
    """

    def __init__(self, *, job: Job, model: PeftModel, **library: Any) -> None:
        made = {name: parameter.data for name, parameter in checkpoints.trained(model).items()}
        super().__init__(job=job, model=model, **library)
        for name, parameter in checkpoints.trained(model).items():  # TRL makes them bf16 where the base is quantised
            if parameter.dtype != made[name].dtype:
                parameter.data = made[name].to(parameter.device)
        self._adapted = model
        self._before = {
            name: sharding.local(parameter.detach()).to("cpu", copy=True)
            for name, parameter in checkpoints.trained(model).items()
        }

    def after_step(self, control: Any) -> None:
        """See the mixin."""
        super().after_step(control)
        overflowed = len(self.loss_scale.overflowed) if self.loss_scale else 0
        looked_at = 1 + overflowed if self.moves_at_once else self.job.steps
        if self.state.global_step == looked_at and not any(self._any_rank(self._moved())):
            raise RecipeError(
                f"{'the first step' if self.moves_at_once else 'training'} did not change the adapter",
                next="look at the learning rate, and at the share of supervised tokens in preparation.json"
                if self.moves_at_once
                else "look at the learning rate, and at the rewards: answers that are all worth the same teach nothing",
            )

    def _moved(self) -> bool:
        """Whether this rank's part of the adapter is another than it was."""
        now = checkpoints.trained(self._adapted)
        return any(not torch.equal(sharding.local(now[name]).cpu(), was) for name, was in self._before.items())


class AdapterTokenTrainer(MovesAdapter, TokenTrainer):
    """The loop over rows of text, for an adapter."""
