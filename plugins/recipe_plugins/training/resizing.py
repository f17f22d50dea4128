"""Tokens that a model has never seen: rows for them in its embedding and its head.

A new row is the mean of the rows that the model knows (Hewitt 2021, "Initializing new word embeddings for pretrained
language models"), so that a new token is at first as likely as an average one and takes little from the others.
Guarantee: the same model and tokenizer give the same bits, and tied tables stay tied; so an adapter's base can be made
again from what it was made of. A model that knows every token is left as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from recipe_runner import RecipeError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MULTIPLE = 64
"""Rows of a grown table are a multiple of it, which matrix units like."""


def entries(tokenizer: PreTrainedTokenizerBase) -> int:
    """The rows that a table needs for every id of `tokenizer`."""
    return max(tokenizer.get_vocab().values()) + 1


def rows_for(needed: int, there: int) -> int:
    """The rows of a table of `there` rows after it was made to hold `needed`: a multiple of 64 if it grows."""
    return there if needed <= there else -(-needed // MULTIPLE) * MULTIPLE


@torch.no_grad()
def resize_embeddings(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, known: PreTrainedTokenizerBase | None = None
) -> list[int]:
    """Give `model`, in place, rows for the ids of `tokenizer` that it has never seen, and return those ids.

    `known` is the tokenizer that the model was trained with, whose table may have spare rows; without it every row
    that is there counts as known. Raises `RecipeError` where `tokenizer` gives a known entry another id.
    """
    old: Any = model.get_input_embeddings()
    there = int(old.weight.shape[0])
    seen = there if known is None else entries(known)
    if known is not None:
        extends(tokenizer.get_vocab(), known.get_vocab())
    needed = entries(tokenizer)
    if needed <= seen:
        return []
    rows = rows_for(needed, there)
    if rows != there:
        with torch.random.fork_rng():  # transformers draws rows that are overwritten here
            model.resize_token_embeddings(rows, mean_resizing=False)
    tables: list[Any] = [model.get_input_embeddings(), model.get_output_embeddings()]
    for weight in {id(table.weight): table.weight for table in tables if table is not None}.values():
        weight[seen:] = weight[:seen].float().mean(dim=0).to(weight.dtype)
    bias = getattr(tables[1], "bias", None)
    if bias is not None:
        bias[seen:] = bias[:seen].float().mean().to(bias.dtype)
    return list(range(seen, needed))


def extends(vocabulary: Mapping[str, int], known: Mapping[str, int]) -> None:
    """Raise `RecipeError` unless every entry of `known` has its id in `vocabulary`."""
    moved = [entry for entry, number in known.items() if vocabulary.get(entry) != number]
    if moved:
        raise RecipeError(
            f"the tokeniser does not extend the model's own: {len(moved)} entries have another id or are gone, "
            f"first {moved[0]!r}",
            next="extend the model's own by a stage `pretrained-tokeniser`, or leave `tokeniser` out",
        )
