"""What the loop remembers from step to step, apart from weights: all of it stands in a checkpoint's `state.json`.

A resumed run goes on with the same numbers, so that counting, early stopping and skipping are as exact as the weights.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

UNTIMED_STEPS = 10
"""Steps at the start of a process that throughput leaves out."""

REMEMBERED = 128
"""Losses that a spike is told from, as in OLMo-core's SkipStepOptimizer; none is called one before half of them."""


@dataclass(slots=True)
class Counters:
    """What has been trained on since step 0: all tokens, those with a label, and rows that had none."""

    tokens: int = 0
    supervised_tokens: int = 0
    rows_without_labels: int = 0


@dataclass(slots=True)
class Clock:
    """Tokens and seconds of this process's steps, without the first `UNTIMED_STEPS`, saving and evaluation."""

    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    since: float = field(default_factory=time.perf_counter)

    def step(self, tokens: int) -> float:
        """Account for a step that ends now; its tokens per second."""
        now = time.perf_counter()
        took, self.since, self.steps = now - self.since, now, self.steps + 1
        if self.steps > UNTIMED_STEPS:
            self.tokens, self.seconds = self.tokens + tokens, self.seconds + took
        return tokens / took

    def restart(self) -> None:
        """Leave out what happened since the last step."""
        self.since = time.perf_counter()

    def leave_out(self, begun: float) -> None:
        """Leave out what happened since `begun` (of `time.perf_counter`), within a step."""
        self.since += time.perf_counter() - begun

    @property
    def tokens_per_second(self) -> float | None:
        """Over the timed steps; `None` while there are none."""
        return self.tokens / self.seconds if self.seconds else None


@dataclass(slots=True)
class Spikes:
    """Steps that were left out because their loss stood out, and the losses that this is told from.

    A loss stands out above the mean of the last `REMEMBERED` accepted ones plus so many of their standard deviations
    (AI2's OLMo-core, `SkipStepOptimizer`, which takes 6).
    """

    losses: list[float] = field(default_factory=list)
    skipped: list[int] = field(default_factory=list)

    def is_one(self, step: int, loss: float, deviations: float) -> bool:
        """Whether the loss of `step` stands out; remembers it as skipped or accepted."""
        known = self.losses
        spike = len(known) >= REMEMBERED // 2 and loss > statistics.fmean(known) + deviations * statistics.pstdev(known)
        if spike:
            self.skipped.append(step)
        else:
            self.losses = [*known, loss][-REMEMBERED:]
        return spike


@dataclass(slots=True)
class Evaluated:
    """Held-out bits per byte by domain after `step`, and what the model went on to say: (beginning, continuation)."""

    step: int
    bits_per_byte: Mapping[str, float]
    samples: Sequence[Sequence[str]] = ()

    @property
    def mean(self) -> float:
        """Over the domains, each counting the same."""
        return statistics.fmean(self.bits_per_byte.values())


@dataclass(slots=True)
class Evaluations:
    """All evaluations so far, the step of the best, and how many since were no better."""

    found: list[Evaluated] = field(default_factory=list)
    best_step: int | None = None
    best: float | None = None
    no_better: int = 0

    @classmethod
    def of(cls, saved: Mapping) -> Evaluations:
        """From JSON."""
        return cls(**{**saved, "found": [Evaluated(**entry) for entry in saved["found"]]})

    def add(self, evaluated: Evaluated) -> bool:
        """Remember it; whether it is the best so far. One that is not a number is never the best."""
        self.found.append(evaluated)
        better = evaluated.mean < (math.inf if self.best is None else self.best)
        if better:
            self.best_step, self.best, self.no_better = evaluated.step, evaluated.mean, 0
        else:
            self.no_better += 1
        return better
