"""New tokens get rows at the mean of the known ones, and what a model computes of known tokens stays."""

from __future__ import annotations

import re

import pytest

from recipe_runner import RecipeError
from recipe_runner.plugins import installed

pytestmark = pytest.mark.slow


@pytest.fixture
def tokenizers(tiny_tokeniser):
    """The tiny tokeniser, and the same with three tokens more."""
    from transformers import AutoTokenizer

    known, more = (AutoTokenizer.from_pretrained(tiny_tokeniser.payload) for _ in range(2))
    more.add_tokens(["gneiss", "schist", "gabbro"])
    return known, more


def llama(vocab_size: int, *, tied: bool):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    keys = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=vocab_size, tie_word_embeddings=tied, **keys)).eval()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("spare", [0, 2, 40])
def test_new_rows_are_the_mean_and_old_ones_stay(tokenizers, tied, spare):
    import torch

    from recipe_plugins.training import resize_embeddings

    known, more = tokenizers
    model, same = (llama(len(known) + spare, tied=tied) for _ in range(2))
    before = torch.random.get_rng_state()
    assert resize_embeddings(model, more, known) == list(range(len(known), len(known) + 3))
    assert torch.equal(torch.random.get_rng_state(), before)
    rows = model.get_input_embeddings().weight.shape[0]
    assert rows == len(known) + spare if spare >= 3 else rows % 64 == 0
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    for table, old in ((model.model.embed_tokens, same.model.embed_tokens), (model.lm_head, same.lm_head)):
        seen = old.weight[: len(known)]
        assert torch.equal(table.weight[: len(known)], seen)
        assert torch.allclose(table.weight[len(known) :], seen.mean(dim=0).expand(rows - len(known), -1))
    ids = torch.arange(4, 40)[None]
    with torch.no_grad():
        after, was = (m(input_ids=ids).logits[..., : len(known)] for m in (model, same))
    assert torch.equal(after, was)
    assert model.config.vocab_size == rows


def test_a_model_that_knows_every_token_is_left_alone(tokenizers):
    import torch

    from recipe_plugins.training import resize_embeddings

    known, _ = tokenizers
    model, same = (llama(len(known) + 5, tied=True) for _ in range(2))
    assert resize_embeddings(model, known, known) == []
    assert torch.equal(model.lm_head.weight, same.lm_head.weight)


def test_a_tokeniser_that_moves_known_entries_is_refused(tokenizers):
    from recipe_plugins.training import resize_embeddings

    known, more = tokenizers
    model = llama(len(more), tied=True)
    with pytest.raises(RecipeError, match="does not extend") as caught:
        resize_embeddings(model, known, more)
    named = set(re.findall(r"`([\w-]+)`", caught.value.next)) - {"tokeniser"}
    assert named <= set(installed().registry.names("stage")), "what is advised exists"
