"""The stage `merge`: the result computes what base and adapter do, and a gate that cannot see that says so."""

from __future__ import annotations

import json
import shutil

import pytest

from recipe_runner import Adapter, Model, RecipeError
from recipe_runner.testing import make

pytestmark = pytest.mark.slow
CPU = {"execution": {"device": "cpu", "threads": 1}}


def merge(model, adapter, folder, facts=None, **settings):
    inputs = {"model": model, "adapter": adapter, "facts": facts}
    config = {"model": "model", "adapter": "adapter", **CPU, **settings, **({"corpus": "facts"} if facts else {})}
    return make("merge", config, folder, inputs=inputs)


def logits(model):
    import torch

    with torch.no_grad():
        return model.eval()(input_ids=torch.arange(4, 60)[None], use_cache=False).logits


def adapted(base, adapter):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base.payload), adapter.payload)


def load(model):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(model.payload)


def test_merged_equals_base_plus_adapter_and_tied_stays_tied(chat, adapter, tmp_path):
    from safetensors import safe_open

    merged = merge(chat, adapter, tmp_path)
    model = load(merged)
    assert (logits(model) - logits(adapted(chat, adapter))).abs().max() < 1e-4
    assert merged.facts["merge"]["difference"] < 1e-4
    assert merged.facts["merge"]["adapter_effect"] > 1e-2
    assert model.lm_head.weight is model.model.embed_tokens.weight
    with safe_open(merged.payload / "model.safetensors", framework="pt") as file:
        assert "lm_head.weight" not in file.keys()  # noqa: SIM118


def test_the_payload_is_a_whole_chat_model(chat, adapter, tmp_path):
    from transformers import AutoTokenizer

    merged = merge(chat, adapter, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(merged.payload)
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(chat.payload).chat_template
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") in load(merged).generation_config.eos_token_id
    assert merged.digest == merge(chat, adapter, tmp_path / "again").digest


def test_blocks_and_shards_change_nothing(chat, adapter, tmp_path):
    sharded = _copy(chat, tmp_path / "sharded", Model)
    load(chat).save_pretrained(sharded.payload, max_shard_size="20KB")
    (sharded.payload / "model.safetensors").unlink()
    assert len(list(sharded.payload.glob("*.safetensors"))) > 2
    whole, blocks = merge(chat, adapter, tmp_path / "a"), merge(sharded, adapter, tmp_path / "b", block=4096)
    assert len(list(blocks.payload.glob("*.safetensors"))) > 2
    difference = (logits(load(whole)) - logits(load(blocks))).abs().max()
    assert difference < 1e-5


def test_a_block_is_never_larger_than_it_may_be(chat, adapter, tmp_path):
    from safetensors import safe_open

    from recipe_plugins.merge.changes import read_changes
    from recipe_plugins.merge.streaming import _merged

    changes = read_changes(adapter.payload)
    with safe_open(chat.payload / "model.safetensors", framework="pt") as file:
        for name in file.keys():  # noqa: SIM118
            blocks = list(_merged(file.get_slice(name), changes.get(name), None, block=4096))
            assert sum(len(block) for block in blocks) == file.get_slice(name).get_shape()[0]
            assert all(block.numel() * 4 <= 4096 for block in blocks)


def test_another_base_is_refused(tiny_base, chat, adapter, tmp_path):
    with pytest.raises(RecipeError, match="trained on another base") as caught:
        merge(tiny_base, adapter, tmp_path)
    assert chat.digest[:12] in str(caught.value)
    assert not list((tmp_path / "payload").iterdir())


def test_an_adapter_without_effect_proves_nothing_and_fails(chat, adapter, tmp_path):
    from safetensors.torch import load_file, save_file

    empty = _copy(adapter, tmp_path / "empty", Adapter)
    path = empty.payload / "adapter_model.safetensors"
    tensors = load_file(path)
    base = load(chat).get_input_embeddings().weight[[2, 3]]
    save_file({name: base.clone() if "token" in name else tensor * 0 for name, tensor in tensors.items()}, path)
    with pytest.raises(RecipeError, match="less than min_effect"):
        merge(chat, empty, tmp_path / "merged")


def test_a_result_that_differs_fails(chat, adapter, tmp_path, monkeypatch):
    from recipe_plugins.merge.changes import LowRank

    right = LowRank.apply
    monkeypatch.setattr(LowRank, "apply", lambda self, block, start: right(self, block, 0))  # rows of another block
    with pytest.raises(RecipeError, match=r"more than 0\.0001 \(tolerance\)"):
        merge(chat, adapter, tmp_path, block=4096)
    assert not list((tmp_path / "payload").iterdir())


def test_what_cannot_be_merged_is_refused(chat, adapter, tmp_path):
    other = _copy(adapter, tmp_path / "other", Adapter)
    path = other.payload / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "rank_pattern": {"q_proj": 2}}))
    from recipe_plugins.merge.changes import read_changes

    with pytest.raises(RecipeError, match="rank_pattern"):
        read_changes(other.payload)


def test_a_4_bit_adapter_is_merged_into_what_is_closer_and_it_says_which(chat, qadapter, facts, tmp_path):
    found = merge(chat, qadapter, tmp_path / "auto").facts["merge"]
    by_base = {candidate["base"]: candidate["difference"] for candidate in found["candidates"]}
    assert found["trained_on_4_bits"]
    assert found["decided_by"] == "logits"
    assert found["base"] == min(by_base, key=by_base.get) == "dequantised"
    assert by_base["dequantised"] < by_base["original"] / 3
    forced = merge(chat, qadapter, tmp_path / "forced", base="original", relative_tolerance=1.0).facts["merge"]
    assert (forced["base"], forced["decided_by"]) == ("original", "the only one")
    heard = merge(chat, qadapter, tmp_path / "heard", facts).facts["merge"]
    assert heard["decided_by"] == "loss of held-out answers"
    losses = {candidate["base"]: candidate["loss"] for candidate in heard["candidates"]}
    assert heard["base"] == min(losses, key=losses.get)


def test_dequantised_is_for_4_bit_adapters(chat, adapter, tmp_path):
    with pytest.raises(RecipeError, match="trained on 4 bits"):
        merge(chat, adapter, tmp_path, base="dequantised")


def test_a_16_bit_base_stays_in_16_bits(chat, adapter, tmp_path):
    import torch

    half = _copy(chat, tmp_path / "half", Model)
    load(chat).to(torch.bfloat16).save_pretrained(half.payload)
    merged = merge(half, adapter, tmp_path / "merged")
    assert load(merged).dtype == torch.bfloat16
    assert merged.facts["merge"]["difference"] < 0.5 * merged.facts["merge"]["adapter_effect"]


def _copy(artifact, folder, kind):
    """The same artifact elsewhere, to be tampered with."""
    shutil.copytree(artifact.path, folder, ignore=shutil.ignore_patterns("work"))
    return kind(folder, artifact.digest, artifact.manifest)
