"""What the loop is told by `run.train`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from recipe_plugins.training.config import Evaluation
from recipe_plugins.training.order import Rows
from recipe_plugins.training.progress import Evaluated
from recipe_runner import Optimizer, Schedule, StageContext


class Evaluator(Protocol):
    """Measures a model on what it is not trained on."""

    settings: Evaluation

    def evaluate(self, model: Any, step: int) -> Evaluated:
        """What `model` is worth after `step`; the same on every rank, and without a random number."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What the loop is told: how to step, over which rows, how often to save.

    `digests` names the data and tokeniser that a checkpoint belongs to. `optimizer_state` is a file of an earlier stage
    (`branch/optimizer.pt`) to begin from; `branch` is the folder that gets the state at the end of the stable phase,
    with `optimizer_use`, how a recipe would write the optimizer. `checkpoint_seconds` of 0 saves by steps alone.
    `evaluator` measures the model every so many steps. `precision` is the recipe's. With `chunked_loss` the head's
    product is taken in chunks, if it can be; with `liger` too, by its kernel. `attention` is as
    `training.attention.chosen` says; `embedding_lr` is described at `param_groups`.
    """

    ctx: StageContext
    optimizer: Optimizer
    optimizer_use: Mapping[str, Any]
    schedule: Schedule
    rows: Rows
    steps: int
    batch_size: int
    micro_batch: int
    checkpoint_every: int
    checkpoint_seconds: float
    keep_checkpoints: int
    z_loss: float
    skip_spikes: float
    chunked_loss: bool
    liger: bool
    attention: str
    precision: str
    digests: Mapping[str, str]
    evaluator: Evaluator | None = None
    optimizer_state: Path | None = None
    branch: Path | None = None
    embedding_lr: float = 1.0
