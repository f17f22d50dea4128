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


@pytest.mark.parametrize("gate", ["weights", "logits"])
def test_a_tied_head_that_is_stored_too_stays_tied(chat, adapter, tmp_path, gate):
    from safetensors.torch import load_file, save_file

    both = tmp_path / "both"
    shutil.copytree(chat.payload, both)
    tensors = load_file(both / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, both / "model.safetensors", metadata={"format": "pt"})
    merged = merge(Model(both, chat.digest, {}), adapter, tmp_path / "merged", gate=gate)
    model = load(merged)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert (logits(model) - logits(adapted(chat, adapter))).abs().max() < 1e-4


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

    from recipe_plugins.merge.changes import Changes
    from recipe_plugins.merge.streaming import _merged

    changes = Changes(adapter.payload)
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


def test_an_adapter_that_does_not_say_its_base_is_refused(chat, adapter, tmp_path):
    with pytest.raises(RecipeError, match="does not say by digest what it was trained on"):
        merge(chat, Adapter(adapter.payload, "", {}), tmp_path)


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
    """The weights are checked by code of their own, and logits besides."""
    from recipe_plugins.merge import into_base
    from recipe_plugins.merge.changes import LowRank

    right = LowRank.apply
    monkeypatch.setattr(LowRank, "apply", lambda self, block, start: right(self, block, 0))  # rows of another block
    with pytest.raises(RecipeError, match="was not merged as it should have been: in row"):
        merge(chat, adapter, tmp_path / "a", block=4096)
    monkeypatch.setattr(into_base, "check_weights", lambda *given, **named: None)
    with pytest.raises(RecipeError, match=r"more than 0\.0001 \(tolerance\)"):
        merge(chat, adapter, tmp_path / "b", block=4096)
    assert not list((tmp_path / "b" / "payload").iterdir())


def _checked(base, merged, *adapters):
    from recipe_plugins.merge.checking import check_weights
    from recipe_plugins.merge.several import Weighted

    given = {str(number): Weighted(part) for number, part in enumerate(adapters)}
    return check_weights(base.payload, merged.payload, given, restored=None, resized=None)


@pytest.mark.parametrize(
    ("tensor", "factor", "said"),
    [
        (
            "model.layers.1.mlp.up_proj.weight",
            1 + 1e-4,
            "up_proj.weight was not merged as it should have been: in row 0",
        ),
        ("model.norm.weight", 1 + 1e-6, "no adapter changes it"),
        ("model.embed_tokens.weight", 1.001, "embed_tokens.weight was not merged"),
    ],
)
def test_each_weight_that_was_written_is_checked(chat, adapter, tmp_path, tensor, factor, said):
    from safetensors.torch import load_file, save_file

    merged = _copy(merge(chat, adapter, tmp_path / "right"), tmp_path / "wrong", Model)
    path = merged.payload / "model.safetensors"
    right = _checked(chat, merged, adapter)
    assert right.kept == pytest.approx(1, abs=1e-5)
    assert right.error < 1e-4
    assert (right.tensors, right.changed) == (len(load_file(path)), 2 * 7 + 1)
    save_file({name: w * factor if name == tensor else w for name, w in load_file(path).items()}, path)
    with pytest.raises(RecipeError, match=said):
        _checked(chat, merged, adapter)


def test_without_memory_for_a_model_weights_alone_are_checked_and_it_is_said(chat, adapter, tmp_path, monkeypatch):
    from recipe_plugins.merge import gate, into_base

    def never(*given, **named):
        raise AssertionError("a whole model was loaded")

    usual = merge(chat, adapter, tmp_path / "usual")
    assert usual.facts["merge"]["logits"] == "compared"
    monkeypatch.setattr(into_base, "load_several", never)
    monkeypatch.setattr(into_base, "load_model", never)
    small = merge(chat, adapter, tmp_path / "small", memory="100KB")
    assert small.digest == usual.digest
    assert small.facts["merge"]["logits"].startswith("not compared: a model takes")
    assert "0.0001 GB are allowed (memory)" in small.manifest["warnings"][0]
    assert small.facts["merge"]["weights"] == usual.facts["merge"]["weights"]
    assert "not compared" in (small.path / "README.md").read_text()
    monkeypatch.setattr(gate, "free_memory", lambda where: 1000)
    assert "are free" in merge(chat, adapter, tmp_path / "full").facts["merge"]["logits"]
    chosen = merge(chat, adapter, tmp_path / "chosen", gate="weights")
    assert chosen.facts["merge"]["logits"] == "not compared: gate: weights"
    assert not chosen.manifest["warnings"]
    with pytest.raises(AssertionError, match="a whole model was loaded"):
        merge(chat, adapter, tmp_path / "logits", gate="logits")


def test_what_needs_whole_models_says_so(chat, qadapter, tmp_path):
    with pytest.raises(RecipeError, match="which base is the better one") as caught:
        merge(chat, qadapter, tmp_path / "auto", memory="100KB")
    assert "base: dequantised" in caught.value.render()
    for base in ("original", "dequantised"):
        found = merge(chat, qadapter, tmp_path / base, gate="weights", base=base).facts["merge"]
        assert found["base"] == base
        assert found["weights"]["kept"] == pytest.approx(1, abs=1e-3)


def test_a_change_that_rounding_takes_is_no_merge(chat, adapter, tmp_path):
    """In 16 bits a weight keeps a change only if it is about as large as the step to the next number."""
    import torch
    from safetensors.torch import load_file, save_file

    half, weak = _copy(chat, tmp_path / "half", Model), _copy(adapter, tmp_path / "weak", Adapter)
    load(chat).to(torch.bfloat16).save_pretrained(half.payload)
    found = merge(half, adapter, tmp_path / "merged").facts["merge"]["weights"]
    assert 0.9 < found["weakest_kept"] <= found["kept"] < 1.1
    assert found["error"] > 1e-3
    path = weak.payload / "adapter_model.safetensors"
    tensors = {n: t * 1e-4 if "lora_B" in n else t for n, t in load_file(path).items() if "token" not in n}
    save_file(tensors, path)
    with pytest.raises(RecipeError, match="of what the adapter changes is left in bfloat16"):
        merge(half, weak, tmp_path / "lost", gate="weights")


def test_free_memory_is_within_the_limits_of_the_control_group(tmp_path):
    import torch

    from recipe_plugins.training.machine import _left_in_groups, free_memory

    assert 2**20 < free_memory(torch.device("cpu")) < 2**50
    own = tmp_path / "cgroup"
    own.write_text("0::/a/b\n")
    for group, limit, used, cached in (("a", "1000", 700, 100), ("a/b", "max", 600, 0)):
        (tmp_path / "root" / group).mkdir(parents=True)
        (tmp_path / "root" / group / "memory.max").write_text(f"{limit}\n")
        (tmp_path / "root" / group / "memory.current").write_text(f"{used}\n")
        (tmp_path / "root" / group / "memory.stat").write_text(f"anon 5\ninactive_file {cached}\n")
    assert list(_left_in_groups(tmp_path / "root", own)) == [400]


def test_what_cannot_be_merged_is_refused(chat, adapter, tmp_path):
    other = _copy(adapter, tmp_path / "other", Adapter)
    path = other.payload / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "rank_pattern": {"q_proj": 2}}))
    from recipe_plugins.merge.changes import Changes

    with pytest.raises(RecipeError, match="rank_pattern"):
        Changes(other.payload)


@pytest.mark.parametrize("setting", [{"alora_invocation_tokens": [1, 2]}, {"kasa_config": {"beta": 1e-4}}])
def test_variants_of_lora_that_only_peft_knows_are_not_merged_as_lora(adapter, tmp_path, setting):
    from recipe_plugins.merge.changes import Changes, other_settings

    variant = _copy(adapter, tmp_path / "variant", Adapter)
    path = variant.payload / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **setting}))
    assert other_settings(adapter.payload) == {}
    assert other_settings(variant.payload) == setting
    with pytest.raises(RecipeError, match=f"settings that are not known here: {next(iter(setting))}"):
        Changes(variant.payload)


def test_a_4_bit_adapter_is_merged_into_what_is_closer_and_it_says_which(chat, qadapter, facts, tmp_path):
    found = merge(chat, qadapter, tmp_path / "auto").facts["merge"]
    by_base = {candidate["base"]: candidate["difference"] for candidate in found["candidates"]}
    assert found["trained_on_4_bits"]
    assert found["decided_by"] == found["gate"]["judged_by"] == "logits"
    assert "no held-out answers" in found["gate"]["because"]
    assert found["base"] == min(by_base, key=by_base.get) == "dequantised"
    assert by_base["dequantised"] < by_base["original"] / 3
    forced = merge(chat, qadapter, tmp_path / "forced", base="original", relative_tolerance=1.0).facts["merge"]
    assert (forced["base"], forced["decided_by"]) == ("original", "the only one")
    heard = merge(chat, qadapter, tmp_path / "heard", facts).facts["merge"]
    assert heard["decided_by"] == "loss of held-out answers"
    losses = {candidate["base"]: candidate["loss"] for candidate in heard["candidates"]}
    assert heard["base"] == min(losses, key=losses.get)
    gate = heard["gate"]
    assert gate["judged_by"] == "loss of held-out answers"
    assert gate["merged_loss"] == losses[heard["base"]]
    assert gate["gain_lost"] == (gate["merged_loss"] - gate["adapter_loss"]) / (
        gate["base_loss"] - gate["adapter_loss"]
    )
    assert gate["gain_lost"] < 0.01 < gate["loss_tolerance"] == 0.1
    assert gate["passed"]


def test_a_4_bit_adapter_that_is_lost_fails_by_held_out_answers(chat, qadapter, facts, tmp_path, monkeypatch):
    """Half of the update is missing, and nobody looks at the weights."""
    from recipe_plugins.merge import into_base
    from recipe_plugins.merge.changes import LowRank

    def half(self, block, start):
        block.addmm_(self.b[start : start + len(block)], self.a, alpha=self.scale / 2)

    monkeypatch.setattr(LowRank, "apply", half)
    monkeypatch.setattr(into_base, "check_weights", lambda *given, **named: None)
    with pytest.raises(RecipeError, match=r"of what the adapter gained \(from 1\.\d+\) is lost, more than 10\.0%"):
        merge(chat, qadapter, tmp_path, facts, base="dequantised", relative_tolerance=1.0)
    assert not list((tmp_path / "payload").iterdir())


def test_the_gate_of_4_bit_adapters_takes_what_is_better_and_knows_when_a_loss_tells_nothing(tmp_path):
    import torch

    from recipe_plugins.merge.config import MergeConfig
    from recipe_plugins.merge.gate import Probes, Seen
    from recipe_plugins.merge.judging import Candidate, Judge, Reference

    config = MergeConfig(model="./base", adapter="./adapter")

    def judge(before, after):
        probes = Probes([], [], None)
        reference = Reference(probes, Seen(torch.zeros(1, 2), before), Seen(torch.tensor([[0.0, 1.0]]), after))
        return Judge(config, reference, exact=False, quantised=True)

    def merged(loss, difference=10.0):
        return Candidate("original", tmp_path, difference, loss, None)

    better, worse = merged(0.9), merged(1.2)
    assert judge(2.0, 1.0).best([worse, better]) is better
    assert judge(2.0, 1.0).check(better)["gain_lost"] == pytest.approx(-0.1)
    assert judge(2.0, 1.0).check(merged(1.09))["passed"]
    for loss in (1.11, 2.0, float("nan")):
        with pytest.raises(RecipeError, match="is lost, more than"):
            judge(2.0, 1.0).check(merged(loss))
    for before, after in ((1.0, 1.0), (1.0, 1.5), (None, None)):  # the base alone would pass by the loss
        blind = judge(before, after)
        assert blind.check(merged(before, 0.4))["judged_by"] == "logits"
        assert blind.because
        with pytest.raises(RecipeError, match=r"relative_tolerance.*moves them by 1"):
            blind.check(merged(before, 0.6))


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
    path = half.payload / "config.json"
    keys = json.loads(path.read_text())
    path.write_text(json.dumps({name: value for name, value in keys.items() if name != "dtype"}))
    merge(half, adapter, tmp_path / "untold")  # its files say it
    path.write_text(json.dumps({**keys, "quantization_config": {"quant_method": "fp8"}}))
    with pytest.raises(RecipeError, match=r"were saved quantised \(fp8\)"):
        merge(half, adapter, tmp_path / "fp8", gate="weights")


def _copy(artifact, folder, kind):
    """The same artifact elsewhere, to be tampered with."""
    shutil.copytree(artifact.path, folder, ignore=shutil.ignore_patterns("work"))
    return kind(folder, artifact.digest, artifact.manifest)
