"""How the loop saves itself and goes on: the half of the mixin that knows checkpoints.

A checkpoint has weights, optimizer, schedule, every generator of every rank, the position in the data, and all that
`progress` remembers; tensors are whole, however the model is sharded. Guarantee: going on from one gives what going
straight on would have given. One of another world size, other data or another length is refused, never guessed at.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from recipe_plugins.training import checkpoints, sharding
from recipe_plugins.training.job import Job
from recipe_plugins.training.masters import take_masters
from recipe_plugins.training.order import StepBatches
from recipe_plugins.training.progress import Clock, Counters, Evaluations, LossScale, LowLoss, Spikes
from recipe_runner import RecipeError


class Resumable:
    """See the module's text; what is declared here the trainer has."""

    job: Job
    counters: Counters
    clock: Clock
    spikes: Spikes
    evaluations: Evaluations
    low: LowLoss
    loss_scale: LossScale | None
    batches: StepBatches
    last_loss: float = math.nan
    branch_step: int | None = None
    resumed_from: int | None = None
    stopped_early: bool = False
    _saved_at: float

    model: Any  # these are the library's
    optimizer: Any
    lr_scheduler: Any
    accelerator: Any
    state: Any

    @property
    def root(self) -> Path:
        """Where the checkpoints lie."""
        return self.job.ctx.work / "checkpoints"

    def _load_optimizer(self, state: dict[str, Any]) -> None:
        if self.job.precision != "bf16-master":
            take_masters(state, self.optimizer)
        self.optimizer.load_state_dict(sharding.resharded(state, self.optimizer))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Called by the library after `log`, so that the metrics of the step are out before the mark."""
        step, main = self.state.global_step, self.job.ctx.rank == 0
        weights = sharding.to_save(checkpoints.trained(self.model), main)
        state = {"optimizer": self.optimizer.state_dict(), "schedule": self.lr_scheduler.state_dict()}
        state = sharding.to_save(state, main)
        with checkpoints.writing(f"the checkpoint of step {step}"):
            folder = checkpoints.fresh(self.root, step) if main else self.root / f"step-{step}"
            self.accelerator.wait_for_everyone()
            torch.save(checkpoints.rng_state(), folder / f"rng-{self.job.ctx.rank}.pt")
            if main:
                checkpoints.save_weights(weights, folder / checkpoints.WEIGHTS)
                torch.save(state, folder / "optimizer.pt")
                (folder / checkpoints.STATE).write_text(json.dumps(self._state()), encoding="utf-8")
            self.accelerator.wait_for_everyone()
            if main:
                if step == self.branch_step:
                    self._keep_branch(folder)  # before the mark, from which on nobody would come here again
                checkpoints.complete(folder, self.job.ctx.flush)
                checkpoints.prune(self.root, self.job.keep_checkpoints, besides=self.kept_step)
            self.accelerator.wait_for_everyone()  # a rank that ends, asked to stop, ends those that are still writing
        self._saved_at = time.monotonic()
        self.clock.restart()

    @property
    def kept_step(self) -> int | None:
        """The step whose weights are the result, if that is not the last."""
        evaluator = self.job.evaluator
        return self.evaluations.best_step if evaluator and evaluator.settings.keep == "best" else None

    def _state(self) -> dict[str, Any]:
        step = self.state.global_step
        return {
            "step": step,
            "steps": self.job.steps,
            "position": step * self.job.batch_size,
            "world_size": self.job.ctx.world_size,
            "digests": dict(self.job.digests),
            "counters": asdict(self.counters),
            "loss": self.last_loss,
            "spikes": asdict(self.spikes),
            "evaluations": asdict(self.evaluations),
            "low_loss": asdict(self.low),
            "loss_scale": asdict(self.loss_scale) if self.loss_scale else None,
            "stopped_early": self.stopped_early,
            "own": self.own_state(),
        }

    def own_state(self) -> dict[str, Any]:
        """What else a trainer remembers from step to step, as JSON; the same on every rank."""
        return {}

    def take_own(self, state: Mapping[str, Any]) -> None:
        """Remember what `own_state` gave."""

    def _keep_branch(self, folder: Path) -> None:
        assert self.job.branch is not None
        step = self.state.global_step
        facts = {
            "step": step,
            "tokens": self.counters.tokens,
            "phase": self.job.schedule.phase(step - 1, self.job.steps),
            "lr": self.lr_scheduler.get_last_lr()[0],
        }
        checkpoints.keep(folder, self.job.branch, branch=facts, optimizer=self.job.optimizer_use)

    def restore(self) -> None:
        """Go on from the last complete checkpoint, if there is one.

        Raises `RecipeError` if it was written by another number of ranks, for other data, or for another length, and
        where ranks see different ones.
        """
        folder = checkpoints.latest(self.root)
        self._refuse_unlike(folder)
        if folder is None:
            self.job.ctx.resume_from(0)  # rows of an attempt that ended before its first checkpoint are void
            self.clock.restart()
            return
        saved = json.loads((folder / checkpoints.STATE).read_text(encoding="utf-8"))
        self._refuse_another(saved, folder)
        checkpoints.load_weights(self.model, folder / checkpoints.WEIGHTS)
        state = checkpoints.load(folder / "optimizer.pt", mapped=sharding.is_sharded(self.model))
        self._load_optimizer(state["optimizer"])
        self.lr_scheduler.load_state_dict(state["schedule"])
        self.counters, self.last_loss = Counters(**saved["counters"]), saved["loss"]
        self.spikes, self.evaluations = Spikes(**saved["spikes"]), Evaluations.of(saved["evaluations"])
        self.low = LowLoss(**saved["low_loss"])
        self.loss_scale = LossScale(**saved["loss_scale"]) if self.loss_scale else None
        self.stopped_early = saved["stopped_early"]
        self.take_own(saved["own"])
        self.state.global_step = self.batches.start = self.resumed_from = saved["step"]
        if self.stopped_early:
            self.batches.start = self.job.steps  # there is nothing more to read
        self.job.ctx.resume_from(saved["step"])
        checkpoints.set_rng_state(checkpoints.load(folder / f"rng-{self.job.ctx.rank}.pt"))
        self.clock.restart()

    def _refuse_unlike(self, folder: Path | None) -> None:
        if self.job.ctx.world_size == 1:
            return
        own = int(folder.name.removeprefix("step-")) if folder else 0
        steps = self.accelerator.gather(torch.tensor([own], device=self.accelerator.device)).tolist()
        if len(set(steps)) > 1:
            raise RecipeError(
                f"the ranks see different last checkpoints in {self.root}: {steps}, by rank",
                next="the store must be one folder that all nodes share; if it is, run the same command again",
            )

    def _refuse_another(self, saved: Mapping[str, Any], folder: Path) -> None:
        world_size = self.job.ctx.world_size
        if saved["world_size"] != world_size:
            raise RecipeError(
                f"the run to go on with had {saved['world_size']} processes, this one has {world_size}",
                next=f"set execution.processes: {saved['world_size']} to continue it exactly"
                "\nor start the stage anew with `recipe run --restart STAGE`",
            )
        for what, was, now in (
            ("the data or the tokeniser", saved["digests"], dict(self.job.digests)),
            ("the number of steps", saved["steps"], self.job.steps),
            ("the batch size", saved["position"], saved["step"] * self.job.batch_size),
        ):
            if was != now:
                raise RecipeError(
                    f"{folder} was written before {what} changed ({was} then, {now} now)",
                    next="start the stage anew with `recipe run --restart STAGE`",
                )
