"""The one training loop: a mixin over transformers' `Trainer` and TRL's trainers, which all stages share.

    class TokenTrainer(RecipeTrainerMixin, Trainer): ...
    class SupervisedTrainer(RecipeTrainerMixin, SFTTrainer): ...

It decides optimizer and groups, schedule, data order, loss normalisation, events, checkpoints and resume; a stage
prepares model and rows. Guarantees: the loss is the sum over tokens divided by the number of supervised tokens of the
whole step (counted after the shift, over all micro-batches and ranks), zero where there is none; every step's loss is
an event; NaN stops the run and says what was read; a run that was killed and resumed gives bit-identical losses and
weights on one machine with equal threads and execution.

Restoring happens at `on_train_begin`, when the library has built everything, so none of its own checkpoint code runs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from itertools import islice
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from recipe_plugins.training import checkpoints, sharding
from recipe_plugins.training.attention import IN_ONE_ROW
from recipe_plugins.training.groups import param_groups
from recipe_plugins.training.job import Job
from recipe_plugins.training.loading import DTYPES
from recipe_plugins.training.losses import ChunkedHead, FusedHead, summed_loss, summed_z
from recipe_plugins.training.masters import Masters
from recipe_plugins.training.order import StepBatches, end_to_end, stack
from recipe_plugins.training.progress import Clock, Counters, Evaluations, LossScale, LowLoss, Spikes
from recipe_plugins.training.resuming import Resumable
from recipe_plugins.training.routing import Routing
from recipe_runner import RecipeError, Schedule

AUTOCAST: Mapping[str, torch.dtype] = {"bf16": torch.bfloat16, "fp8": torch.bfloat16, "fp16": torch.float16}
"""What the precisions whose weights are fp32 compute in; the products that fp8 takes over have their own."""

NAMED_DOCUMENTS = 12
"""Documents of a batch that an error names."""


class RecipeTrainerMixin(Resumable):
    """See the module's text. Everything but `job` goes to the trainer that it is mixed into.

    `arguments_class` and `library_arguments` are what the trainer's arguments are made with, beside those that
    `recipe_plugins.training.run` passes to every trainer.
    """

    arguments_class: type[TrainingArguments] = TrainingArguments
    library_arguments: Mapping[str, Any] = {}
    moves_at_once: bool = True  # whether the first step must have a gradient
    cross_entropy: bool = True  # whether that is the loss: else no z_loss, no chunks of it, no balance of experts

    args: Any  # the library's

    def __init__(self, *, job: Job, **library: Any) -> None:
        self.job, self.counters, self.clock = job, Counters(), Clock()
        self.spikes, self.evaluations, self.low = Spikes(), Evaluations(), LowLoss()
        self.loss_scale = LossScale() if job.precision == "fp16" else None
        self.interrupted = self.stopped_early = False
        self._saved_at = time.monotonic()
        self._step_tokens = self._step_supervised = 0
        super().__init__(data_collator=self.collate, callbacks=[_Hooks(self)], **library)  # type: ignore[call-arg]
        self.model_accepts_loss_kwargs = True  # tells Trainer that the loss is scaled for the whole step already
        self._step_loss = torch.zeros((), device=self.args.device)
        made = FusedHead if job.liger else ChunkedHead
        self.head = chunked_head(self.model, DTYPES[job.precision], made) if job.chunked_loss else None
        self._nats = torch.compile(summed_loss) if self.args.torch_compile else summed_loss
        self.routing = Routing.of(library["model"].config, job.batch_size) if self.cross_entropy else None
        self.branch_step = end_of_stable(job.schedule, job.steps) if job.branch else None
        self.batches = StepBatches(
            len(job.rows),
            steps=job.steps,
            batch_size=job.batch_size,
            micro_batch=job.micro_batch,
            seed=lambda epoch: job.ctx.seed("order", epoch),
            rank=job.ctx.rank,
            world_size=job.ctx.world_size,
        )

    def collate(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """A micro-batch of rows; whatever else is in it, `labels` are (rows, tokens), by which tokens are counted."""
        return stack(rows)

    def step_metrics(self) -> dict[str, float]:
        """What a trainer tells of each step beside the loss; called once a step, on every rank."""
        return {}

    # ── what is optimized, and how ───────────────────────────────────────────────────────────────────────────────

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Our optimizer over our groups; with an earlier stage's state and learning rate, if the job has one."""
        if self.optimizer is None:
            groups = param_groups(self.model if model is None else model, self.job.embedding_lr)
            self.optimizer = (
                Masters(self.job.optimizer, groups)
                if self.job.precision == "bf16-master"
                else self.job.optimizer.build(groups)
            )
            if self.job.optimizer_state is not None:
                mapped = sharding.is_sharded(self.model)
                self._load_optimizer(checkpoints.load(self.job.optimizer_state, mapped=mapped)["optimizer"])
                for group in self.optimizer.param_groups:
                    group["initial_lr"] = group["lr"]
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> LambdaLR:
        """Our schedule as a factor on each group's rate."""
        if self.lr_scheduler is None:
            schedule, total = self.job.schedule, self.job.steps
            self.lr_scheduler = LambdaLR(optimizer or self.optimizer, lambda step: schedule.factor(step, total))
        return self.lr_scheduler

    def _wrap_model(self, model: Any, training: bool = True, dataloader: Any = None) -> Any:
        """A sharded model goes into a wrapper of ours, so that the library puts no DDP around it."""
        if not sharding.is_sharded(model):
            return super()._wrap_model(model, training, dataloader)  # type: ignore[misc]
        found = self.accelerator.prepare_model(model, device_placement=False, evaluation_mode=True)
        return sharding.Sharded(found)

    def compute_loss_context_manager(self) -> Any:
        """What the model is called in, here and wherever else the loop asks it: autocast, where `precision` wants it.

        The library's own would turn all logits into fp32 as they leave the model, and would refuse fp16 on a CPU.
        """
        dtype = AUTOCAST.get(self.job.precision)
        return torch.autocast(self.args.device.type, dtype) if dtype else nullcontext()

    def scaled(self, loss: torch.Tensor) -> torch.Tensor:
        """What `compute_loss` returns, so that fp16 gradients do not vanish; `_unscale` undoes it."""
        return loss * self.loss_scale.scale if self.loss_scale else loss

    def _unscale(self) -> None:
        if self.loss_scale:
            for parameter in self.model.parameters():
                if parameter.grad is not None:
                    parameter.grad.div_(self.loss_scale.scale)

    def _clip_grad_norm(self, model: Any) -> Any:
        self._unscale()
        return super()._clip_grad_norm(model)  # type: ignore[misc]

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        if grad_norm is None:  # nothing was clipped
            self._unscale()
        self._norm = sharding.whole(super()._get_grad_norm(model, grad_norm))  # type: ignore[misc]
        return self._norm

    def get_train_dataloader(self) -> DataLoader:
        """Our order of rows; its generator is its own, so that reading draws nothing from the global one."""
        return DataLoader(
            self.job.rows,  # type: ignore[arg-type]
            batch_sampler=self.batches,
            collate_fn=self.collate,
            num_workers=0,
            generator=torch.Generator(),
        )

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: Any) -> tuple[list, Any]:
        """The micro-batches of a step, and its supervised tokens over all ranks (at least 1, to divide by)."""
        batches = list(islice(epoch_iterator, num_batches))
        labelled = [batch["labels"][:, 1:] != -100 for batch in batches]
        counts = torch.tensor(
            [
                sum(batch["labels"].numel() for batch in batches),
                sum(int(mask.sum()) for mask in labelled),
                sum(int((~mask.any(dim=1)).sum()) for mask in labelled),
            ],
            device=device,
        )
        tokens, supervised, without = (int(count) for count in self.accelerator.reduce(counts, reduction="sum"))
        self.counters.tokens += tokens
        self.counters.supervised_tokens += supervised
        self.counters.rows_without_labels += without
        self._step_tokens, self._step_supervised = tokens, supervised
        return batches, torch.tensor(max(1, supervised), device=device)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """This micro-batch's share of the step's mean loss, times the ranks, over which gradients are averaged."""
        labels = inputs.pop("labels")
        inputs = end_to_end(inputs) if self.job.attention in IN_ONE_ROW else inputs
        with self.head.instead() if self.head else nullcontext():
            outputs = model(**inputs, use_cache=False, **(self.routing.arguments if self.routing else {}))
        share = self.accelerator.num_processes / num_items_in_batch
        loss, nats = self._summed(outputs.logits, labels, share)
        loss = loss * share
        self._step_loss += nats.detach() * share  # without what is added to it, so that it stays comparable
        if self.routing:
            loss = loss + self.routing.loss(outputs.router_logits, labels) * self.accelerator.num_processes
        loss = self.scaled(loss)
        return (loss, outputs) if return_outputs else loss

    def _summed(
        self, logits: torch.Tensor, labels: torch.Tensor, share: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The sum to differentiate, and that of the cross-entropy alone; `share` is what the sum is multiplied by."""
        z_loss = self.job.z_loss
        if self.head:
            loss, nats = self.head.losses(labels, z_loss, self.scaled(share) if self.loss_scale else 1.0)
            return loss + logits.sum(), nats  # of no token: it ties the pass to the loss, as a sharded model needs
        logits = logits.view(*labels.shape, -1)
        nats = self._nats(logits, labels)
        return (nats + z_loss * summed_z(logits, labels) if z_loss else nats), nats

    def before_step(self) -> None:
        """Leave the step out, as if it had no gradient, if it overflows or is a spike; the schedule goes on."""
        step = self.state.global_step + 1
        if (self.loss_scale and self.loss_scale.overflows(step, float(self._norm))) or self._is_spike(step):
            for parameter in self.model.parameters():
                parameter.grad = None  # which every optimizer passes over

    def _is_spike(self, step: int) -> bool:
        if not self.job.skip_spikes:
            return False
        loss = float(self.accelerator.reduce(self._step_loss, reduction="mean"))
        return self.spikes.is_one(step, loss, self.job.skip_spikes)

    def floating_point_ops(self, inputs: Mapping[str, Any]) -> int:
        """Not counted here: the library would count the model's parameters anew for every micro-batch."""
        return 0

    # ── telling about it ─────────────────────────────────────────────────────────────────────────────────────────

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Emit the metrics of a step; the library's own sums and summaries are not used."""
        if "learning_rate" not in logs:
            return
        step = self.state.global_step
        loss = float(self.accelerator.reduce(self._step_loss, reduction="mean"))
        self._step_loss.zero_()
        norm = float(logs["grad_norm"])
        left_out = self.loss_scale is not None and self.loss_scale.left_out(step)
        if not (math.isfinite(loss) and (math.isfinite(norm) or left_out)):
            raise self._diverged(step, loss, norm)
        self.last_loss = loss
        self.low.add(step, loss, self._step_supervised)
        rate = self.clock.step(self._step_tokens)
        experts = (
            self.routing.metrics(lambda part: self.accelerator.reduce(part, reduction="sum")) if self.routing else {}
        )
        told = {"loss": loss, "lr": logs["learning_rate"], **experts, **self.step_metrics()}
        told |= {} if left_out else {"grad_norm": norm}
        self.job.ctx.metrics(step, **told, **self._found(step), tokens_per_second=rate)
        self.job.ctx.progress(step, self.job.steps, "steps", f"loss {loss:.3f}")

    def _found(self, step: int) -> dict[str, float]:
        """What else there is to tell of `step`: skipped steps so far, what held-out data says."""
        found = {"skipped_steps": float(len(self.spikes.skipped))} if self.job.skip_spikes else {}
        if self.loss_scale:
            found |= {"loss_scale": self.loss_scale.scale, "overflowed_steps": float(len(self.loss_scale.overflowed))}
        last = self.evaluations.found[-1:]
        if last and last[0].step == step:
            found |= {f"{last[0].measure}/{domain}": value for domain, value in last[0].measured.items()}
        return found

    def _diverged(self, step: int, loss: float, norm: float) -> RecipeError:
        kept = checkpoints.latest(self.root)
        return RecipeError(
            f"step {step}: the loss is {loss} and the gradient norm {norm}; training was stopped{self._read(step)}",
            next="lower the learning rate or max_grad_norm, or lengthen the warm-up"
            + (", or use precision: bf16, whose range is that of fp32" if self.loss_scale else "")
            + (f"\nthe state before it is kept in {kept}" if kept else ""),
        )

    def _read(self, step: int) -> str:
        """What was read in `step`, as far as the rows know."""
        names: Callable[[int], Sequence[str]] = getattr(self.job.rows, "documents", lambda number: ())
        found = list(dict.fromkeys(name for number in self.batches.of_all_ranks(step - 1) for name in names(number)))
        more = f" and {len(found) - NAMED_DOCUMENTS} more" if len(found) > NAMED_DOCUMENTS else ""
        return f"\nit had read {', '.join(found[:NAMED_DOCUMENTS])}{more}" if found else ""

    def evaluate_now(self) -> bool:
        """Evaluate, if this step is one for it; whether that found the best model so far."""
        evaluator, step = self.job.evaluator, self.state.global_step
        if evaluator is None or not evaluator.settings.is_due(step, self.job.steps):
            return False
        begun = time.perf_counter()
        with self.compute_loss_context_manager():
            found = evaluator.evaluate(self.model, step)
        sharding.after_forward(self.model)
        if self.job.ctx.world_size > 1:
            found = broadcast_object_list([found])[0]  # what is decided by it must be the same everywhere
        better, patience = self.evaluations.add(found), evaluator.settings.early_stopping
        self.stopped_early = bool(patience) and self.evaluations.no_better >= patience
        self.clock.leave_out(begun)
        return better and evaluator.settings.keep == "best"

    # ── checkpoints ──────────────────────────────────────────────────────────────────────────────────────────────

    def after_step(self, control: TrainerControl) -> None:
        """Decide, at the end of a step, whether to save and whether to stop."""
        step, ctx = self.state.global_step, self.job.ctx
        best = self.evaluate_now()
        late = 0 < self.job.checkpoint_seconds <= time.monotonic() - self._saved_at
        stopping, late = self._any_rank(ctx.stopping(), late)
        self.interrupted = stopping and step < self.job.steps and not self.stopped_early
        if self.stopped_early and self.branch_step and self.job.schedule.phase(step - 1, self.job.steps) == "stable":
            self.branch_step = step  # the stable phase ends here
        due = step % self.job.checkpoint_every == 0 or step in (self.job.steps, self.branch_step)
        stop = self.interrupted or self.stopped_early
        control.should_save = due or late or best or stop
        control.should_training_stop = control.should_training_stop or stop

    def _any_rank(self, *asked: bool) -> list[bool]:
        """Of each question, whether any rank says yes: all of them do the same after the same step."""
        if self.job.ctx.world_size == 1:
            return list(asked)
        answers = torch.tensor([float(answer) for answer in asked], device=self.args.device)
        return [bool(answer) for answer in self.accelerator.reduce(answers, reduction="sum")]


class _Hooks(TrainerCallback):
    """Where the library calls the mixin back."""

    def __init__(self, trainer: RecipeTrainerMixin) -> None:
        self.trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any
    ) -> None:
        self.trainer.restore()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any
    ) -> None:
        self.trainer.before_step()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any) -> None:
        self.trainer.after_step(control)


class TokenTrainer(RecipeTrainerMixin, Trainer):
    """The loop over transformers' own trainer: pretraining and annealing."""


def chunked_head(model: Any, dtype: torch.dtype, made: type[ChunkedHead] = ChunkedHead) -> ChunkedHead | None:
    """The head of `model`, to be taken in chunks; `None` where its logits are not a plain product of it."""
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear or head.bias is not None:
        return None
    found = made(head, dtype)
    fits = found.fits(model)
    sharding.after_forward(model)
    return found if fits else None


def end_of_stable(schedule: Schedule, steps: int) -> int | None:
    """The number of steps after which the stable phase of `schedule` is over; `None` if it has none."""
    return next((step for step in range(steps, 0, -1) if schedule.phase(step - 1, steps) == "stable"), None)
