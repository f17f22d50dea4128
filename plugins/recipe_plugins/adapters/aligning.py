"""A model that learns what answers are wanted, whole or through an adapter: from its artifact to the new one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from recipe_plugins.adapters.aligning_config import AligningConfig
from recipe_plugins.adapters.attaching import MovesAdapter, attach
from recipe_plugins.adapters.saving import facts_of, load_base, save_adapter
from recipe_plugins.training import sharding, tuning
from recipe_plugins.training.attention import IN_FP32, chosen, set_attention
from recipe_plugins.training.conversations import renderer_of
from recipe_plugins.training.estimate import shape_of_folder, training_facts
from recipe_plugins.training.loading import DTYPES, load_model, load_tokenizer, save_model
from recipe_plugins.training.machine import device
from recipe_plugins.training.masters import to_bf16
from recipe_plugins.training.order import Rows
from recipe_plugins.training.run import TrainResult, train
from recipe_plugins.training.trainer import RecipeTrainerMixin
from recipe_runner import Corpus, StageContext


class Learner:
    """The model, tokenizer and corpus of a stage, and what it does with them whatever it learns."""

    def __init__(self, ctx: StageContext, config: AligningConfig) -> None:
        self.ctx, self.config = ctx, config
        self.start, corpus = ctx.open(config.model), ctx.open(config.corpus)
        assert isinstance(corpus, Corpus)
        self.corpus = corpus
        self.tokenizer = load_tokenizer(ctx, self.start)
        self.renderer = renderer_of(self.tokenizer, config.template)
        self.together = sharding.wanted(ctx, config.execution)
        self.method = config.adapter.build() if config.adapter else None

    def load(self) -> PreTrainedModel:
        """The model as it came, where the stage keeps it, in eval mode; frozen where an adapter will train.

        In bf16-master its weights are rounded at once, and on a CPU its attention is that of training already, so that
        what is measured before is what training begins at.
        """
        model = self._loaded(sharding.home(self.ctx, self.config.execution))
        attention = chosen(self.config, device(self.config.execution), model)
        if attention == IN_FP32:
            set_attention(model, attention)
        return model.eval()

    def _loaded(self, where: torch.device) -> PreTrainedModel:
        dtype = DTYPES[self.config.precision]
        if self.method is not None:
            return load_base(self.ctx, self.start, self.method.quantisation(), dtype=dtype, device=where)
        model = load_model(self.ctx, self.start).to(where)  # type: ignore[arg-type]
        if self.config.precision == "bf16-master":
            to_bf16(model)
        return model

    def ask(self, model: Any) -> AbstractContextManager[Any]:
        """See `sharding.asked`."""
        return sharding.asked(self.ctx, self.config.execution, model)

    def adapted(self, model: PreTrainedModel, ids: Sequence[int] | np.ndarray, *, reference: bool = False) -> Any:
        """The model to train; `ids`, of one row, are what an adapter is tried on; for `reference` see `attach`."""
        if self.method is None:
            return model
        row = {"input_ids": np.asarray(ids), "position_ids": np.arange(len(ids))}
        seed = self.ctx.seed("adapter")
        return attach(self.method, model, self.tokenizer, row, seed=seed, reference=reference, ask=self.ask)

    def train(self, model: Any, rows: Rows, trainer: type[RecipeTrainerMixin], **bound: Any) -> TrainResult:
        """Train `model` in place with `trainer`, whose class gets what is `bound` to it."""
        bases = (trainer,) if self.method is None else (MovesAdapter, trainer)
        return train(
            self.ctx,
            self.config,
            model,
            rows,
            self.tokenizer,
            steps=self.config.resolved_steps(rows=len(rows)),
            optimizer=self.config.optimizer,
            digests={"model": self.start.digest, "corpus": self.corpus.digest},
            trainer=type(f"Bound{trainer.__name__}", bases, bound),
        )

    def note(self, model: Any, result: TrainResult, *tables: Mapping[str, Any], **facts: Any) -> None:
        """Note what training did, `tables` beside its own, and what an adapter's base is."""
        sizes = tuning.sizes_of(model)
        if self.method is not None:  # counted by PEFT, which knows how many weights 4-bit storage holds
            trainable, parameters = model.get_nb_trainable_parameters()
            sizes = tuning.Sizes(parameters, trainable)
            facts |= facts_of(self.start, DTYPES[self.config.precision], self.method.quantisation())
        optimizer: Any = self.config.optimizer.config
        trained = training_facts(
            tokens=result.tokens,
            parameters=sizes.parameters,
            trainable=sizes.trainable,
            shape=shape_of_folder(self.start.payload),
            vocab_size=len(self.tokenizer),
            state_bytes=optimizer.state_bytes(sizes.trainable),
            tokens_per_second=result.tokens_per_second,
        )
        trained["tables"] = [*trained["tables"], *tables]
        measured = {"steps": result.steps, "supervised_tokens": result.supervised_tokens, "loss": result.loss}
        self.ctx.note(**measured, **trained, **facts)

    def save(self, model: Any) -> None:
        """Write the payload."""
        if self.method is None:
            tuning.stop_at_end_of_turn(model, self.renderer)
            save_model(model, self.tokenizer, self.ctx.payload)
        else:
            save_adapter(model, self.tokenizer, self.ctx.payload, self.config.model, self.start)
