"""What is measured of one model: bits per byte of text, losses of answers, exact matches, answers to prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from recipe_plugins.evaluate.config import CorpusEntry, EvaluateConfig
from recipe_plugins.training.answers import answer_losses, conversations, last_answer
from recipe_plugins.training.bits import bits_per_byte, heldout_records
from recipe_plugins.training.conversations import Renderer, renderer_of
from recipe_plugins.training.generation import replies
from recipe_runner import Corpus, RecipeError, Record

Groups = Mapping[str, Sequence[Record]]


@dataclass(frozen=True, slots=True)
class Questions:
    """The conversations of one corpus by group, and whether their questions are asked."""

    groups: Groups
    exact_match: bool


@dataclass(frozen=True, slots=True)
class Material:
    """What every model is measured on."""

    texts: Groups
    questions: Mapping[str, Questions]


def gather(corpora: Mapping[str, tuple[CorpusEntry, Corpus]]) -> Material:
    """Read the corpora, once for all models. Raises `RecipeError` where two have a domain of text by one name."""
    texts: dict[str, Sequence[Record]] = {}
    questions: dict[str, Questions] = {}
    for label, (entry, corpus) in corpora.items():
        found = heldout_records(corpus)
        if twice := sorted(found.keys() & texts.keys()):
            raise RecipeError(
                f"two corpora have a domain {twice[0]!r}, so its bits per byte would have one name",
                next="evaluate them in two stages, or name the domains of the curation stages differently",
            )
        texts |= found
        groups = conversations(corpus, entry.split, by=entry.by, limit=entry.limit)
        if groups:
            questions[label] = Questions(groups, entry.exact_match)
        if not found and not groups:
            raise RecipeError(f"corpora.{label}: there is nothing to measure in the split {entry.split!r}")
    return Material(texts, questions)


def measure(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    material: Material,
    config: EvaluateConfig,
    *,
    sequence_length: int,
    device: torch.device,
) -> dict[str, Any]:
    """Everything of one model, as JSON; `model` is on `device`, in eval mode."""
    found = bits_per_byte(model, tokenizer, material.texts, sequence_length, device)
    results: dict[str, Any] = {"bits_per_byte": {domain: round(bits, 6) for domain, bits in found.items()}}
    if material.questions or config.prompts:
        renderer = renderer_of(tokenizer, config.template)
        results["answers"] = {
            label: {
                group: answer_losses(model, renderer, records, sequence_length=sequence_length, device=device)
                for group, records in questions.groups.items()
            }
            for label, questions in material.questions.items()
        }
        results["exact_match"] = {
            label: {group: exact_match(model, renderer, records) for group, records in questions.groups.items()}
            for label, questions in material.questions.items()
            if questions.exact_match
        }
        results["samples"] = answers_to(model, renderer, config.prompts, config.max_new_tokens)
    return results


def exact_match(model: PreTrainedModel, renderer: Renderer, records: Sequence[Record]) -> float:
    """The share of last answers that the model gives word for word, and ends there; most likely token each time."""
    cut = [(list(record.messages or ()), last_answer(record.messages or ())) for record in records]
    wanted = [str(messages[place]["content"]) for messages, place in cut]
    limit = max(len(ids) for ids in renderer.ids(wanted)) + 8  # a little more than the longest right answer
    given = replies(model, renderer, [messages[:place] for messages, place in cut], limit=limit)
    right = sum(reply.ended and reply.text == text for reply, text in zip(given, wanted, strict=True))
    return round(right / len(records), 6)


def answers_to(model: PreTrainedModel, renderer: Renderer, prompts: Sequence[str], limit: int) -> dict[str, str]:
    """The answer to each prompt, with `…` where it did not end."""
    given = replies(model, renderer, [[{"role": "user", "content": prompt}] for prompt in prompts], limit=limit)
    return {p: reply.text + ("" if reply.ended else " …") for p, reply in zip(prompts, given, strict=True)}
