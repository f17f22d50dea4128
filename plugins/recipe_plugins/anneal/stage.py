"""The stage `anneal`: from the branch point of a model, on its own mixture, the learning rate to zero.

Guarantee: weights, optimizer state, parameter groups and rate are those at the end of the stable phase, so the only
things that change at the joint are the data and the schedule; the rates on both sides of it are noted.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel

from recipe_plugins.anneal.config import FOREIGN, AnnealConfig, unbranched
from recipe_plugins.training import checkpoints
from recipe_plugins.training.loading import load_model, load_tokenizer
from recipe_plugins.training.run import OPTIMIZER
from recipe_plugins.training.text import same_tokens, train_on_text
from recipe_runner import Model, Optimizer, StageContext, Use


@dataclass(frozen=True, slots=True)
class Start:
    """Where annealing begins: the optimizer, its state if there is one, and the rate before the joint if known."""

    optimizer: Use[Optimizer]
    state: Path | None
    lr: float | None


class AnnealStage:
    """See the module's text."""

    def __init__(self, config: AnnealConfig) -> None:
        self.config = config

    def run(self, ctx: StageContext) -> None:
        """Load, branch off, train, save."""
        source = ctx.open(self.config.model)
        assert isinstance(source, Model)
        tokenizer = load_tokenizer(ctx, source)
        digest = source.digest
        if self.config.tokeniser is not None:
            given = ctx.open(self.config.tokeniser)
            same_tokens(load_tokenizer(ctx, given), tokenizer)
            digest = given.digest
        model = load_model(ctx, source)
        start = self._start(source, model)
        result = train_on_text(
            ctx,
            self.config,
            model,
            tokenizer,
            purpose="anneal",
            digest=digest,
            optimizer=start.optimizer,
            optimizer_state=start.state,
        )
        ctx.note(lr_joint=self._joint(start, result.steps))

    def _start(self, source: Model, model: PreTrainedModel) -> Start:
        """The branch point, whose weights go into `model`; or its end, if the recipe says so."""
        if self.config.fresh_optimizer is not None:
            return Start(self.config.fresh_optimizer, None, None)
        branch = source.branch_point()
        if branch is None:
            raise unbranched(self.config.model, _why_not(source))
        checkpoints.load_weights(model, branch.path / checkpoints.WEIGHTS)
        optimizer = OPTIMIZER.validate_json((branch.path / "optimizer.json").read_bytes())
        return Start(optimizer, branch.path / "optimizer.pt", branch.lr)

    def _joint(self, start: Start, steps: int) -> dict[str, float | None]:
        """The learning rates on both sides of the joint."""
        peak = start.lr if start.lr is not None else start.optimizer.config.lr  # type: ignore[attr-defined]
        return {"before": start.lr, "first": peak * self.config.schedule_in_steps.build().factor(0, steps)}


def _why_not(source: Model) -> str:
    if not source.manifest:
        return FOREIGN
    training = source.facts.get("training", {})
    schedule = training.get("schedule", {}).get("use", "its schedule")
    last = source.facts.get("last_step", {}).get("step", source.facts.get("steps"))
    if last is not None and last < training.get("steps", 0):
        return f"it ended after step {last} of {training['steps']}, in no stable phase ({schedule})"
    return f"it keeps no state of a stable phase ({schedule} left none)"
