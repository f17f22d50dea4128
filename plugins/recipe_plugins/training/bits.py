"""Bits per byte of held-out text: a loss that does not depend on the tokeniser.

bits per byte = sum of -log2 p over the tokens scored / bytes of UTF-8 that they stand for. Each document is scored
alone, from its second token on (nothing comes before the first), in windows that overlap by one token, so that every
later token is scored exactly once. What is scored never moves: the documents of each domain with the lowest hashes.

Limit: a window sees nothing before it, so long documents score a little higher than with a longer context.
"""

from __future__ import annotations

import hashlib
import heapq
import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from recipe_plugins.training.loading import PLAIN
from recipe_plugins.training.losses import summed_loss
from recipe_runner import Corpus, Record

DOCUMENTS = 256
BYTES = 64_000
"""The budget of a domain: the first documents, by hash, up to either of these."""

BATCH_TOKENS = 2048


def heldout_records(corpus: Corpus, *, documents: int = DOCUMENTS, size: int = BYTES) -> dict[str, list[Record]]:
    """Held-out documents of each domain, at most `documents` and about `size` bytes; domains of conversations left out.

    They are taken in the order of the hash of their id, so that more data never moves all of them.
    """
    found: dict[str, list[Record]] = {}
    for domain in corpus.domains("heldout"):
        texts = (record for record in corpus.read(domain, "heldout") if record.text)
        chosen = heapq.nsmallest(documents, texts, key=lambda record: hashlib.sha256(record.id.encode()).digest())
        if chosen:
            found[domain] = _within(chosen, size)
    return found


def _within(records: Sequence[Record], size: int) -> list[Record]:
    chosen: list[Record] = []
    for record in records:
        if size <= 0:
            break
        chosen.append(record)
        size -= record.size
    return chosen


def bits_per_byte(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    records_by_domain: Mapping[str, Sequence[Record]],
    sequence_length: int,
    device: torch.device | str,
) -> dict[str, float]:
    """Bits per byte of each domain's documents under `model`, in windows of `sequence_length` tokens.

    `model` is on `device`; its mode is put back. Domains with nothing to score (no document of two tokens) are left
    out. Draws no random number.
    """
    training = model.training
    model.eval()
    try:
        scored = {
            domain: _score(model, tokenizer, records, sequence_length, device)
            for domain, records in records_by_domain.items()
        }
    finally:
        model.train(training)
    return {domain: nats / math.log(2) / size for domain, (nats, size) in scored.items() if size}


def _score(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    records: Sequence[Record],
    sequence_length: int,
    device: torch.device | str,
) -> tuple[float, int]:
    """The nats of the scored tokens, and their bytes."""
    windows: list[list[int]] = []
    size = 0
    for record in records:
        text = record.text or ""
        encoded = tokenizer(text, return_offsets_mapping=True, **PLAIN)
        ids, spans = encoded["input_ids"], encoded["offset_mapping"]
        if len(ids) > 1:
            size += len(text[spans[0][1] :].encode())
            windows += [ids[start : start + sequence_length] for start in range(0, len(ids) - 1, sequence_length - 1)]
    nats = sum(_nats(model, batch, device) for batch in _batches(windows, sequence_length))
    return nats, size


def _batches(windows: list[list[int]], sequence_length: int) -> Iterator[list[list[int]]]:
    """Windows of like length together, so that little is padded."""
    rows = max(1, BATCH_TOKENS // sequence_length)
    ordered = sorted(windows, key=len)
    return (ordered[start : start + rows] for start in range(0, len(ordered), rows))


@torch.no_grad()
def _nats(model: PreTrainedModel, windows: list[list[int]], device: torch.device | str) -> float:
    """Padding stands on the right, where causal attention never sees it, and has no label."""
    longest = max(map(len, windows))
    ids = torch.tensor([window + [0] * (longest - len(window)) for window in windows], device=device)
    labels = torch.tensor([window + [-100] * (longest - len(window)) for window in windows], device=device)
    positions = torch.arange(longest, device=device).expand_as(ids)
    return float(summed_loss(model(input_ids=ids, position_ids=positions, use_cache=False).logits, labels))
