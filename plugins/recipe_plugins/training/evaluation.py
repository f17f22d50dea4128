"""What is measured on held-out data while training: text's bits per byte and how the model goes on; answers' loss.

The documents are those of `bits.heldout_records`, which never move. Continuations are greedy, so that nothing draws a
random number, and evaluating changes no loss. Every rank measures the same, since a sharded model needs all of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from recipe_plugins.training import bits, sharding
from recipe_plugins.training.answers import answer_losses, last_answer, measurable
from recipe_plugins.training.config import Evaluation
from recipe_plugins.training.conversations import Renderer
from recipe_plugins.training.generation import replies
from recipe_plugins.training.loading import PLAIN
from recipe_plugins.training.progress import Evaluated
from recipe_runner import Corpus, RecipeError, Record, StageContext

if TYPE_CHECKING:
    from recipe_plugins.training.run import TrainResult

SHOWN = 4
"""Evaluations whose samples stand side by side at the end; `evaluations.json` has those of all."""

PROMPT_TOKENS = 16
"""Tokens of a held-out document that a sample begins with."""


class TextEvaluator:
    """Evaluates a model on the held-out text of `corpus`, as `settings` says."""

    def __init__(
        self,
        settings: Evaluation,
        corpus: Corpus,
        tokenizer: PreTrainedTokenizerBase,
        sequence_length: int,
        device: torch.device,
    ) -> None:
        self.settings, self.tokenizer = settings, tokenizer
        self.sequence_length, self.device = sequence_length, device
        self.records = bits.heldout_records(corpus)
        if settings.every and not self.records:
            raise RecipeError(
                "evaluation.every measures held-out text, and the corpus has none",
                next="hold some out in the curation, or leave `evaluation` out",
            )
        texts = (record.text or "" for records in self.records.values() for record in records)
        if settings.every and not any(len(tokenizer(text, **PLAIN)["input_ids"]) > 1 for text in texts):
            raise RecipeError(
                "evaluation.every measures held-out text, and no document of it has a second token to be scored",
                next="hold some longer ones out in the curation, or leave `evaluation` out",
            )

    def bits_per_byte(self, model: PreTrainedModel) -> dict[str, float]:
        """By domain."""
        return bits.bits_per_byte(model, self.tokenizer, self.records, self.sequence_length, self.device)

    def evaluate(self, model: PreTrainedModel, step: int) -> Evaluated:
        """Bits per byte and samples; the model's mode is put back."""
        found = self.bits_per_byte(model)
        training = model.training
        model.eval()
        try:
            return Evaluated(step, found, [(prompt, self._continued(model, prompt)) for prompt in self._prompts()])
        finally:
            model.train(training)

    def _prompts(self) -> Iterator[str]:
        """The beginnings of held-out documents, the first of each domain first."""
        columns = [[record.text or "" for record in records] for records in self.records.values()]
        rows = [column[number] for number in range(self.settings.samples) for column in columns if number < len(column)]
        for text in rows[: self.settings.samples]:
            yield self._text(self.tokenizer(text, **PLAIN)["input_ids"][:PROMPT_TOKENS])

    def _text(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids))

    @torch.no_grad()
    def _continued(self, model: PreTrainedModel, prompt: str) -> str:
        """What `model` says after `prompt`, greedily, up to its end token."""
        ids = list(self.tokenizer(prompt, **PLAIN)["input_ids"])
        begun = len(ids)
        while len(ids) < begun + self.settings.sample_tokens:
            seen = torch.tensor([ids[-self.sequence_length :]], device=self.device)
            positions = torch.arange(seen.shape[1], device=self.device)[None]
            logits = model(input_ids=seen, position_ids=positions, use_cache=False).logits
            ids.append(int(sharding.agreed(model, logits[0, -1].argmax())))
            if ids[-1] == self.tokenizer.eos_token_id:
                break
        return self._text(ids[begun:])


class AnswerEvaluator:
    """Evaluates a model on held-out conversations by domain: the loss of their last answers, and a few of its own."""

    def __init__(
        self,
        settings: Evaluation,
        groups: Mapping[str, Sequence[Record]],
        renderer: Renderer,
        sequence_length: int,
        device: torch.device,
    ) -> None:
        self.settings, self.groups, self.renderer = settings, groups, renderer
        self.sequence_length, self.device = sequence_length, device
        if settings.every and not any(groups.values()):
            raise RecipeError(
                "evaluation.every measures held-out answers, and the corpus has none",
                next="hold some out in the curation, raise heldout_answers, or leave `evaluation` out",
            )
        if settings.every and not any(measurable(renderer, g, sequence_length) for g in groups.values()):
            raise RecipeError(
                f"evaluation.every measures held-out answers, and none of them can be: the template renders none that "
                f"ends within {sequence_length} tokens",
                next="raise sequence_length, or leave `evaluation` out",
            )

    def evaluate(self, model: PreTrainedModel, step: int) -> Evaluated:
        """Nats a token, and answers; the model's mode is put back."""
        found = {
            domain: answer_losses(
                model,
                self.renderer,
                records,
                sequence_length=self.sequence_length,
                device=self.device,
                permuted=False,
            )
            for domain, records in self.groups.items()
        }
        losses = {domain: loss["own"]["content"] for domain, loss in found.items() if "own" in loss}
        return Evaluated(step, losses, self._answers(model), "answer_loss")

    def _answers(self, model: PreTrainedModel) -> list[tuple[str, str]]:
        """What the model says to the first questions."""
        asked = questions(self.groups, self.settings.samples)
        given = replies(model, self.renderer, asked, limit=self.settings.sample_tokens)
        return [(question(turns), reply.text.strip()) for turns, reply in zip(asked, given, strict=True)]


def questions(groups: Mapping[str, Sequence[Record]], count: int) -> list[list[Mapping[str, Any]]]:
    """The first conversations up to their last answer, one of each domain after another."""
    columns = [[list(record.messages or ()) for record in records] for records in groups.values()]
    rows = [column[number] for number in range(count) for column in columns if number < len(column)]
    return [messages[: last_answer(messages)] for messages in rows if last_answer(messages)][:count]


def question(turns: Sequence[Mapping[str, Any]]) -> str:
    """What was said last, for people."""
    return str(turns[-1].get("content") or "")


def evaluated(ctx: StageContext, result: TrainResult, tables: list[Any]) -> dict[str, Any]:
    """What was found while training, as facts: a table, the last samples; and all of it in `evaluations.json`."""
    found = result.evaluations.found
    if not found:
        return {}
    written = json.dumps([asdict(entry) for entry in found], indent=1, ensure_ascii=False)
    (ctx.folder / "evaluations.json").write_text(written + "\n", encoding="utf-8")
    domains = list(found[0].measured)
    rows = [[str(entry.step), *(f"{entry.measured[domain]:.4f}" for domain in domains)] for entry in found]
    words = found[0].measure.replace("_", " ")
    table = {"title": f"held-out {words} while training", "columns": ["step", *domains], "rows": rows}
    samples = [
        {"prompt": prompt, "answers": {f"step {entry.step}": entry.samples[number][1] for entry in found[-SHOWN:]}}
        for number, (prompt, _) in enumerate(found[0].samples)
    ]
    return {"tables": [*tables, table], "samples": samples, **_kept(result)}


def _kept(result: TrainResult) -> dict[str, Any]:
    """The step whose weights are the result, if one was chosen; and what the last one was worth, if that is another."""
    if result.kept_step is None:
        return {}
    last = result.evaluations.found[-1]
    other = {
        "last_step": {"step": result.steps, "loss": result.last_loss},
        "last_evaluation": {"step": last.step, last.measure: dict(last.measured)},
    }
    return {"kept_step": result.kept_step, **(other if result.kept_step != result.steps else {})}
