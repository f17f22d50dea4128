"""What pretraining and annealing share: rows from a corpus, the loop over them, and what is told at the end."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from recipe_plugins.training import machine, run
from recipe_plugins.training.config import TextConfig
from recipe_plugins.training.estimate import flops_per_token, shape_of_folder, training_facts
from recipe_plugins.training.evaluation import TextEvaluator, evaluated
from recipe_plugins.training.loading import save_model
from recipe_plugins.training.once import once
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
    names = list(config.mix) or [name for name, found in corpus.domains("train").items() if found.documents]
    device = machine.device(config.execution)
    evaluator = TextEvaluator(config.evaluation, corpus, tokenizer, config.sequence_length, device)
    store = build_store(ctx, corpus, tokenizer, names, config.select)
    steps = _steps(ctx, config, store, model, optimizer, corpus)
    rows = _rows(ctx, config, store, steps, purpose, corpus)
    result = run.train(
        ctx,
        config,
        model,
        rows,
        tokenizer,
        steps=steps,
        optimizer=optimizer,
        digests={"tokeniser": digest, "corpus": corpus.digest},
        trainer=trainer,
        evaluator=evaluator,
        optimizer_state=optimizer_state,
        branch=branch,
    )
    if ctx.rank == 0:
        if save is None:
            save_model(model, tokenizer, ctx.payload)
        else:
            save()
        facts, now = _facts(ctx, model, optimizer, result), evaluator.bits_per_byte(model)
        if before is not None:
            facts["forgetting"] = {name: {"before": before[name], "after": now[name]} for name in now if name in before}
            facts["tables"] = [*facts["tables"], _forgetting(facts["forgetting"])]
        ctx.note(**facts, bits_per_byte=now)
    return result


def _facts(
    ctx: StageContext, model: PreTrainedModel, optimizer: Use[Optimizer], result: run.TrainResult
) -> dict[str, Any]:
    parameters, cost = model.num_parameters(), optimizer.config
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    facts = training_facts(
        tokens=result.tokens,
        parameters=parameters,
        trainable=trainable,
        shape=shape_of_folder(ctx.payload),
        vocab_size=model.config.vocab_size,
        state_bytes=cost.state_bytes(trainable),  # type: ignore[attr-defined]
        tokens_per_second=result.tokens_per_second,
    )
    return {"loss": result.loss, "steps": result.steps, **facts, **evaluated(ctx, result, facts["tables"])}


def _forgetting(found: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """The domains before and after, as people read it: what fell was learned, what rose was forgotten."""
    pairs = [(name, pair["before"], pair["after"]) for name, pair in found.items()]
    rows = [[name, f"{was:.4f}", f"{now:.4f}", f"{now - was:+.4f}"] for name, was, now in pairs]
    return {"title": "held-out bits per byte", "columns": ["domain", "before", "after", "change"], "rows": rows}


def _steps(
    ctx: StageContext,
    config: TextConfig,
    store: TokenStore,
    model: PreTrainedModel,
    optimizer: Use[Optimizer],
    corpus: Corpus,
) -> int:
    """The budget in steps; one in minutes is resolved by the first attempt, and kept for those that go on from it."""
    known: dict[str, Any] = {
        "rows": sum(rows_of(domain.tokens, config.sequence_length) for domain in store.domains.values()),
        "parameters": model.num_parameters(),
        "flops_per_token": flops_per_token(model.config.to_dict(), config.sequence_length),
    }
    if config.budget.unit == "minutes":
        divided = divide(store, config.mix, config.batch_size, config.sequence_length, math.inf)
        rows = _mixed(ctx, config, store, divided, "timing", corpus)
        timed = lambda folder: {"seconds": seconds_per_step(config, model, rows, optimizer, ctx.world_size)}  # noqa: E731
        seconds = known["seconds_per_step"] = once(ctx, "timing", timed)[1]["seconds"]
        ctx.warn(f"budget.minutes: a step was timed at {seconds:.3g} s; what is trained depends on it, and so on luck")
    steps = config.resolved_steps(**known)
    ctx.note(budget={config.budget.unit: getattr(config.budget, config.budget.unit), "steps": steps})
    return steps


def _rows(
    ctx: StageContext, config: TextConfig, store: TokenStore, steps: int, purpose: str, corpus: Corpus
) -> MixedRows:
    wanted = steps * config.batch_size
    divided = divide(store, config.mix, wanted, config.sequence_length, config.max_repeats)
    ctx.note(
        mix={name: asdict(portion) for name, portion in divided.items()},
        max_repeats=config.max_repeats,
        isolate=config.isolate,
    )
    return _mixed(ctx, config, store, divided, purpose, corpus)


def _mixed(
    ctx: StageContext,
    config: TextConfig,
    store: TokenStore,
    divided: Mapping[str, Portion],
    purpose: str,
    corpus: Corpus,
) -> MixedRows:
    return MixedRows(
        store,
        divided,
        length=config.sequence_length,
        isolate=config.isolate,
        seed=lambda domain, epoch: ctx.seed("mix", purpose, domain, epoch),
        name=lambda domain, number: f"{domain}/{nth(documents(corpus, domain, config.select.get(domain)), number).id}",
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
