"""How long a step takes here, for a budget in minutes: measured once on a few real steps, which are then undone.

The loop itself is timed, made as the run will make it: the same precision, attention, loss, gradient checkpointing,
compilation, optimizer and ranks. What it does between steps is not: evaluation and checkpoints, so a run can take
longer than it was given. What is measured decides how long is trained: another run may measure something else, which is
why such a budget is outside the promise of equal results.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from recipe_plugins.training import checkpoints
from recipe_plugins.training.config import LoopConfig
from recipe_plugins.training.once import once
from recipe_plugins.training.order import Rows
from recipe_plugins.training.run import loop_of, release
from recipe_plugins.training.trainer import RecipeTrainerMixin
from recipe_runner import Optimizer, StageContext, Use

if TYPE_CHECKING:
    _Trainer = RecipeTrainerMixin
else:
    _Trainer = object

UNTIMED, TIMED = 2, 5
"""Steps before those that are timed, and those."""


def seconds_per_step(
    ctx: StageContext,
    config: LoopConfig,
    model: PreTrainedModel,
    rows: Rows,
    tokenizer: PreTrainedTokenizerBase,
    *,
    optimizer: Use[Optimizer],
    trainer: type[RecipeTrainerMixin],
) -> float:
    """The median time of a step on rank 0, measured by the first attempt. `model` is left as it was."""
    measured = None
    if not checkpoints.is_complete(ctx.work / "timing"):  # all ranks train, so none is done before each has looked
        timed = type("Timed", (_Timed, trainer), {})
        with (
            undone(model),
            loop_of(
                ctx,
                config,
                model,
                rows,
                tokenizer,
                steps=UNTIMED + TIMED,
                optimizer=optimizer,
                trainer=timed,
                digests={},
            ) as loop,
        ):
            loop.train()
            release(loop.model)
        measured = statistics.median(later - earlier for earlier, later in pairwise(loop.ends[UNTIMED - 1 :]))
        del loop
        gc.collect()  # its optimizer, before the run makes its own
    found: float = once(ctx, "timing", lambda folder: {"seconds": measured})[1]["seconds"]
    return found


class _Timed(_Trainer):
    """Mixed into a trainer before the loop's own mixin: steps, and nothing that is saved, told or evaluated."""

    ends: list[float]

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> LambdaLR:
        """A schedule of the run's own might not fit into so few steps."""
        if self.lr_scheduler is None:
            self.lr_scheduler = LambdaLR(optimizer or self.optimizer, lambda step: 1.0)
        found: LambdaLR = self.lr_scheduler
        return found

    def restore(self) -> None:
        """There is nothing to go on from."""
        self.ends = []

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Remember when the step ended, on the device too."""
        if "learning_rate" in logs:
            float(self._step_loss)
            self.ends.append(time.perf_counter())

    def after_step(self, control: Any) -> None:
        """Neither saves nor stops."""


@contextmanager
def undone(model: PreTrainedModel) -> Iterator[None]:
    """What happens to the trained parameters of `model`, and to the generators, is undone at the end."""
    parameters, generators = checkpoints.trained(model), checkpoints.rng_state()
    before = {name: parameter.detach().cpu().clone() for name, parameter in parameters.items()}
    dtype = model.config.dtype
    yield
    for name, parameter in parameters.items():
        parameter.data, parameter.grad = before[name].to(parameter.device), None
    model.config.dtype = dtype
    checkpoints.set_rng_state(generators)
