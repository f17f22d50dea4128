"""The stage `reward`: a model that says how good an answer is, trained whole or through an adapter.

What is saved is a whole model either way, so that whoever takes it needs to know of no adapter.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from recipe_plugins.reward.config import RewardConfig
from recipe_plugins.reward.model import merged, rewards_of, with_adapter, with_head
from recipe_plugins.reward.trainer import AdapterRewardTrainer, RewardTrainer
from recipe_plugins.training import sharding, tuning
from recipe_plugins.training.config import micro_batch
from recipe_plugins.training.conversations import Renderer, renderer_of
from recipe_plugins.training.estimate import Shape, shape_of_folder, training_facts
from recipe_plugins.training.loading import DTYPES, load_tokenizer, save_model
from recipe_plugins.training.log_probs import ahead
from recipe_plugins.training.machine import device, ready
from recipe_plugins.training.pairs import Documents, ExampleRows, Heldout, heldout_answers, stored_examples
from recipe_plugins.training.preparation import prepared_tables
from recipe_plugins.training.run import TrainResult, train
from recipe_runner import Artifact, Corpus, StageContext


class RewardStage:
    """See the module's text."""

    def __init__(self, config: RewardConfig) -> None:
        self.config = config

    def run(self, ctx: StageContext) -> None:
        """Prepare pairs, train, measure held-out pairs, save."""
        config, length = self.config, self.config.sequence_length
        ready(config)
        start, corpus = ctx.open(config.model), ctx.open(config.corpus)
        assert isinstance(corpus, Corpus)
        tokenizer = load_tokenizer(ctx, start)
        renderer = renderer_of(tokenizer, config.template)
        most = config.max_dropped
        folder = stored_examples(ctx, corpus, renderer, paired=True, sequence_length=length, max_dropped=most)
        limit = config.heldout_pairs
        heldout = heldout_answers(ctx, corpus, renderer, limit=limit, sequence_length=length, only_pairs=True)
        rows = ExampleRows(folder, np.zeros(len(Documents(folder)), np.float32))
        model = self._model(ctx, start, renderer, rows)
        sizes = tuning.sizes_of(model)
        result = train(
            ctx,
            config,
            model,
            rows,
            tokenizer,
            steps=config.resolved_steps(rows=len(rows)),
            optimizer=config.optimizer,
            digests={"model": start.digest, "corpus": corpus.digest},
            trainer=RewardTrainer if config.adapter is None else AdapterRewardTrainer,
        )
        if ctx.rank and not sharding.wanted(ctx, config.execution):
            return
        model = model if config.adapter is None else merged(model)
        with sharding.asked(ctx, config.execution, model) as there:
            found = {name: self._measured(there, domain) for name, domain in heldout.items()}
        if ctx.rank:
            return
        if not found and limit:
            ctx.warn("the corpus has no held-out pair, so accuracy is not measured")
        shape = shape_of_folder(start.payload)
        facts = self._facts(result, shape, sizes, len(tokenizer))
        tables = [*facts.pop("tables"), *prepared_tables(ctx, scored=True), _table(found)]
        ctx.note(steps=result.steps, loss=result.loss, reward=found, tables=tables, **facts)
        save_model(model, tokenizer, ctx.payload)

    def _model(self, ctx: StageContext, start: Artifact, renderer: Renderer, rows: ExampleRows) -> Any:
        """What trains: the model with a head, all of it, or the head and an adapter on the frozen rest."""
        if self.config.adapter is None:
            return with_head(ctx, start, renderer)
        method = self.config.adapter.build()
        execution, seed = self.config.execution, ctx.seed("adapter")
        model = with_head(ctx, start, renderer, DTYPES[self.config.precision]).to(sharding.home(ctx, execution))
        ask = partial(sharding.asked, ctx, execution)
        return with_adapter(model, method, renderer.tokenizer, rows.stored[0][0], seed=seed, ask=ask)

    def _measured(self, model: Any, domain: Heldout) -> dict[str, float]:
        """Means over held-out pairs; accuracy counts a tie as half."""
        rows_at_once, _ = micro_batch(self.config, 1)
        found = rewards_of(
            model,
            domain.documents,
            rows_at_once=rows_at_once,
            device=device(self.config.execution),
            dtype=DTYPES[self.config.precision],
        )
        margins = found.chunk(2)[0] - found.chunk(2)[1]
        means = {"margin": margins.mean(), "accuracy": ahead(margins).mean()}
        return {"pairs": len(margins), **{name: round(float(mean), 6) for name, mean in means.items()}}

    def _facts(self, result: TrainResult, shape: Shape | None, sizes: tuning.Sizes, vocab_size: int) -> dict[str, Any]:
        optimizer: Any = self.config.optimizer.config
        return training_facts(
            tokens=result.tokens,
            parameters=sizes.parameters,
            trainable=sizes.trainable,
            shape=shape,
            vocab_size=vocab_size,
            state_bytes=optimizer.state_bytes(sizes.trainable),
            tokens_per_second=result.tokens_per_second,
        )


def _table(found: dict[str, dict[str, float]]) -> dict[str, Any]:
    rows = [[domain, entry["pairs"], entry["margin"], entry["accuracy"]] for domain, entry in found.items()]
    return {"title": "held-out pairs", "columns": ["", "pairs", "margin", "accuracy"], "rows": rows}
