"""What pretraining and annealing share: rows from a corpus, the loop over them, and what is told at the end."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from recipe_plugins.training import machine, run, sharding
from recipe_plugins.training.config import COUNTED_BY, Budget, TextConfig
from recipe_plugins.training.estimate import flops_per_token, shape_of_folder, state_bytes_of, training_facts
from recipe_plugins.training.evaluation import TextEvaluator, evaluated
from recipe_plugins.training.groups import param_groups
from recipe_plugins.training.loading import save_model
from recipe_plugins.training.store import MixedRows, Portion, TokenStore, build_store, divide, documents, nth, rows_of
from recipe_plugins.training.timing import seconds_per_step
from recipe_plugins.training.trainer import RecipeTrainerMixin, TokenTrainer
from recipe_runner import Corpus, Optimizer, RecipeError, StageContext, Use


def train_on_text(
    ctx: StageContext,
    config: TextConfig,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    purpose: str,
    digest: str,
    optimizer: Use[Optimizer],
    optimizer_state: Path | None = None,
    branch: Path | None = None,
    trainer: type[RecipeTrainerMixin] = TokenTrainer,
    save: Callable[[], None] | None = None,
    before: Mapping[str, float] | None = None,
) -> run.TrainResult:
    """Train `model` on the corpus of `config`, and save the payload: the model, unless `save` does it.

    `purpose` is a word for the seed, so that two stages do not read a domain in the same order. `digest` is that of the
    tokeniser; the rest goes to `run.train`. Notes the mixture, and at the end sizes, throughput and held-out bits per
    byte; beside those that were there `before`, if they were measured, as `forgetting`.
    """
    corpus = ctx.open(config.corpus)
    assert isinstance(corpus, Corpus)
    machine.ready(config)
    device = machine.device(config.execution)
    evaluator = TextEvaluator(config.evaluation, corpus, tokenizer, config.sequence_length, device)
    text = _Text.stored(ctx, config, corpus, tokenizer, digest)
    known = text.known(model)
    if config.budget.unit == "minutes":
        rows = text.to_time()
        seconds = seconds_per_step(ctx, config, model, rows, tokenizer, optimizer=optimizer, trainer=trainer)
        ctx.warn(f"budget.minutes: a step was timed at {seconds:.3g} s; what is trained depends on it, and so on luck")
        known["seconds_per_step"] = seconds
    steps = config.resolved_steps(**known)
    ctx.note(budget=_budget(config.budget, known, steps))
    result = run.train(
        ctx,
        config,
        model,
        text.rows(steps, purpose),
        tokenizer,
        steps=steps,
        optimizer=optimizer,
        digests={"tokeniser": digest, "corpus": corpus.digest},
        trainer=trainer,
        evaluator=evaluator,
        optimizer_state=optimizer_state,
        branch=branch,
    )
    if ctx.rank and not sharding.wanted(ctx, config.execution):
        return result
    with sharding.asked(ctx, config.execution, model) as there:
        now = evaluator.bits_per_byte(there)
    if ctx.rank == 0:
        if save is None:
            save_model(model, tokenizer, ctx.payload)
        else:
            save()
        ctx.note(**_measured(_facts(ctx, model, optimizer, result), now, before))
    return result


def _budget(budget: Budget, known: Mapping[str, Any], steps: int) -> dict[str, Any]:
    """The budget as it was given, what made steps of it (all parameters, tied ones once), and the steps."""
    by = COUNTED_BY.get(budget.unit)
    counted = {} if by is None else {by: known[by]}
    return {budget.unit: getattr(budget, budget.unit), "scale": budget.scale, **counted, "steps": steps}


def _measured(facts: dict[str, Any], now: Mapping[str, float], before: Mapping[str, float] | None) -> dict[str, Any]:
    """The facts, with held-out bits per byte `now`, and beside those `before`, if they were measured."""
    if before is None:
        return {**facts, "bits_per_byte": now}
    found = {name: {"before": before[name], "after": now[name]} for name in now if name in before}
    return {**facts, "forgetting": found, "tables": [*facts["tables"], _forgetting(found)], "bits_per_byte": now}


def _facts(
    ctx: StageContext, model: PreTrainedModel, optimizer: Use[Optimizer], result: run.TrainResult
) -> dict[str, Any]:
    parameters = model.num_parameters()
    sizes = [(group.role, sum(p.numel() for p in group.params)) for group in param_groups(model)]
    trainable = sum(size for _, size in sizes)
    matrices = sum(size for role, size in sizes if role == "matrix")
    facts = training_facts(
        tokens=result.tokens,
        parameters=parameters,
        trainable=trainable,
        shape=shape_of_folder(ctx.payload),
        vocab_size=model.config.vocab_size,
        state_bytes=state_bytes_of(optimizer.config, trainable, matrices),
        tokens_per_second=result.tokens_per_second,
    )
    return {"loss": result.loss, "steps": result.steps, **facts, **evaluated(ctx, result, facts["tables"])}


def _forgetting(found: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """The domains before and after, as people read it: what fell was learned, what rose was forgotten."""
    pairs = [(name, pair["before"], pair["after"]) for name, pair in found.items()]
    rows = [[name, f"{was:.4f}", f"{now:.4f}", f"{now - was:+.4f}"] for name, was, now in pairs]
    return {"title": "held-out bits per byte", "columns": ["domain", "before", "after", "change"], "rows": rows}


@dataclass(frozen=True, slots=True)
class _Text:
    """The text of a stage: its token store, and rows of it."""

    ctx: StageContext
    config: TextConfig
    corpus: Corpus
    store: TokenStore

    @classmethod
    def stored(
        cls, ctx: StageContext, config: TextConfig, corpus: Corpus, tokenizer: PreTrainedTokenizerBase, digest: str
    ) -> _Text:
        """The domains of the mixture, or all that have a document, encoded now or by an earlier attempt."""
        names = list(config.mix) or [name for name, found in corpus.domains("train").items() if found.documents]
        store = build_store(ctx, corpus, tokenizer, names, config.select, config.encoder, digest=digest)
        return cls(ctx, config, corpus, store)

    def known(self, model: PreTrainedModel) -> dict[str, Any]:
        """What turns a budget into steps; FLOPs are counted of a model that trains whole, as in `tuning.tune`."""
        length, whole = self.config.sequence_length, all(p.requires_grad for p in model.parameters())
        return {
            "rows": sum(rows_of(domain.tokens, length) for domain in self.store.domains.values()),
            "parameters": model.num_parameters(),
            "flops_per_token": flops_per_token(model.config.to_dict(), length) if whole else None,
        }

    def rows(self, steps: int, purpose: str) -> MixedRows:
        """Those of the whole run, in the mixture that is noted."""
        config = self.config
        divided = divide(self.store, config.mix, steps * config.batch_size, config.sequence_length, config.max_repeats)
        self.ctx.note(
            mix={name: asdict(portion) for name, portion in divided.items()},
            max_repeats=config.max_repeats,
            isolate=config.isolate,
        )
        unread = [name for name, portion in divided.items() if not portion.rows]
        if unread:
            rows = steps * config.batch_size
            self.ctx.warn(
                f"nothing is read of {' and '.join(unread)}: so small a share of {rows} rows is less than one"
            )
        return self._mixed(divided, purpose)

    def to_time(self) -> MixedRows:
        """Those of one step, to be read again and again."""
        config = self.config
        return self._mixed(
            divide(self.store, config.mix, config.batch_size, config.sequence_length, math.inf), "timing"
        )

    def _mixed(self, divided: Mapping[str, Portion], purpose: str) -> MixedRows:
        corpus, select = self.corpus, self.config.select
        return MixedRows(
            self.store,
            divided,
            length=self.config.sequence_length,
            isolate=self.config.isolate,
            seed=lambda domain, epoch: self.ctx.seed("mix", purpose, domain, epoch),
            name=lambda domain, number: f"{domain}/{nth(documents(corpus, domain, select.get(domain)), number).id}",
        )


def same_tokens(one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> None:
    """Raise `RecipeError` unless two tokenizers have the same vocabulary."""
    mine, theirs = one.get_vocab(), other.get_vocab()
    if mine != theirs:
        differ = len(set(mine.items()) ^ set(theirs.items()))
        raise RecipeError(
            f"the tokeniser is not the model's own: {differ} entries of their vocabularies differ",
            next="leave `tokeniser` out, which takes the model's own",
        )
