"""`train`: run the loop for a stage. The only place that sets the arguments of transformers' and TRL's trainers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import TypeAdapter
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

from recipe_plugins.training import checkpoints, float8, liger, sharding
from recipe_plugins.training.attention import chosen, isolates, set_attention
from recipe_plugins.training.config import MANY_LOGITS, LoopConfig, TrainingConfig, micro_batch
from recipe_plugins.training.estimate import FAMILY
from recipe_plugins.training.job import Evaluator, Job
from recipe_plugins.training.known_models import unlike
from recipe_plugins.training.machine import device, ready, set_threads, told_memory
from recipe_plugins.training.masters import to_bf16
from recipe_plugins.training.order import Rows
from recipe_plugins.training.progress import Evaluations
from recipe_plugins.training.trainer import RecipeTrainerMixin, TokenTrainer
from recipe_runner import ExecutionConfig, Interrupted, Optimizer, RecipeError, Ref, Slot, StageContext, Use

_FIELDS = TrainingArguments.__dataclass_fields__
CHECKPOINTING = ("activation" if "activation_checkpointing" in _FIELDS else "gradient") + "_checkpointing"
"""What transformers calls gradient checkpointing, which it has renamed within 5.x."""

OPTIMIZER: TypeAdapter[Use[Optimizer]] = TypeAdapter(Annotated[Use[Optimizer], Slot("optimizer")])
"""An optimizer in use, to and from JSON."""

NOTED = (
    "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps", "max_grad_norm", "torch_compile", "seed",
)  # fmt: skip
"""The arguments that are recorded as they were resolved."""


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What a training run did; tokens are counted from step 0, throughput (tokens/s) over this process's steps.

    `loss` is that of the step whose weights are the result, `last_loss` the last step's, in nats a token.
    `resumed_from` is the step that this process began at, if not 0. `low_loss_since` is that of `progress.LowLoss`.
    `kept_step` is the step of the weights, where `keep: best` chose it.
    """

    steps: int
    tokens: int
    supervised_tokens: int
    rows_without_labels: int
    loss: float
    last_loss: float
    tokens_per_second: float | None
    resumed_from: int | None
    evaluations: Evaluations
    low_loss_since: int | None
    kept_step: int | None


def train(
    ctx: StageContext,
    config: LoopConfig,
    model: PreTrainedModel,
    rows: Rows,
    tokenizer: PreTrainedTokenizerBase,
    *,
    steps: int,
    optimizer: Use[Optimizer],
    digests: Mapping[str, str],
    trainer: type[RecipeTrainerMixin] = TokenTrainer,
    evaluator: Evaluator | None = None,
    optimizer_state: Path | None = None,
    branch: Path | None = None,
) -> TrainResult:
    """Train `model`, in place, for `steps` optimizer steps over `rows`; go on from `ctx.work` where a run stopped.

    `model` holds trained parameters in fp32 (frozen ones in any dtype) and is passed in its *initial* state also when
    resuming. `rows` are prepared (see `Rows`); their order is decided here, from `ctx.seed("order", epoch)`. `steps`
    comes from `config.resolved_steps(…)`. `digests` identifies data and tokeniser, for the
    checkpoints. `evaluator` measures the model as its settings say. `trainer` is a class with the mixin, such as
    `SupervisedTrainer` for conversations. `optimizer_state` and `branch` are described at `Job`.

    Emits each step's metrics, notes the resolved arguments as `training`, and leaves `model` on its device (one
    that was sharded in host memory), in eval mode, outside any autocast. Raises `Interrupted` after saving when the run
    is asked to stop, and `RecipeError` when the loss is not a number or a checkpoint does not fit.
    """
    ready(config)
    _refuse(config, rows, trainer)
    _refuse_leaks(config, model)
    _warn_if_unplanned(ctx, config, model)
    with loop_of(
        ctx,
        config,
        model,
        rows,
        tokenizer,
        steps=steps,
        optimizer=optimizer,
        trainer=trainer,
        digests=digests,
        evaluator=evaluator,
        optimizer_state=optimizer_state,
        branch=branch,
    ) as loop:
        resolved = _resolved(loop.args, config, optimizer, steps)
        ctx.note(training={**resolved, "attention": loop.job.attention, "chunked_loss": loop.head is not None})
        if config.compile:
            ctx.warn("compile: a run that is killed and resumed is equal up to rounding, not bit for bit")
        with told_memory(config, loop.job.micro_batch):
            loop.train()
    if loop.interrupted:
        raise Interrupted(f"stopped after step {loop.state.global_step} of {steps}, which is saved")
    _finish(loop, model)
    _tell(ctx, config, loop)
    return _result(loop)


@contextmanager
def loop_of(
    ctx: StageContext,
    config: LoopConfig,
    model: PreTrainedModel,
    rows: Rows,
    tokenizer: PreTrainedTokenizerBase,
    *,
    steps: int,
    optimizer: Use[Optimizer],
    trainer: type[RecipeTrainerMixin],
    **told: Any,
) -> Iterator[Any]:
    """The trainer that runs what `config` says, over `model` or a sharded copy of it; `told` are fields of `Job`.

    Until the end `model` computes by what `config` puts in the place of its own layers.
    """
    with _kernels(ctx, config, model):
        rows_at_once, accumulation = micro_batch(config, ctx.world_size)
        attention = chosen(config, device(config.execution), model)
        set_attention(model, attention)
        if config.precision == "bf16-master":
            to_bf16(model)
        arguments = trainer.arguments_class(
            **_arguments(ctx, config, steps, rows_at_once, accumulation), **trainer.library_arguments
        )
        arguments._n_gpu = min(1, arguments.n_gpu)  # one device a process: never DataParallel
        set_threads(config.execution)  # of several processes on CPUs the library has divided the cores, asked or not
        job = Job(
            ctx=ctx,
            optimizer=optimizer.build(),
            embedding_lr=config.embedding_lr if isinstance(config, TrainingConfig) else 1.0,
            optimizer_use=OPTIMIZER.dump_python(optimizer, mode="json"),
            schedule=config.schedule_in_steps.build(),
            rows=rows,
            steps=steps,
            batch_size=config.batch_size,
            micro_batch=rows_at_once,
            checkpoint_every=config.execution.checkpoint_every,
            checkpoint_seconds=60 * config.execution.checkpoint_minutes,
            keep_checkpoints=config.execution.keep_checkpoints,
            z_loss=config.z_loss,
            skip_spikes=config.skip_spikes,
            chunked_loss=trainer.cross_entropy and _chunked(config, rows_at_once, model),
            liger=config.liger,
            attention=attention,
            precision=config.precision,
            **told,
        )
        trained = _sharded(ctx, config.execution, model, arguments.device)
        loop: Any = trainer(job=job, model=trained, args=arguments, processing_class=tokenizer)
        if config.chunked_loss == "on" and loop.head is None:
            raise RecipeError(
                f"the loss of {type(model).__name__} cannot be taken in chunks: its logits are not a plain product",
                next="leave chunked_loss out",
            )
        yield loop


@contextmanager
def _kernels(ctx: StageContext, config: LoopConfig, model: PreTrainedModel) -> Iterator[None]:
    """Let `model` compute by what `config` puts in the place of its own layers, until it ends."""
    with ExitStack() as stack:
        if config.precision == "fp8":
            ctx.note(fp8=stack.enter_context(float8.instead(model)))
        if config.liger:
            ctx.note(liger=stack.enter_context(liger.instead(model)))
        yield


def _refuse(config: LoopConfig, rows: Rows, trainer: type[RecipeTrainerMixin]) -> None:
    """Raise `RecipeError` for what cannot be trained."""
    if config.z_loss and not trainer.cross_entropy:
        raise RecipeError("z_loss belongs to the cross-entropy of tokens, and this stage trains on another loss")
    if not len(rows):
        raise RecipeError("there is no row to train on", next="look at the ledger of the corpus")


def _refuse_leaks(config: LoopConfig, model: PreTrainedModel) -> None:
    """Raise `RecipeError` where packed documents would see each other: types that do not part them tell nobody.

    Those of llama's family do, and are not asked: a large model would take its time.
    """
    packed, kind = getattr(config, "isolate", False) or getattr(config, "packing", False), model.config.model_type
    if packed and kind not in FAMILY and not isolates(model):
        raise RecipeError(
            f"a model of type {kind!r} lets packed documents see each other, since positions do not part them",
            next="set `isolate: false` (text) or `packing: false` (conversations), or choose another model",
        )


def _warn_if_unplanned(ctx: StageContext, config: LoopConfig, model: PreTrainedModel) -> None:
    """Tell of a model that is not what `plan` took its name for."""
    start = getattr(config, "model", None)
    if isinstance(start, Ref) and (other := unlike(start.text, model.config.to_dict())):
        ctx.warn(other)


def _finish(loop: Any, model: PreTrainedModel) -> None:
    """Leave in `model` the weights that are the result, out of shards, to be asked what is not packed."""
    release(loop.model)
    if sharding.is_sharded(loop.model):
        _gather(loop.model, model)
    set_attention(model, "sdpa")
    if loop.kept_step is not None:
        checkpoints.load_weights(model, loop.root / f"step-{loop.kept_step}" / checkpoints.WEIGHTS)
    model.eval()


def release(model: Any) -> None:
    """Take off the library's mark, by which another trainer would take the model for compiled, without a word."""
    vars(model).pop("_is_accelerate_prepared", None)


def _tell(ctx: StageContext, config: LoopConfig, loop: Any) -> None:
    """Note the steps that were left out. Raises `RecipeError` if fp16 left out every one."""
    if config.skip_spikes:
        ctx.note(skipped_steps=loop.spikes.skipped)
    found, steps = loop.loss_scale, loop.state.global_step
    if not found:
        return
    ctx.note(overflowed_steps=found.overflowed, loss_scale=found.scale)
    if len(found.overflowed) == steps:
        raise RecipeError(
            f"all {steps} steps overflowed in fp16: nothing was trained",
            next="train longer, or use precision: bf16",
        )


def _chunked(config: LoopConfig, rows_at_once: int, model: PreTrainedModel) -> bool:
    """Whether the loss is to be taken in chunks."""
    many = rows_at_once * config.sequence_length * model.config.get_text_config().vocab_size > MANY_LOGITS
    return config.chunked_loss == "on" or (config.chunked_loss == "auto" and (many or config.liger))


def _sharded(ctx: StageContext, execution: ExecutionConfig, model: PreTrainedModel, device: Any) -> PreTrainedModel:
    """What the loop trains: `model`, or a sharded copy of it, while the model itself waits in host memory."""
    if not sharding.wanted(ctx, execution):
        return model
    model.to("cpu")  # type: ignore[arg-type]
    found = sharding.sharded(model, device, ctx.world_size, execution.shard)
    ctx.note(sharded={"what": execution.shard, "ranks": ctx.world_size, "parameters_here": sharding.held(found)})
    return found


@torch.no_grad()
def _gather(trained: PreTrainedModel, model: PreTrainedModel) -> None:
    """Copy sharded weights into the model that they came from; all ranks take part."""
    own = checkpoints.trained(model)
    for name, parameter in checkpoints.trained(trained).items():
        own[name].copy_(sharding.whole(parameter))


def _result(loop: Any) -> TrainResult:
    counters = loop.counters
    return TrainResult(
        steps=loop.state.global_step,
        tokens=counters.tokens,
        supervised_tokens=counters.supervised_tokens,
        rows_without_labels=counters.rows_without_labels,
        loss=loop.last_loss if loop.kept_step is None else checkpoints.state(loop.root, loop.kept_step)["loss"],
        last_loss=loop.last_loss,
        tokens_per_second=loop.clock.tokens_per_second,
        resumed_from=loop.resumed_from,
        evaluations=loop.evaluations,
        low_loss_since=loop.low.since,
        kept_step=loop.kept_step,
    )


def _arguments(
    ctx: StageContext, config: LoopConfig, steps: int, rows_at_once: int, accumulation: int
) -> dict[str, Any]:
    """Every argument that matters, so that no library default decides anything."""
    seed = ctx.seed("training") % 2**32
    return {
        "output_dir": str(ctx.work / "trainer"),
        "max_steps": steps,
        "per_device_train_batch_size": rows_at_once,
        "gradient_accumulation_steps": accumulation,
        "max_grad_norm": config.max_grad_norm,
        "seed": seed,
        "data_seed": seed,
        "bf16": False,  # autocast is the loop's own
        "fp16": False,
        "use_cpu": device(config.execution).type == "cpu",
        CHECKPOINTING: config.gradient_checkpointing,
        CHECKPOINTING + "_kwargs": {"use_reentrant": False},
        "average_tokens_across_devices": True,
        "logging_strategy": "steps",
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "save_strategy": "no",
        "eval_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": False,
        "label_smoothing_factor": 0.0,
        "use_liger_kernel": False,
        "torch_compile": config.compile,
        "auto_find_batch_size": False,
        "ddp_find_unused_parameters": False,
        "push_to_hub": False,
    }


def _resolved(arguments: Any, config: LoopConfig, optimizer: Use[Optimizer], steps: int) -> dict[str, Any]:
    """What the libraries were really told, for the manifest."""
    written = config.model_dump(mode="json", include={"schedule", "precision", "sequence_length", "batch_size"})
    return {
        **{name: getattr(arguments, name) for name in NOTED},
        "gradient_checkpointing": getattr(arguments, CHECKPOINTING),
        **written,
        "optimizer": {"use": optimizer.component.identity, **optimizer.config.model_dump(mode="json")},
        "steps": steps,
        "tokens": steps * config.tokens_per_step,
        "device": str(arguments.device),
        "threads": torch.get_num_threads(),
    }
