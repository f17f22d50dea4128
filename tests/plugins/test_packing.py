"""Rows of whole conversations: nothing cut, nothing seen of a neighbour, the same rows every time."""

from __future__ import annotations

import random
from itertools import pairwise

import numpy as np
import pytest

from recipe_plugins.training.conversations import IGNORED, Encoded
from recipe_plugins.training.packing import StoredRows, best_fit, write_rows
from recipe_runner import Record

PAD = 2


def document(seed: int, length: int) -> Encoded:
    """Random ids, all learned in every third document, else the second half; the last is also the pad token."""
    ids = np.random.default_rng(seed).integers(3, 60, length).astype(np.int32)
    ids[-1] = PAD
    supervised = np.arange(length) >= (length // 2 if seed % 3 else 0)
    return Encoded(ids, supervised, [(length // 2, length)], Record(id=str(seed)))


def documents(count: int, longest: int) -> list[Encoded]:
    lengths = random.Random(0).choices(range(4, longest + 1), k=count)
    return [document(number, length) for number, length in enumerate(lengths)]


def test_every_document_stands_in_one_row_and_rows_are_nearly_full():
    lengths = random.Random(1).choices(range(1, 200), k=2000)
    rows = best_fit(lengths, 256)
    assert sorted(number for row in rows for number in row) == list(range(2000))
    assert all(sum(lengths[number] for number in row) <= 256 for row in rows)
    assert len(rows) <= 11 / 9 * sum(lengths) / 256 + 4
    assert best_fit(lengths, 256) == rows


def test_best_fit_takes_the_fullest_row_that_has_room():
    assert best_fit([6, 5, 4, 3, 2], 10) == [[0, 2], [1, 3, 4]]
    with pytest.raises(ValueError, match="does not fit"):
        best_fit([11], 10)


@pytest.mark.parametrize("packing", [True, False])
def test_rows_hold_what_they_were_made_of(tmp_path, packing):
    made = documents(20, 30)
    write_rows(made, tmp_path, sequence_length=32, packing=packing)
    rows = StoredRows(tmp_path)
    found = []
    for number in range(len(rows)):
        row = rows[number]
        starts = [*np.flatnonzero(row["position_ids"] == 0).tolist(), 32]
        for start, end in pairwise(starts):
            labels = row["labels"][start:end]
            if (labels != IGNORED).any():
                assert labels[0] == IGNORED
                found.append((row["input_ids"][start:end].tolist(), labels.tolist()))
    assert sorted(found) == sorted((d.input_ids.tolist(), d.labels.tolist()) for d in made)
    assert len(rows) == 20 or packing


def test_padding_is_masked_by_place_and_the_stop_token_is_not(tmp_path):
    write_rows([document(0, 10)], tmp_path, sequence_length=16, packing=True)
    row = StoredRows(tmp_path)[0]
    assert row["labels"][9] == PAD
    assert (row["labels"][10:] == IGNORED).all()
    assert row["position_ids"].tolist() == [*range(10), *range(6)]


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_and_unpacked_give_the_same_loss_and_gradients(tmp_path, attention):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from recipe_plugins.training.losses import summed_loss
    from recipe_plugins.training.order import stack

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=64, max_position_embeddings=64, **sizes)
    model = LlamaForCausalLM._from_config(config, attn_implementation=attention)
    found = []
    for packing in (True, False):
        folder = tmp_path / str(packing)
        folder.mkdir()
        write_rows(documents(9, 20), folder, sequence_length=48, packing=packing)
        rows = StoredRows(folder)
        batch = stack([rows[number] for number in range(len(rows))])
        labels = batch.pop("labels")
        model.zero_grad()
        loss = summed_loss(model(**batch, use_cache=False).logits, labels)
        loss.backward()
        found.append((loss.item(), [parameter.grad.clone() for parameter in model.parameters()], len(rows)))
    (packed, gradients, few), (unpacked, others, many) = found
    assert few < many
    assert packed == pytest.approx(unpacked, rel=1e-5)
    assert all(torch.allclose(one, other, atol=1e-4) for one, other in zip(gradients, others, strict=True))
