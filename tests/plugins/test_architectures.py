"""Architectures: exact counts without torch, the same model after a save, documents isolated when packed."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from recipe_runner import Known, KnownInput, RecipeError
from recipe_runner.identity import identity
from recipe_runner.testing import slot

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
MOE = {
    "use": "qwen3-moe", "head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
}  # fmt: skip
OLMO = {"use": "transformers", "model_type": "olmo2", "keys": {**SMALL, "num_key_value_heads": 2}}
CASES = [
    MOE,
    {**MOE, "tie_word_embeddings": False},
    {"use": "llama"},
    {"use": "llama", "tie_word_embeddings": False},
    {"use": "qwen3", "head_dim": 16},
    {"use": "qwen3", "head_dim": 8, "num_key_value_heads": 2, "tie_word_embeddings": False},
    {"use": "gpt2", "max_position_embeddings": 40},
    {"use": "gpt2", "tie_word_embeddings": False},
]


def whole(case: dict) -> dict:
    """The case with the sizes that it leaves out; a mixture of experts gives its own."""
    return case if case["use"] == "qwen3-moe" else {**SMALL, **case}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_parameters_are_counted_exactly(case):
    chosen = slot("architecture", whole(case))
    assert chosen.config.parameters(100) == sum(p.numel() for p in chosen.build().build(100).parameters())


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_saved_model_gives_the_same_logits_and_keeps_its_settings(case, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    built = slot("architecture", whole(case)).build().build(100).eval()
    built.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    ids = torch.arange(20)[None] * 3 % 100
    assert torch.equal(built(ids).logits, again(ids).logits)
    asked = {key: value for key, value in whole(case).items() if key not in ("use", "intermediate_size")}
    assert {key: getattr(again.config, key) for key in asked} == asked


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_packed_documents_are_isolated(case):
    import torch

    torch.manual_seed(0)
    model = slot("architecture", whole(case)).build().build(100).eval()
    model.config.use_cache = False
    one, other = torch.arange(9)[None], torch.arange(30, 42)[None]
    positions = torch.cat([torch.arange(9), torch.arange(12)])[None]
    packed = model(torch.cat([one, other], 1), position_ids=positions).logits[:, 9:]
    assert torch.allclose(packed, model(other).logits, atol=1e-5)


def test_heads_that_do_not_divide_are_refused():
    with pytest.raises(ValidationError, match="hidden_size 30 must be a multiple of num_attention_heads 4"):
        slot("architecture", {"use": "gpt2", **SMALL, "hidden_size": 30})


def test_what_a_token_does_not_meet_costs_no_flops():
    shape = slot("architecture", MOE).config.shape(100)
    expert = 3 * 32 * 16
    assert shape.inactive == 2 * 2 * expert  # two of four experts, in two layers
    assert shape.active == shape.parameters - shape.inactive
    more = slot("architecture", {**MOE, "num_experts": 8}).config.shape(100)
    assert more.flops_per_token(64) - shape.flops_per_token(64) == 6 * 2 * 4 * 32  # the routers alone


@pytest.mark.parametrize("family", [{"use": "llama"}, {"use": "gpt2"}, {"use": "qwen3", "head_dim": 64}])
@pytest.mark.parametrize("size", ["2M", "125M", "1.3B"])
def test_a_size_gives_a_shape_near_it(family, size):
    config = slot("architecture", {**family, "size": size}).config
    asked = config.size
    assert config.parameters(2048 if asked < 1e7 else 32_000) == pytest.approx(asked, rel=0.2 if asked < 1e7 else 0.05)
    sized = config.sized(32_000)
    assert 32 <= sized.hidden_size / sized.num_hidden_layers <= 128
    assert sized.sized(32_000) == sized
    dumped = type(config).model_validate(config.model_dump())  # as a worker gets it, with every field set
    assert dumped.sized(32_000) == sized


def test_parameters_is_another_word_for_the_size_and_plan_tells_the_shape():
    base = {"use": "pretrain", "corpus": "c", "tokeniser": "t", "batch_size": 8, "sequence_length": 64}
    one, other = (
        slot("stage", {**base, "budget": {"steps": 1}, "architecture": {"use": "llama", word: "125M"}}).config
        for word in ("size", "parameters")
    )
    assert one == other
    assert one.architecture.config.size == 125_000_000
    notes = other.estimate(Known({"tokeniser": KnownInput({"vocab_size": 32_000})})).notes
    assert notes[0] == "hidden_size 896, num_hidden_layers 10, num_attention_heads 14, intermediate_size 2,432"


def test_a_depth_gives_the_shape_of_125_million():
    sized = slot("architecture", {"use": "llama", "depth": 12}).config.sized(32_000)
    found = (sized.num_hidden_layers, sized.hidden_size, sized.num_attention_heads, sized.intermediate_size)
    assert found == (12, 768, 12, 2048)
    grouped = slot("architecture", {"use": "llama", "depth": 12, "num_key_value_heads": 4, "intermediate_size": 1024})
    assert (grouped.config.sized(9).num_key_value_heads, grouped.config.sized(9).intermediate_size) == (4, 1024)


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ({}, "hidden_size is missing: give hidden_size and num_hidden_layers and .* or what they follow from"),
        ({"depth": 2, "size": "1M"}, "depth and size decide the same"),
        ({"depth": 2, "hidden_size": 64}, "depth and hidden_size decide the same"),
    ],
)
def test_sizes_are_decided_once(written, message):
    with pytest.raises(ValidationError, match=message):
        slot("architecture", {"use": "llama", **written})


def test_gpt2_is_four_times_as_wide_within_a_layer_unless_it_is_said():
    """However its other sizes are given; a recipe that names the width keeps its key."""
    given = {**SMALL, "use": "gpt2", "intermediate_size": 128}
    left_out = {name: value for name, value in given.items() if name != "intermediate_size"}
    whole, short = (slot("architecture", written) for written in (given, left_out))
    assert short.config.sized(100) == whole.config.sized(100)
    assert short.config.shape(100) == whole.config.shape(100)
    assert identity(whole.config)["intermediate_size"] == 128
    assert "intermediate_size" not in identity(short.config)
    assert slot("architecture", {"use": "gpt2", "depth": 2}).config.derived(100).endswith("intermediate_size 512")


@pytest.mark.slow
def test_gpt2_without_its_inner_width_is_built_with_it():
    sizes = {name: value for name, value in SMALL.items() if name != "intermediate_size"}
    chosen = slot("architecture", {"use": "gpt2", **sizes})
    built = chosen.build().build(100)
    assert built.config.n_inner == 128
    assert chosen.config.parameters(100) == sum(p.numel() for p in built.parameters())


def test_a_size_that_nothing_has_is_an_error_that_names_the_nearest():
    with pytest.raises(RecipeError, match="no shape has about 1,000,000 parameters with a vocabulary of 128,000"):
        slot("architecture", {"use": "llama", "size": "1M"}).config.parameters(128_000)
    with pytest.raises(RecipeError, match="must be a multiple of num_key_value_heads 5"):
        slot("architecture", {"use": "llama", "depth": 12, "num_key_value_heads": 5}).config.parameters(100)


@pytest.mark.slow
def test_a_depth_is_what_is_built():
    config = {
        "use": "qwen3-moe",
        "depth": 1,
        "head_dim": 16,
        **{k: MOE[k] for k in MOE if k.startswith(("num_e", "moe"))},
    }
    chosen = slot("architecture", config)
    assert chosen.config.parameters(50) == sum(p.numel() for p in chosen.build().build(50).parameters())


@pytest.mark.slow
def test_any_type_of_transformers_is_built_by_its_own_keys(tmp_path):
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    built = slot("architecture", OLMO).build().build(100).eval()
    assert (built.config.model_type, built.config.vocab_size, built.config.num_key_value_heads) == ("olmo2", 100, 2)
    assert {p.dtype for p in built.parameters()} == {torch.float32}
    built.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    ids = torch.arange(20)[None]
    assert torch.equal(built(ids).logits, again(ids).logits)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("written", "message", "mend"),
    [
        ({"model_type": "olmo22"}, "no causal language model of type 'olmo22'", "olmo2"),
        ({"keys": {**OLMO["keys"], "hiden_size": 3}}, "olmo2 has no key 'hiden_size'", "hidden_size"),
        ({"model_type": "mamba", "keys": {"hidden_size": 32, "num_hidden_layers": 1}}, "see each other", "llama"),
        ({"keys": {**OLMO["keys"], "num_key_value_heads": 3}}, "cannot build a olmo2 of these keys", ""),
    ],
)
def test_what_the_library_would_take_silently_is_refused(written, message, mend):
    with pytest.raises(RecipeError, match=message) as error:
        slot("architecture", {**OLMO, **written}).build().build(100)
    assert mend in error.value.next


def test_keys_that_others_decide_are_refused():
    with pytest.raises(ValidationError, match="vocab_size is decided elsewhere"):
        slot("architecture", {**OLMO, "keys": {"vocab_size": 5}})
