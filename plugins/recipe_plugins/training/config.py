"""What every training stage is configured by, without torch: optimizer, schedule, budget, batch, precision.

A budget is turned into optimizer steps once, by `Budget.steps_for`, both for `plan` and for the run; nothing after it
knows another unit. Rows are always `sequence_length` tokens long, so a step is `batch_size` × `sequence_length` tokens.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from recipe_plugins.filters.rules.where import parsed
from recipe_plugins.schedules.config import Tokens
from recipe_runner import (
    Config,
    Corpus,
    Count,
    Execution,
    ExecutionConfig,
    Input,
    Optimizer,
    RecipeError,
    Ref,
    Schedule,
    Slot,
    StageConfig,
    Use,
)

CHINCHILLA = 20
"""Tokens per parameter at which a model of given FLOPs is best (Hoffmann et al. 2022, arXiv:2203.15556, table 3)."""

AUTO_MICRO_TOKENS = 8192
"""Tokens of one forward pass when `execution.micro_batch` is `auto`."""

MANY_LOGITS = 2**26
"""Logits of a forward pass (256 MiB in fp32) above which the loss is taken in chunks, unless the recipe says."""

MAX_REPEATS = 4.0
"""Up to so many times, text read again is worth nearly as much as new text (Muennighoff et al. 2023, arXiv:2305.16264,
section 6)."""

UNITS = ("steps", "tokens", "epochs", "tokens_per_parameter", "flops", "minutes")
"""The units of a budget."""

COUNTED_BY = {
    "epochs": "rows", "tokens_per_parameter": "parameters", "flops": "flops_per_token", "minutes": "seconds_per_step",
}  # fmt: skip
"""What must be known to turn a budget into steps, by its unit."""


class Budget(Config):
    """How long to train: exactly one of the units, times `scale`."""

    steps: Annotated[Annotated[Count, Field(ge=1)] | None, Field(description="optimizer steps")] = None
    tokens: Annotated[Annotated[Count, Field(ge=1)] | None, Field(description="of the rows, padding included")] = None
    epochs: Annotated[float, Field(gt=0, description="times through the rows")] | None = None
    tokens_per_parameter: (
        Annotated[float, Field(gt=0, description="of all parameters, tied ones once; Chinchilla's is 20")] | None
    ) = None
    flops: Annotated[float, Field(gt=0, description="of forward and backward passes, as `plan` counts them")] | None = (
        None
    )
    minutes: (
        Annotated[float, Field(gt=0, description="of steps as they were timed at the start; not exactly repeatable")]
        | None
    ) = None
    scale: Annotated[float, Field(gt=0, description="stretches or shrinks the budget")] = 1.0

    @model_validator(mode="after")
    def _one_unit(self) -> Budget:
        given = [unit for unit in UNITS if getattr(self, unit) is not None]
        if len(given) != 1:
            hint = f"; a unit that another layer gave is taken away by `{given[0]}: null`" if given else ""
            raise ValueError(
                f"exactly one of {', '.join(UNITS)} is expected, got {' and '.join(given) or 'none'}{hint}"
            )
        return self

    def steps_for(
        self,
        *,
        batch_size: int,
        sequence_length: int,
        rows: int | None = None,
        parameters: int | None = None,
        flops_per_token: float | None = None,
        seconds_per_step: float | None = None,
    ) -> int | None:
        """Optimizer steps, at least 1; `None` where it depends on something that is not known.

        Epochs are rounded up to whole steps, the others to the nearest one.
        """
        per_step = batch_size * sequence_length
        if self.epochs is not None:
            return None if rows is None else max(1, math.ceil(self.epochs * self.scale * rows / batch_size - 1e-9))
        of_a_step = {
            "steps": 1.0,
            "tokens": per_step,
            "tokens_per_parameter": per_step / parameters if parameters else None,
            "flops": flops_per_token * per_step if flops_per_token else None,
            "minutes": seconds_per_step / 60 if seconds_per_step else None,
        }[self.unit]
        return None if of_a_step is None else max(1, round(getattr(self, self.unit) * self.scale / of_a_step))

    @property
    def unit(self) -> str:
        """The one that is given."""
        return next(unit for unit in UNITS if getattr(self, unit) is not None)


class Evaluation(Config):
    """What is measured on held-out text while training, and what follows from it.

    The best model is that of the lowest bits per byte, as a mean over domains that count alike; `keep: best` measures
    the last step too, whatever `every` is.
    """

    every: Annotated[int, Field(ge=0, description="steps; 0 measures at the end only")] = 0
    samples: Annotated[int, Field(ge=0, description="beginnings of held-out documents that the model goes on")] = 2
    sample_tokens: Annotated[int, Field(ge=1, description="of a continuation, at most")] = 32
    keep: Annotated[Literal["last", "best"], Field(description="whose weights are the result")] = "last"
    early_stopping: Annotated[int, Field(ge=0, description="evaluations without a better one; 0 never stops")] = 0

    @model_validator(mode="after")
    def _needs_steps(self) -> Evaluation:
        if not self.every and (self.keep == "best" or self.early_stopping):
            raise ValueError("keep: best and early_stopping need evaluations while training: set `every`")
        return self

    def is_due(self, step: int, steps: int) -> bool:
        """Whether to measure after `step`, from 1, of `steps`."""
        return bool(self.every) and (step % self.every == 0 or (self.keep == "best" and step == steps))


Logits = Literal["chunked", "all", "none"]


def _switch(value: Any) -> Any:
    """What YAML makes of `on` and `off`, as the words again."""
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else value


class LoopConfig(StageConfig):
    """What the training loop takes, whichever optimizer it runs."""

    logits_held: ClassVar[Logits] = "chunked"
    """Of a forward pass: a chunk's, where there are many; or always all, where the loss is one of whole answers."""
    keeps_branch: ClassVar[bool] = False
    """Whether the state at the end of the stable phase is kept beside the checkpoints."""

    schedule: Annotated[Use[Schedule], Slot("schedule")] = "wsd"  # type: ignore[assignment]
    budget: Budget
    batch_size: Annotated[int, Field(ge=1, description="rows a step, over all ranks and micro-batches")]
    sequence_length: Annotated[int, Field(ge=8, description="tokens a row")]
    precision: Annotated[
        Literal["fp32", "bf16", "bf16-master", "fp16", "fp8"],
        Field(
            description="of the matrix products; trained weights are fp32, in bf16-master bf16 with fp32 masters; "
            "fp16 scales the loss, and leaves a step out whose gradients overflow; fp8 rounds the linear layers but "
            "the head, needs `compile` and a GPU of compute capability 8.9, and trains in full only"
        ),
    ] = "fp32"
    max_grad_norm: Annotated[float, Field(ge=0, description="gradients are clipped to it; 0 clips nothing")] = 1.0
    z_loss: Annotated[
        float, Field(ge=0, description="weight of the squared log-normaliser (PaLM, arXiv:2204.02311, takes 1e-4)")
    ] = 0.0
    skip_spikes: Annotated[
        float,
        Field(ge=0, description="deviations above the last losses at which a step is left out (OLMo-core: 6); 0: none"),
    ] = 0.0
    gradient_checkpointing: Annotated[
        bool, Execution(), Field(description="compute activations again in place of keeping them")
    ] = False
    compile: Annotated[bool, Execution(), Field(description="through torch.compile")] = False
    attention: Annotated[
        Literal["auto", "sdpa", "flex", "flash2"],
        Execution(),
        Field(description="auto: flash2 or flex on CUDA, which need no dense mask for packed rows; else sdpa"),
    ] = "auto"
    chunked_loss: Annotated[
        Literal["auto", "on", "off"],
        BeforeValidator(_switch),
        Execution(),
        Field(description="never hold all logits; auto: where a forward pass has more than 2**26, and with liger"),
    ] = "auto"
    liger: Annotated[
        bool, Execution(), Field(description="Llama's norms and the chunked loss by Liger's kernels (extra; CUDA)")
    ] = False

    @model_validator(mode="after")
    def _liger(self) -> LoopConfig:
        if self.liger and self.execution.device in ("cpu", "mps"):
            raise ValueError(f"liger: its kernels need a CUDA GPU, and execution.device is {self.execution.device}")
        if self.liger and self.precision == "fp16":
            raise ValueError("liger: its loss makes gradients before fp16's scale is on them; take precision: bf16")
        return self

    @model_validator(mode="after")
    def _fp8(self) -> LoopConfig:
        if self.precision != "fp8":
            return self
        if self.execution.device in ("cpu", "mps"):
            raise ValueError(f"precision: fp8 needs a GPU that has it, and execution.device is {self.execution.device}")
        if not self.compile:
            raise ValueError("precision: fp8 is slower than bf16 without torch.compile: set compile: true")
        if getattr(self, "adapter", None) is not None:
            raise ValueError("precision: fp8 is for training in full; an adapter's base takes bf16")
        return self

    @model_validator(mode="after")
    def _attention(self) -> LoopConfig:
        refuse_attention(self.attention, self.precision, self.execution.device)
        return self

    @model_validator(mode="after")
    def _divided(self) -> LoopConfig:
        """Of a step among the ranks, and of the steps, where they are known already, among the schedule's phases."""
        micro_batch(self, self.execution.processes)
        steps, phases = self.steps(), getattr(self.schedule_in_steps.config, "lengths", None)
        if steps is not None and phases is not None:
            phases(steps)
        return self

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one optimizer step, padding included."""
        return self.batch_size * self.sequence_length

    @property
    def schedule_in_steps(self) -> Use[Schedule]:
        """The schedule, its lengths in tokens as the steps that read as many, rounded up."""
        chosen, per_step = self.schedule, self.tokens_per_step
        lengths = {name: -(-value.tokens // per_step) for name, value in chosen.config if isinstance(value, Tokens)}
        return Use(chosen.component, chosen.config.model_copy(update=lengths), chosen.options)

    def steps(self, **known: Any) -> int | None:
        """The budget in optimizer steps; see `Budget.steps_for` for what it may be given."""
        return self.budget.steps_for(batch_size=self.batch_size, sequence_length=self.sequence_length, **known)

    def resolved_steps(self, **known: Any) -> int:
        """The same, of a run. Raises `RecipeError` where this stage cannot know what the budget is in."""
        found = self.steps(**known)
        if found is None:
            unit = self.budget.unit
            raise RecipeError(f"a budget in {unit} cannot be turned into steps here", next="give it in steps or tokens")
        return found


class TrainingConfig(LoopConfig):
    """A training stage that brings its own optimizer."""

    optimizer: Annotated[Use[Optimizer], Slot("optimizer")] = "adamw"  # type: ignore[assignment]
    embedding_lr: Annotated[
        float,
        Field(gt=0, description="rate of embedding and head, as a share of the optimizer's"),
    ] = 1.0


class Selection(Config):
    """The documents of a domain whose scores fulfil a condition: scores of steps that said `keep_scores: true`."""

    domain: str
    where: Annotated[str, Field(description="such as quality >= 0.8")]

    @model_validator(mode="after")
    def _readable(self) -> Selection:
        parsed(self.where)
        return self


class TextConfig(LoopConfig):
    """A stage that trains on a corpus's text, packed into full rows."""

    corpus: Annotated[Ref, Input((Corpus,))]
    mix: Annotated[
        dict[str, Annotated[float, Field(gt=0)]],
        Field(description="weight of each domain in tokens; left out, every domain by its size"),
    ] = {}
    select: Annotated[
        dict[str, Selection], Field(description="parts of domains, chosen by score; the key is a name for the mix")
    ] = {}
    max_repeats: Annotated[float, Field(gt=0, description="how often a domain may be read, at most")] = MAX_REPEATS
    isolate: Annotated[bool, Field(description="no attention from one document to another")] = True
    encoder: Annotated[
        Literal["auto", "tokenizers", "tiktoken", "gigatoken"],
        Execution(),
        Field(description="what turns text into ids; auto: the fastest that is installed and gives the same ids"),
    ] = "auto"
    evaluation: Evaluation = Field(default_factory=dict)  # type: ignore[assignment]

    @model_validator(mode="after")
    def _selected(self) -> TextConfig:
        idle = sorted(set(self.select) - set(self.mix))
        if idle:
            what = f"{idle[0]!r} has no weight: name it in `mix`, beside the domains to be read whole"
            raise RecipeError(what, field=["select", idle[0]])
        return self


def refuse_attention(attention: str, precision: str, device: str) -> None:
    """Raise `RecipeError` where the attention that is asked for does not train, on `device` if that is decided."""
    if attention in ("flex", "flash2") and device in ("cpu", "mps"):
        raise RecipeError(
            f"attention: {attention} has no backward pass on {device}",
            next="use attention: sdpa",
            field=["attention"],
        )
    if attention == "flash2" and precision == "fp32":
        raise RecipeError(
            "attention: flash2 computes in 16 bits only",
            next="use precision: bf16, or attention: flex",
            field=["attention"],
        )


def micro_batch(config: LoopConfig, world_size: int) -> tuple[int, int]:
    """Rows of a forward pass, and forward passes a step, on each of `world_size` ranks.

    Raises `RecipeError` where the rows of a step cannot be divided among the ranks.
    """
    per_rank, rest = divmod(config.batch_size, world_size)
    if rest:
        raise RecipeError(
            f"a step of {config.batch_size} rows cannot be divided among {world_size} processes",
            next="make batch_size a multiple of execution.processes",
            field=["batch_size"],
        )
    rows = _rows_at_once(config.execution, config.tokens_per_step // config.batch_size, per_rank)
    return rows, math.ceil(per_rank / rows)


def _rows_at_once(execution: ExecutionConfig, tokens_per_row: int, per_rank: int) -> int:
    if execution.micro_batch == "auto":
        return min(per_rank, max(1, AUTO_MICRO_TOKENS // tokens_per_row))
    return min(per_rank, execution.micro_batch)
