"""What is measured on held-out text while training: bits per byte by domain, and how the model goes on.

The documents are those of `bits.heldout_records`, which never move. Continuations are greedy, so that nothing draws a
random number, and evaluating changes no loss. Every rank measures the same, since a sharded model needs all of them.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from recipe_plugins.training import bits
from recipe_plugins.training.config import Evaluation
from recipe_plugins.training.loading import PLAIN
from recipe_plugins.training.progress import Evaluated
from recipe_runner import Corpus, RecipeError

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
            ids.append(int(model(input_ids=seen, position_ids=positions, use_cache=False).logits[0, -1].argmax()))
            if ids[-1] == self.tokenizer.eos_token_id:
                break
        return self._text(ids[begun:])
