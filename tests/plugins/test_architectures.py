"""Architectures: exact counts without torch, the same model after a save, documents isolated when packed."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from recipe_runner.testing import slot

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
CASES = [
    {"use": "qwen3", "head_dim": 16},
    {"use": "qwen3", "head_dim": 8, "num_key_value_heads": 2, "tie_word_embeddings": False},
    {"use": "gpt2", "max_position_embeddings": 40},
    {"use": "gpt2", "tie_word_embeddings": False},
]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_parameters_are_counted_exactly(case):
    chosen = slot("architecture", {**SMALL, **case})
    assert chosen.config.parameters(100) == sum(p.numel() for p in chosen.build().build(100).parameters())


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_saved_model_gives_the_same_logits_and_keeps_its_settings(case, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    built = slot("architecture", {**SMALL, **case}).build().build(100).eval()
    built.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    ids = torch.arange(20)[None] * 3 % 100
    assert torch.equal(built(ids).logits, again(ids).logits)
    asked = {key: value for key, value in {**SMALL, **case}.items() if key not in ("use", "intermediate_size")}
    assert {key: getattr(again.config, key) for key in asked} == asked


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_packed_documents_are_isolated(case):
    import torch

    torch.manual_seed(0)
    model = slot("architecture", {**SMALL, **case}).build().build(100).eval()
    model.config.use_cache = False
    one, other = torch.arange(9)[None], torch.arange(30, 42)[None]
    positions = torch.cat([torch.arange(9), torch.arange(12)])[None]
    packed = model(torch.cat([one, other], 1), position_ids=positions).logits[:, 9:]
    assert torch.allclose(packed, model(other).logits, atol=1e-5)


def test_heads_that_do_not_divide_are_refused():
    with pytest.raises(ValidationError, match="hidden_size 30 must be a multiple of num_attention_heads 4"):
        slot("architecture", {"use": "gpt2", **SMALL, "hidden_size": 30})
