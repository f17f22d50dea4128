"""The stage `preference`: a model that learns from better and worse answers.

The reference is the model that the stage was given, whatever a checkpoint holds: its log-probabilities are computed
before anything is trained, kept beside the checkpoints, and read again on resume.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from recipe_plugins.adapters.attaching import attach
from recipe_plugins.adapters.saving import load_base, save_adapter
from recipe_plugins.preference import measure
from recipe_plugins.preference.config import PreferenceConfig
from recipe_plugins.preference.trainer import with_objective
from recipe_plugins.training import machine, tuning
from recipe_plugins.training.config import micro_batch
from recipe_plugins.training.conversations import Renderer, renderer_of
from recipe_plugins.training.estimate import shape_of_folder, training_facts
from recipe_plugins.training.generation import replies
from recipe_plugins.training.loading import DTYPES, load_model, load_tokenizer, save_model
from recipe_plugins.training.log_probs import Document, log_probs_of
from recipe_plugins.training.once import once
from recipe_plugins.training.pairs import Documents, ExampleRows, examples_of, judged_answers, write_examples
from recipe_plugins.training.preparation import within
from recipe_plugins.training.run import TrainResult, train
from recipe_runner import Artifact, Corpus, Interrupted, Record, StageContext

CHUNK = 2048
"""Documents whose reference is computed at one go: a kill loses no more than that."""


class PreferenceStage:
    """See the module's text."""

    def __init__(self, config: PreferenceConfig) -> None:
        self.config = config
        self.objective = config.objective.build()
        self.about: Any = config.objective.config

    def run(self, ctx: StageContext) -> None:
        """Prepare pairs, measure the model as it came, train, measure again, save."""
        config = self.config
        machine.set_threads(config.execution)
        start, corpus = ctx.open(config.model), ctx.open(config.corpus)
        assert isinstance(corpus, Corpus)
        tokenizer = load_tokenizer(ctx, start)
        renderer = renderer_of(tokenizer, config.template)
        folder = self._prepared(ctx, corpus, renderer)
        length = config.sequence_length
        heldout = measure.heldout(corpus, renderer, limit=config.heldout_pairs, sequence_length=length)
        model = self._loaded(ctx, start)
        before = self._before(ctx, model, renderer, heldout)
        rows = ExampleRows(folder, self._reference(ctx, model, Documents(folder)))
        model = self._adapted(ctx, model, renderer, rows)
        sizes = tuning.sizes_of(model) if config.adapter is None else tuning.Sizes(*_nb(model))
        result = train(
            ctx,
            config,
            model,
            rows,
            tokenizer,
            steps=config.resolved_steps(rows=len(rows)),
            optimizer=config.optimizer,
            digests={"model": start.digest, "corpus": corpus.digest},
            trainer=with_objective(self.objective, self.about.takes, adapter=config.adapter is not None),
        )
        if ctx.rank:
            return
        self._note(ctx, result, start, sizes, len(tokenizer), self._measured(model, renderer, heldout, before))
        if config.adapter is None:
            tuning.stop_at_end_of_turn(model, renderer)
            save_model(model, tokenizer, ctx.payload)
        else:
            save_adapter(model, tokenizer, ctx.payload, config.model, start)  # type: ignore[arg-type]

    # ── rows ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _prepared(self, ctx: StageContext, corpus: Corpus, renderer: Renderer) -> Path:
        """The folder of the examples; writes `preparation.json` beside the payload and notes it."""
        config = self.config

        def write(folder: Path) -> dict[str, Any]:
            paired, length = self.about.takes == "pairs", config.sequence_length
            kept, report = judged_answers(_records(corpus), renderer, paired=paired, sequence_length=length)
            within(report, length, config.max_dropped)
            examples = examples_of(kept, paired=paired, sequence_length=length)
            write_examples(examples, folder)
            return {**report.as_json(), "examples": len(examples)}

        folder, report = once(ctx, "examples", write)
        ctx.note(preparation=report)
        if ctx.rank == 0:
            text = json.dumps(report, indent=2, ensure_ascii=False) + "\n"
            (ctx.folder / "preparation.json").write_text(text, encoding="utf-8")
        return folder

    # ── the model, and what it thought before ────────────────────────────────────────────────────────────────────

    def _loaded(self, ctx: StageContext, start: Artifact) -> PreTrainedModel:
        """The model as it came, on its device, in eval mode; frozen where an adapter will train."""
        config, where = self.config, machine.device(self.config.execution)
        if config.adapter is None:
            return load_model(ctx, start).to(where).eval()  # type: ignore[arg-type]
        stored = config.adapter.build().quantisation()
        return load_base(ctx, start, stored, dtype=DTYPES[config.precision], device=where).eval()

    def _log_probs(self, model: Any, documents: Sequence[Document]) -> np.ndarray:
        rows_at_once, _ = micro_batch(self.config, 1)
        return log_probs_of(
            model,
            documents,
            rows_at_once=rows_at_once,
            device=machine.device(self.config.execution),
            bf16=self.config.precision != "fp32",
        )

    def _reference(self, ctx: StageContext, model: PreTrainedModel, documents: Documents) -> np.ndarray:
        """The reference's log-probabilities, float32 (documents,); zeros where the objective has no use for them."""
        if not self.about.needs_reference:
            return np.zeros(len(documents), np.float32)
        parts = []
        for number, start in enumerate(range(0, len(documents), CHUNK)):
            if ctx.stopping():
                raise Interrupted
            ctx.progress(start, len(documents), "answers", "reference")
            part = documents[start : start + CHUNK]

            def write(folder: Path, part: Sequence[Document] = part) -> dict[str, Any]:
                np.save(folder / "log_probs.npy", self._log_probs(model, part))
                return {}

            folder, _ = once(ctx, f"reference-{number:06d}", write)
            parts.append(np.load(folder / "log_probs.npy"))
        return np.concatenate(parts)

    def _before(
        self, ctx: StageContext, model: PreTrainedModel, renderer: Renderer, heldout: dict[str, measure.Heldout]
    ) -> dict[str, Any]:
        """What the model as it came thinks of the held-out answers, and what it answers itself."""

        def write(folder: Path) -> dict[str, Any]:
            found = {name: self._log_probs(model, domain.documents).tolist() for name, domain in heldout.items()}
            return {"log_probs": found, "samples": self._answers(model, renderer, heldout)}

        return once(ctx, "before", write)[1]

    def _answers(self, model: Any, renderer: Renderer, heldout: dict[str, measure.Heldout]) -> list[str]:
        prompts = [_prompt(record) for record in self._shown(heldout)]
        given = replies(model, renderer, prompts, limit=self.config.max_new_tokens)
        return [reply.text + ("" if reply.ended else " …") for reply in given]

    def _shown(self, heldout: dict[str, measure.Heldout]) -> list[Record]:
        records = [record for domain in heldout.values() for record in domain.records if "tools" not in record.meta]
        return records[: self.config.samples]

    def _adapted(self, ctx: StageContext, model: Any, renderer: Renderer, rows: ExampleRows) -> Any:
        """The model to train."""
        if self.config.adapter is None:
            return model
        ids, _ = rows.stored[0]
        row = {"input_ids": ids, "position_ids": np.arange(len(ids))}
        return attach(self.config.adapter.build(), model, renderer.tokenizer, row, seed=ctx.seed("adapter"))

    # ── telling about it ─────────────────────────────────────────────────────────────────────────────────────────

    def _measured(
        self, model: Any, renderer: Renderer, heldout: dict[str, measure.Heldout], before: dict[str, Any]
    ) -> dict[str, Any]:
        """Facts of held-out answers and prompts, before and after."""
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
        return {"preference": found, "samples": [_sample(*sample) for sample in samples]}

    def _note(
        self,
        ctx: StageContext,
        result: TrainResult,
        start: Artifact,
        sizes: tuning.Sizes,
        vocab_size: int,
        measured: dict[str, Any],
    ) -> None:
        if not measured["preference"] and self.config.heldout_pairs:
            ctx.warn("the corpus has no held-out judgement, so margins are not measured")
        optimizer: Any = self.config.optimizer.config
        facts = training_facts(
            tokens=result.tokens,
            parameters=sizes.parameters,
            trainable=sizes.trainable,
            shape=shape_of_folder(start.payload),
            vocab_size=vocab_size,
            state_bytes=optimizer.state_bytes(sizes.trainable),
            tokens_per_second=result.tokens_per_second,
        )
        facts["tables"].append(measure.table(measured["preference"]))
        ctx.note(steps=result.steps, supervised_tokens=result.supervised_tokens, loss=result.loss, **facts, **measured)
        if self.config.adapter is not None:
            stored = self.config.adapter.build().quantisation()
            ctx.note(
                base=start.digest,
                base_dtype=str(DTYPES[self.config.precision]).removeprefix("torch."),
                quantisation=stored.as_json() if stored else None,
            )


def _records(corpus: Corpus) -> Iterator[Record]:
    return chain.from_iterable(corpus.read(domain, "train") for domain in corpus.domains("train"))


def _prompt(record: Record) -> list[dict[str, Any]]:
    return [dict(message) for message in (record.messages or ())[: record.meta["preference"]["prompt"]]]


def _sample(record: Record, before: str, after: str) -> dict[str, Any]:
    """One prompt with its answers, side by side."""
    messages, judged = list(record.messages or ()), record.meta["preference"]
    answers = {"before": before, "after": after, "in the data": str(messages[judged["prompt"]]["content"])}
    if "rejected" in judged:
        answers["rejected"] = str(judged["rejected"][0]["content"])
    return {"prompt": str(messages[judged["prompt"] - 1]["content"]), "answers": answers}


def _nb(model: Any) -> tuple[int, int]:
    """Parameters and those that train, by PEFT, which knows how many weights 4-bit storage holds."""
    trainable, parameters = model.get_nb_trainable_parameters()
    return parameters, trainable
