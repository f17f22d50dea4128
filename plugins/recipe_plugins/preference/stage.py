"""The stage `preference`: a model that learns from better and worse answers.

The reference is the model that the stage was given, whatever a checkpoint holds: its log-probabilities are computed
before anything is trained, kept beside the checkpoints, and read again on resume.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from recipe_plugins.adapters.aligning import Learner
from recipe_plugins.preference import measure
from recipe_plugins.preference.config import PreferenceConfig
from recipe_plugins.preference.trainer import PreferenceTrainer
from recipe_plugins.training import machine
from recipe_plugins.training.config import micro_batch
from recipe_plugins.training.conversations import Renderer
from recipe_plugins.training.generation import replies
from recipe_plugins.training.loading import DTYPES
from recipe_plugins.training.log_probs import Document, log_probs_of
from recipe_plugins.training.once import measured_once
from recipe_plugins.training.pairs import Documents, ExampleRows, Heldout, heldout_answers, stored_examples
from recipe_plugins.training.preparation import prepared_tables
from recipe_runner import Interrupted, Record, StageContext

CHUNK = 2048
"""Documents whose reference is computed at one go: a kill loses no more than that."""
ByDomain = Mapping[str, Heldout]


class PreferenceStage:
    """See the module's text."""

    def __init__(self, config: PreferenceConfig) -> None:
        self.config = config
        self.objective = config.objective.build()
        self.about: Any = config.objective.config

    def run(self, ctx: StageContext) -> None:
        """Prepare pairs, measure the model as it came, train, measure again, save."""
        config = self.config
        machine.ready(config)
        learner = Learner(ctx, config)
        corpus, renderer, length = learner.corpus, learner.renderer, config.sequence_length
        paired, most = self.about.takes == "pairs", config.max_dropped
        folder = stored_examples(ctx, corpus, renderer, paired=paired, sequence_length=length, max_dropped=most)
        heldout = heldout_answers(ctx, corpus, renderer, limit=config.heldout_pairs, sequence_length=length)
        if not heldout and config.heldout_pairs:
            ctx.warn("the corpus has no held-out judgement, so margins are not measured")
        model = learner.load()
        with learner.ask(model) as there:
            before = self._before(learner, there, heldout)
            rows = ExampleRows(folder, self._reference(learner, there, Documents(folder)))
        del there  # if those were shards, before there are others
        model = learner.adapted(model, rows.stored[0][0])
        bound = {"objective": self.objective, "takes": self.about.takes}
        result = learner.train(model, rows, PreferenceTrainer, **bound)
        if ctx.rank and not learner.together:
            return
        with learner.ask(model) as there:
            found, samples = self._measured(there, renderer, heldout, before)
        if ctx.rank:
            return
        tables = [*prepared_tables(ctx), measure.table(found)]
        learner.note(model, result, *tables, preference=found, samples=samples)
        learner.save(model)

    # ── what the model as it came thinks ─────────────────────────────────────────────────────────────────────────

    def _log_probs(self, model: Any, documents: Sequence[Document]) -> np.ndarray:
        rows_at_once, _ = micro_batch(self.config, 1)
        precision = self.config.precision
        return log_probs_of(
            model,
            documents,
            rows_at_once=rows_at_once,
            device=machine.device(self.config.execution),
            dtype=torch.float32 if precision == "bf16-master" else DTYPES[precision],  # there only weights are bf16
        )

    def _reference(self, learner: Learner, model: Any, documents: Documents) -> np.ndarray:
        """The reference's log-probabilities, float32 (documents,); zeros where the objective has no use for them.

        The ranks divide the chunks, and read each other's; of a sharded model they compute all of them together.
        """
        if not self.about.needs_reference:
            return np.zeros(len(documents), np.float32)
        ctx, starts = learner.ctx, range(0, len(documents), CHUNK)

        def chunk(number: int) -> list[float]:
            def measure() -> dict[str, Any]:
                part = documents[starts[number] : starts[number] + CHUNK]
                return {"log_probs": self._log_probs(model, part).tolist()}

            name, rank = f"log-probs-{number:06d}", number % ctx.world_size
            found: list[float] = measured_once(ctx, name, measure, together=learner.together, rank=rank)["log_probs"]
            return found

        own = range(len(starts)) if learner.together else range(ctx.rank, len(starts), ctx.world_size)
        for number in own:  # before it waits for the rest
            if ctx.stopping():
                raise Interrupted
            ctx.progress(starts[number], len(documents), "answers", "reference")
            chunk(number)
        return np.asarray([value for number in range(len(starts)) for value in chunk(number)], np.float32)

    def _before(self, learner: Learner, model: Any, heldout: ByDomain) -> dict[str, Any]:
        """What the model as it came thinks of the held-out answers, and what it answers itself."""

        def measure() -> dict[str, Any]:
            found = {name: self._log_probs(model, domain.documents).tolist() for name, domain in heldout.items()}
            return {"log_probs": found, "samples": self._answers(model, learner.renderer, heldout)}

        return measured_once(learner.ctx, "before", measure, together=learner.together)

    def _answers(self, model: Any, renderer: Renderer, heldout: ByDomain) -> list[str]:
        prompts = [_prompt(record) for record in self._shown(heldout)]
        given = replies(model, renderer, prompts, limit=self.config.max_new_tokens)
        return [reply.text + ("" if reply.ended else " …") for reply in given]

    def _shown(self, heldout: ByDomain) -> list[Record]:
        records = [record for domain in heldout.values() for record in domain.records if "tools" not in record.meta]
        return records[: self.config.samples]

    # ── telling about it ─────────────────────────────────────────────────────────────────────────────────────────

    def _measured(
        self, model: Any, renderer: Renderer, heldout: ByDomain, before: dict[str, Any]
    ) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Facts of held-out answers, and answers to held-out prompts, before and after."""
        found: dict[str, Any] = {}
        for name, domain in heldout.items():
            reference = np.asarray(before["log_probs"][name], np.float32)
            now = self._log_probs(model, domain.documents)
            found[name] = {
                "pairs" if domain.paired else "answers": len(domain.answers),
                "before": measure.told(self.objective, domain, reference, reference),
                "after": measure.told(self.objective, domain, now, reference),
            }
        samples = zip(self._shown(heldout), before["samples"], self._answers(model, renderer, heldout), strict=True)
        return found, [_sample(*sample) for sample in samples]


def _prompt(record: Record) -> list[dict[str, Any]]:
    return [dict(message) for message in (record.messages or ())[: record.meta["preference"]["prompt"]]]


def _sample(record: Record, before: str, after: str) -> dict[str, Any]:
    """One prompt with its answers, side by side."""
    messages, judged = list(record.messages or ()), record.meta["preference"]
    answers = {"before": before, "after": after, "in the data": str(messages[judged["prompt"]]["content"])}
    if "rejected" in judged:
        answers["rejected"] = str(judged["rejected"][0]["content"])
    return {"prompt": str(messages[judged["prompt"] - 1]["content"]), "answers": answers}
