"""Whether a merged model computes what base and adapter did, measured against what the adapter itself changes."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from recipe_plugins.merge.config import MergeConfig
from recipe_plugins.training.answers import answer_losses, conversations
from recipe_plugins.training.conversations import Encoded, Renderer
from recipe_runner import Corpus, Record, StageContext

ROWS, TOKENS, CONTEXT = 8, 32, 512
"""Rows that are compared, at how many of their last tokens, after how many at most."""

RECORDS = 64
"""Held-out conversations of a domain whose answers are scored."""


@dataclass(frozen=True, slots=True)
class Probes:
    """What models are compared on: rows of ids, and conversations whose answers are scored, if there are any."""

    rows: list[list[int]]
    records: Sequence[Record]
    renderer: Renderer | None


@dataclass(frozen=True, slots=True)
class Seen:
    """What a model computes on the probes: logits (rows × tokens, vocabulary) in fp32, mean nats of answers' tokens."""

    logits: torch.Tensor
    loss: float | None

    def difference(self, other: Seen) -> float:
        """The largest difference of two logits."""
        return float((self.logits - other.logits).abs().max())


def heldout(ctx: StageContext, config: MergeConfig) -> list[Record]:
    """The conversations whose answers are scored: none without a corpus."""
    if config.corpus is None:
        return []
    corpus = ctx.open(config.corpus)
    assert isinstance(corpus, Corpus)
    found = conversations(corpus, "heldout", limit=RECORDS)
    return [record for records in found.values() for record in records]


def random_rows(vocabulary: int, seed: int) -> list[list[int]]:
    """`ROWS` rows of `TOKENS` random ids."""
    generator = torch.Generator().manual_seed(seed)
    rows: list[list[int]] = torch.randint(vocabulary, (ROWS, TOKENS), generator=generator).tolist()
    return rows


def probes(renderer: Renderer | None, vocabulary: int, records: Sequence[Record], seed: int) -> Probes:
    """The first conversations, or random ids of the vocabulary where there are none, or no template for them."""
    found = renderer.encode(records) if renderer else ()
    encoded = [conversation for conversation in found if isinstance(conversation, Encoded)]
    rows = [conversation.input_ids[:CONTEXT].tolist() for conversation in encoded[:ROWS]]
    records = [conversation.record for conversation in encoded]
    return Probes(rows or random_rows(vocabulary, seed), records, renderer)


@torch.no_grad()
def look(model: PreTrainedModel, probes: Probes) -> Seen:
    """What `model`, in eval mode, computes."""
    logits = [
        model(input_ids=torch.tensor([row], device=model.device), use_cache=False).logits[0, -TOKENS:].float().cpu()
        for row in probes.rows
    ]
    loss = None
    if probes.records and probes.renderer:
        losses = answer_losses(
            model, probes.renderer, probes.records, sequence_length=CONTEXT, device=model.device, permuted=False
        )
        loss = losses.get("own", {}).get("content")
    return Seen(torch.cat(logits), loss)


def with_model(load: Callable[[], Any], use: Callable[[Any], Any]) -> Any:
    """`use(load())`, and nothing of the model left in memory."""
    model = load()
    found = use(model)
    del model
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return found
