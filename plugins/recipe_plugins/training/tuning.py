"""What fine-tuning stages share: rows from conversations, and what the model's answers are worth at the end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from recipe_plugins.training.conversations import Renderer
from recipe_plugins.training.estimate import Shape, flops_per_token, training_facts
from recipe_plugins.training.generation import stops
from recipe_plugins.training.job import Evaluator
from recipe_plugins.training.machine import ready
from recipe_plugins.training.once import once
from recipe_plugins.training.packing import StoredRows, write_rows
from recipe_plugins.training.preparation import note_prepared, prepare, prepared_tables, write_samples
from recipe_plugins.training.run import TrainResult, train
from recipe_plugins.training.supervised import SupervisedTrainer
from recipe_plugins.training.trainer import RecipeTrainerMixin
from recipe_plugins.training.tuning_config import TuningConfig
from recipe_runner import Corpus, RecipeError, Record, StageContext


def open_corpus(ctx: StageContext, config: TuningConfig) -> Corpus:
    """The corpus of `config`, where this machine can train as it says."""
    ready(config)
    corpus = ctx.open(config.corpus)
    assert isinstance(corpus, Corpus)
    return corpus


def prepare_rows(ctx: StageContext, config: TuningConfig, corpus: Corpus, renderer: Renderer) -> StoredRows:
    """The rows of the training split, prepared now or by an earlier attempt.

    Writes `preparation.json` and `samples.json` beside the payload, and notes the former as `preparation`.
    Raises `RecipeError` where the corpus holds plain text, or too many conversations are lost.
    """

    def write(folder: Path) -> dict[str, Any]:
        encoded, report = prepare(
            _records(corpus),
            renderer,
            sequence_length=config.sequence_length,
            train_on=config.train_on,
            max_dropped=config.max_dropped,
        )
        write_rows(encoded, folder, sequence_length=config.sequence_length, packing=config.packing)
        write_samples(ctx, ((row.record.id, row) for row in encoded), renderer.tokenizer)
        return report.as_json()

    folder, report = once(ctx, "rows", write)
    rows = StoredRows(folder)
    report |= {"packed_rows": len(rows), "filled": round(report["tokens"] / (len(rows) * config.sequence_length), 6)}
    note_prepared(ctx, report)
    return rows


def _records(corpus: Corpus) -> Iterator[Record]:
    for record in chain.from_iterable(corpus.read(domain, "train") for domain in corpus.domains("train")):
        if record.messages is None:
            raise RecipeError(
                f"record {record.id} of the corpus is plain text; fine-tuning takes conversations",
                next="read its source with `format: messages` or `format: alpaca`, or train on text with `anneal`",
            )
        yield record


@dataclass(frozen=True, slots=True)
class Sizes:
    """Parameters of a model, tied ones once: all, and those that train."""

    parameters: int
    trainable: int


def sizes_of(model: nn.Module) -> Sizes:
    """The sizes of a model whose weights are not quantised."""
    counts = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return Sizes(sum(count for count, _ in counts), sum(count for count, trains in counts if trains))


def tune(
    ctx: StageContext,
    config: TuningConfig,
    model: PreTrainedModel,
    rows: StoredRows,
    renderer: Renderer,
    *,
    sizes: Sizes,
    digests: Mapping[str, str],
    evaluator: Evaluator,
    trainer: type[RecipeTrainerMixin] = SupervisedTrainer,
) -> TrainResult:
    """Train `model`, in place, for the budget of `config`; see `run.train`."""
    whole = sizes.trainable == sizes.parameters
    flops = flops_per_token(model.config.to_dict(), config.sequence_length) if whole else None
    steps = config.resolved_steps(rows=len(rows), parameters=sizes.parameters, flops_per_token=flops)
    return train(
        ctx,
        config,
        model,
        rows,
        renderer.tokenizer,
        steps=steps,
        optimizer=config.optimizer,
        digests=digests,
        evaluator=evaluator,
        trainer=trainer,
    )


def stop_at_end_of_turn(model: PreTrainedModel, renderer: Renderer) -> None:
    """Let generation end where a turn does, or a document."""
    model.generation_config.eos_token_id = sorted(stops(renderer))


def note_result(
    ctx: StageContext, config: TuningConfig, result: TrainResult, *, shape: Shape | None, sizes: Sizes, vocab_size: int
) -> list[dict[str, Any]]:
    """Note what training did, and what the estimates of later stages read; the tables among it."""
    cost: Any = config.optimizer.config
    facts = training_facts(
        tokens=result.tokens,
        parameters=sizes.parameters,
        trainable=sizes.trainable,
        shape=shape,
        vocab_size=vocab_size,
        state_bytes=cost.state_bytes(sizes.trainable),
        tokens_per_second=result.tokens_per_second,
    )
    ctx.note(steps=result.steps, supervised_tokens=result.supervised_tokens, loss=result.loss, **facts)
    return [*facts["tables"], *prepared_tables(ctx)]
