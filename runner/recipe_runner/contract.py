"""What all built-ins and third parties fit: the protocols of the kinds, and the data that passes between them.

A component is a class (or function) that is called with its config and returns an object of its kind's protocol.
Names and fields here may grow; meanings may not change. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

from pydantic import Field, field_validator

from recipe_runner.components import Config, Execution, Ref, Slot, Use

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from recipe_runner.artifacts import Artifact

# ── data ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Counts:
    """Documents, and bytes of their UTF-8 text."""

    documents: int = 0
    bytes: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(self.documents + other.documents, self.bytes + other.bytes)


@dataclass(frozen=True, slots=True)
class Record:
    """One document (`text`) or conversation (`messages`, ChatML roles); exactly one of the two is set.

    `meta["group"]`, where there is one, decides the split: records of one group never stand on both sides of it.
    `priority` is the place of its source in the recipe, set while a curation runs and not stored: of equal documents
    the one with the lowest (priority, id) survives.
    """

    id: str
    text: str | None = None
    messages: Sequence[Mapping[str, Any]] | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)
    priority: int = 0

    @property
    def size(self) -> int:
        """Bytes of UTF-8 text, of all turns for a conversation."""
        parts = [self.text] if self.text is not None else [str(m.get("content") or "") for m in self.messages or ()]
        return sum(len(part.encode("utf-8", "surrogatepass")) for part in parts)


Row = Mapping[str, Any]
"""One raw row of a source, before a `Format` makes a `Record` of it."""


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be read: counted in the ledger as `reason`, with `where` (file:line) kept.

    `detail` is what people are told of this row alone, such as the columns that it has; rows are counted without it.
    """

    where: str
    reason: str
    detail: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a source that one process reads alone; `key` is stable, `payload` picklable and the source's own."""

    key: str
    payload: Any = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a filter says of one record: kept (in how many `copies`) or not and why, a changed text, scores.

    `spans` say which parts gave a removed record away, as JSON.
    """

    keep: bool
    reason: str = ""
    text: str | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    copies: int = 1
    spans: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True, slots=True)
class Branch:
    """Where a later stage goes on from: weights and optimizer state in `path`, tokens seen, phase and rate there."""

    path: Path
    step: int
    tokens: int
    phase: str
    lr: float


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened: `kind` is one of `recipe_runner.events.KINDS`, `data` is JSON."""

    kind: str
    stage: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)
    time: float = 0.0


@dataclass(frozen=True, slots=True)
class KnownInput:
    """What `plan` knows of an input: its facts (noted if it exists, estimated if not), its payload, if on disk, and
    of one on the hub its `org/name[@revision]`."""

    facts: Mapping[str, Any] = field(default_factory=dict)
    payload: Path | None = None
    hub: str = ""


@dataclass(frozen=True, slots=True)
class Known:
    """What a stage may use to estimate itself: its inputs by field path (`corpus`, `models.base`)."""

    inputs: Mapping[str, KnownInput] = field(default_factory=dict)

    def fact(self, name: str, fact: str, default: Any = None) -> Any:
        """A fact of input `name`, or `default`."""
        return self.inputs.get(name, KnownInput()).facts.get(fact, default)


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What a stage will cost, from its config alone; `None`, or a missing entry, reads `unknown`.

    `memory` and `disk` are bytes; `memory` is that of one process, by component (`weights`, `gradients`,
    `master_weights`, `optimizer_states`, `activations`), `alternatives` what it would be in all, by what one would
    change. `facts` is what later stages may build on before this one has run, such as `vocab_size`.
    """

    parameters: int | None = None
    trainable: int | None = None
    tokens: int | None = None
    steps: int | None = None
    flops: float | None = None
    memory: Mapping[str, int] = field(default_factory=dict)
    alternatives: Mapping[str, int] = field(default_factory=dict)
    disk: int | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()


# ── stages ───────────────────────────────────────────────────────────────────────────────────────────────────────


class ExecutionConfig(Config):
    """How a stage runs; nothing here enters its key. Bit-exactness holds for equal values on one machine."""

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    processes: Annotated[int, Field(ge=1, description="ranks of a training stage")] = 1
    strategy: Annotated[Literal["ddp", "fsdp"], Field(description="whole copies, or sharded as `shard` says")] = "ddp"
    shard: Annotated[
        Literal["optimizer-and-gradients", "all"], Field(description="what fsdp shards: ZeRO-2, or ZeRO-3")
    ] = "all"
    threads: Annotated[int, Field(ge=1, description="of a process; auto: torch decides")] | Literal["auto"] = "auto"
    workers: Annotated[int, Field(ge=1, description="processes that prepare data")] | Literal["auto"] = "auto"
    micro_batch: Annotated[int, Field(ge=1, description="rows a forward pass")] | Literal["auto"] = "auto"
    checkpoint_every: Annotated[int, Field(ge=1, description="steps")] = 100
    checkpoint_minutes: Annotated[float, Field(ge=0, description="and at least so often; 0: by steps alone")] = 0.0
    keep_checkpoints: Annotated[int, Field(ge=1, description="the last ones")] = 2
    launcher: Annotated[Use[Launcher], Slot("launcher")] = "local"  # type: ignore[assignment]

    @field_validator("strategy", mode="before")
    @classmethod
    def _no_deepspeed(cls, value: object) -> object:
        if value == "deepspeed":
            raise ValueError(
                "deepspeed is not taken: `fsdp` shards as its ZeRO-2 does (shard: optimizer-and-gradients; ZeRO-1 is a "
                "part of it), or as its ZeRO-3 (shard: all)"
            )
        return value


class StageConfig(Config):
    """Base of every stage's config."""

    seed: int | None = Field(default=None, description="the recipe's, unless set here")
    execution: Annotated[ExecutionConfig, Execution()] = Field(default_factory=dict)  # type: ignore[assignment]

    def produces(self) -> type[Artifact]:
        """The type of the artifact, from config alone."""
        raise NotImplementedError

    def estimate(self, known: Known) -> Estimate:
        """What it will cost, without importing torch; unknown unless a stage says more."""
        return Estimate()


class StageContext(Protocol):
    """What a stage gets. `payload/` is committed and digested; `work/` (checkpoints, pieces) goes at commit;
    `folder` holds both and what lies beside them (ledger.json, samples.json, removed/)."""

    folder: Path
    payload: Path
    work: Path
    rank: int
    world_size: int
    allow_remote_code: bool

    def open(self, ref: Ref) -> Artifact:
        """The artifact behind an input; a hub name is fetched at its revision."""
        ...

    def seed(self, *words: str | int) -> int:
        """A seed in [0, 2**63) from the effective seed and `words`; no stage name, no rank, no global state."""
        ...

    def metrics(self, step: int, **values: float) -> None:
        """One row of metrics, as an event; ranks other than 0 say nothing."""
        ...

    def resume_from(self, step: int) -> None:
        """Cut the metric rows after `step`: the run goes on from there."""
        ...

    def flush(self) -> None:
        """Return once everything emitted so far is on disk; call it before a checkpoint is marked complete."""
        ...

    def emit(self, event: Event) -> None:
        """Tell the listeners something."""
        ...

    def progress(self, done: float, total: float | None = None, unit: str = "", note: str = "") -> None:
        """How far the stage is; shown, not kept."""
        ...

    def note(self, **facts: Any) -> None:
        """Measured or derived facts (JSON), into the manifest."""
        ...

    def warn(self, text: str) -> None:
        """A warning that is a result: shown, and kept in the manifest."""
        ...

    def stopping(self) -> bool:
        """Whether SIGINT or SIGTERM was seen: save, then raise `Interrupted`."""
        ...


class Stage(Protocol):
    """Built as `target(config)`; runs in a child process, once per rank. It looks into `ctx.work` first."""

    def run(self, ctx: StageContext) -> None:
        """Make `ctx.payload`; whatever `ctx.work` already holds is gone on from."""
        ...


class Launcher(Protocol):
    """How the ranks of a stage are started: `local` here, others elsewhere."""

    def launch(self, job: Path, execution: ExecutionConfig, inherit: Sequence[int]) -> int:
        """Run `python -m recipe_runner.worker JOB` once per rank with RANK and WORLD_SIZE set; return the exit status.

        `inherit` are descriptors that the children must keep open: the key's lock lasts as long as they do.
        """
        ...


class Tracker(Protocol):
    """A listener named under `trackers:`; lives in the parent process."""

    def on_event(self, event: Event) -> None:
        """Called for every event, in order."""
        ...


# ── data components ──────────────────────────────────────────────────────────────────────────────────────────────


class Source(Protocol):
    """Where raw rows come from."""

    def revision(self) -> tuple[str, bool]:
        """The identity of what it would read, and whether that is pinned; cheap."""
        ...

    def pieces(self) -> Sequence[Piece]:
        """Its parts, in a stable order."""
        ...

    def read(self, piece: Piece) -> Iterator[Row | BadRow]:
        """The rows of one piece, in a stable order."""
        ...


class Format(Protocol):
    """The only way from a raw row to a `Record`."""

    def record(self, row: Row) -> Record | BadRow:
        """The record; its `id` may be empty, and is then made from its place in the source."""
        ...


class Filter(Protocol):
    """Judges documents. Pure: the same verdicts in any process, order or batch.

    One that has `share(memory)` is given, before it judges, a dict that all filters of a process may use.
    """

    def judge(self, batch: Sequence[Record]) -> Sequence[Verdict]:
        """One verdict a record, in order."""
        ...


class RecordFilter(Protocol):
    """A `Filter` written for one record; a curation asks it for each of a batch."""

    def judge_one(self, record: Record) -> Verdict:
        """The verdict on one record."""
        ...


@dataclass(frozen=True, slots=True)
class OneByOne:
    """Makes a `Filter` of a `RecordFilter`."""

    filter: RecordFilter

    def judge(self, batch: Sequence[Record]) -> list[Verdict]:
        """One verdict a record, in order."""
        return [self.filter.judge_one(record) for record in batch]


def batched(filter: Any) -> Any:
    """The filter itself, or around one that has `judge_one` instead of `judge` a `Filter`."""
    return filter if hasattr(filter, "judge") else OneByOne(filter)


class GlobalFilter(Protocol):
    """A filter that sees all documents before it judges any: the only barrier in a curation."""

    def sketch(self, batch: Sequence[Record]) -> bytes:
        """What it must remember of a batch."""
        ...

    def decide(self, sketches: Iterable[bytes], work: Path) -> Path:
        """Write what `judge` needs under `work`, from all sketches in the stable order; return its path."""
        ...

    def judge(self, batch: Sequence[Record], state: Path) -> Sequence[Verdict]:
        """One verdict a record, in order."""
        ...


# ── training components ──────────────────────────────────────────────────────────────────────────────────────────


@dataclass(slots=True)
class ParamGroup:
    """Parameters that share settings. `role` is `matrix`, `embedding`, `head` or `vector`.

    Matrices are stored (outputs, inputs), as `torch.nn.Linear` does, or (inputs, outputs) if `input_first`.
    """

    params: list[torch.nn.Parameter]
    role: str
    decay: bool
    lr_scale: float = 1.0
    input_first: bool = False


class Architecture(Protocol):
    """Builds a model from scratch; its config has `parameters(vocab_size: int) -> int`, torch-free, for `plan`."""

    def build(self, vocab_size: int) -> PreTrainedModel:
        """A model with fp32 weights, initialised from torch's global generator (which the stage seeds)."""
        ...

    def register(self) -> None:
        """Register a type that transformers lacks with AutoConfig / AutoModelForCausalLM; else do nothing."""
        ...


class Optimizer(Protocol):
    """Builds an optimizer; its config has `lr: float` and `state_bytes(parameters: int) -> int`, for `plan`.

    A config that has `matrix_state_bytes(parameters: int) -> int` too is asked that of parameters of role `matrix`.
    """

    def build(self, groups: Sequence[ParamGroup]) -> torch.optim.Optimizer:
        """Called after any sharding; each group's rate is `lr * lr_scale`; its `state_dict` must be exact."""
        ...


class Schedule(Protocol):
    """A factor on the learning rate. Pure, in optimizer steps counted from 0."""

    def factor(self, step: int, total: int) -> float:
        """The factor for `step` of `total`."""
        ...

    def phase(self, step: int, total: int) -> str:
        """`warmup`, `stable` or `decay`."""
        ...
