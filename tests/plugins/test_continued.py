"""Continued pretraining: where it begins is measured, what it brings is kept, and a kill changes nothing."""

from __future__ import annotations

import math

import pytest

from recipe_runner import Adapter, Interrupted, Known, KnownInput, Model, RecipeError
from recipe_runner.identity import folder_files
from recipe_runner.testing import LocalContext, make, slot

slow = pytest.mark.slow
LLAMA = {
    "use": "llama", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
}  # fmt: skip
WORDS = ("Parameters", "function", "following", "argument")
RSLORA = {"use": "rslora", "r": 8, "alpha": 4, "modules": ["embed_tokens", "lm_head"]}

FROM_SCRATCH = ("architecture", "tokeniser")


@pytest.fixture(scope="module")
def more_tokens(tiny_base, tmp_path_factory):
    """The tiny tokeniser with four words more."""
    config = {"tokeniser": "base", "tokens": WORDS}
    return make("pretrained-tokeniser", config, tmp_path_factory.mktemp("more"), inputs={"base": tiny_base})


@pytest.fixture(scope="module")
def inputs(tiny_base, tiny_corpus, more_tokens):
    return {"corpus": tiny_corpus, "base": tiny_base, "more": more_tokens}


@pytest.fixture
def continuing(pretraining):
    """A config of `pretrain` that goes on from `base`, with changes."""

    def config(**changes) -> dict:
        found = pretraining(budget={"steps": 6}, embedding_lr=0.2, model="base", mix={"prose": 0.8, "code": 0.2})
        return {key: value for key, value in found.items() if key not in FROM_SCRATCH} | changes

    return config


@pytest.fixture(scope="module")
def adapter(inputs, pretraining, tmp_path_factory):
    """A domain with new tokens, learned through rsLoRA at a quarter of the width, and both tables."""
    config = pretraining(budget={"steps": 12}, tokeniser="more", model="base", adapter=RSLORA, embedding_lr=0.2)
    del config["architecture"]
    return make("pretrain", config, tmp_path_factory.mktemp("adapter"), inputs=inputs)


@slow
def test_in_full_it_begins_where_the_model_ended_and_is_a_model_to_anneal(tiny_base, inputs, continuing, tmp_path):
    made = make("pretrain", continuing(), tmp_path, inputs=inputs)
    assert isinstance(made, Model)
    assert made.branch_point() is not None
    forgetting, was = made.facts["forgetting"], tiny_base.facts["bits_per_byte"]
    assert {name: pair["before"] for name, pair in forgetting.items()} == pytest.approx(was)
    assert forgetting["prose"]["after"] < forgetting["prose"]["before"]
    assert {name: pair["after"] for name, pair in forgetting.items()} == made.facts["bits_per_byte"]
    assert [table["title"] for table in made.facts["tables"]][-1] == "held-out bits per byte"
    assert made.facts["new_tokens"] == 0
    assert made.facts["trainable"] == made.facts["parameters"] == tiny_base.facts["parameters"]


@slow
def test_an_adapter_brings_its_tokens_and_merging_keeps_what_it_learned(tiny_base, inputs, adapter, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from recipe_plugins.training.bits import bits_per_byte, heldout_records

    assert isinstance(adapter, Adapter)
    assert adapter.facts["new_tokens"] == len(WORDS)
    assert adapter.facts["base"] == tiny_base.digest
    assert adapter.facts["trainable"] < adapter.facts["parameters"]
    config = {"model": "base", "adapter": "adapter", "execution": {"device": "cpu", "threads": 1}}
    merged = make("merge", config, tmp_path, inputs={**inputs, "adapter": adapter})
    model, tokenizer = (kind.from_pretrained(merged.payload) for kind in (AutoModelForCausalLM, AutoTokenizer))
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert len(tokenizer(WORDS[0])["input_ids"]) == 1
    assert model.config.vocab_size == adapter.facts["table_rows"] == 448, "384 and four more, in multiples of 64"
    found = bits_per_byte(model, tokenizer, heldout_records(inputs["corpus"]), 64, "cpu")
    assert found == pytest.approx(adapter.facts["bits_per_byte"], abs=1e-4)
    assert merged.facts["shape"]["embedding"] == 448 * 32


@slow
def test_killed_is_straight_with_new_tokens_and_an_adapter(inputs, continuing, tmp_path):
    changes = {"budget": {"steps": 5}, "adapter": {**RSLORA, "dropout": 0.1}, "tokeniser": "more"}
    config = continuing(**changes, execution={"device": "cpu", "threads": 1, "checkpoint_every": 2})
    whole = make("pretrain", config, tmp_path / "whole", inputs=inputs)

    class Stopped(LocalContext):
        def stopping(self) -> bool:
            return len(self.rows) >= 3

    stage = slot("stage", {"use": "pretrain", **config})
    with pytest.raises(Interrupted):
        stage.build().run(Stopped(tmp_path / "cut", inputs=inputs))
    context = LocalContext(tmp_path / "cut", inputs=inputs)
    stage.build().run(context)
    assert folder_files(context.payload) == folder_files(whole.payload)
    assert context.facts["forgetting"] == whole.facts["forgetting"]


@slow
def test_only_the_rows_of_new_tokens_may_train(inputs, continuing, tmp_path):
    from safetensors.torch import load_file

    method = {"use": "lora", "r": 4, "rows": "new-tokens"}
    made = make("pretrain", continuing(tokeniser="more", adapter=method, budget={"steps": 4}), tmp_path, inputs=inputs)
    tensors = load_file(made.payload / "adapter_model.safetensors")
    assert [tuple(t.shape) for name, t in tensors.items() if "trainable_tokens" in name] == [(len(WORDS), 32)]


@slow
def test_the_estimate_is_that_of_the_model_or_of_the_adapter(tiny_base, continuing):
    known = Known({"model": KnownInput(tiny_base.facts, tiny_base.payload)})
    full = slot("stage", {"use": "pretrain", **continuing()}).config.estimate(known)
    assert full.parameters == full.trainable == tiny_base.facts["parameters"]
    part = slot("stage", {"use": "pretrain", **continuing(adapter=RSLORA)}).config.estimate(known)
    assert part.trainable < full.trainable
    assert math.isfinite(part.flops)


@slow
def test_a_budget_of_an_adapter_is_the_same_in_plan_and_run_or_refused(inputs, tiny_base, continuing, tmp_path):
    config = continuing(adapter=RSLORA, budget={"tokens_per_parameter": 0.2})
    known = Known({"model": KnownInput(tiny_base.facts, tiny_base.payload)})
    made = make("pretrain", config, tmp_path / "run", inputs=inputs)
    assert made.facts["steps"] == slot("stage", {"use": "pretrain", **config}).config.estimate(known).steps
    with pytest.raises(RecipeError, match="a budget in flops cannot be turned into steps here"):
        make("pretrain", config | {"budget": {"flops": 1e9}}, tmp_path / "flops", inputs=inputs)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"architecture": LLAMA}, "exactly one of architecture"),
        ({"model": None}, "exactly one of architecture"),
        ({"model": None, "architecture": LLAMA}, "tokeniser is missing"),
        ({"model": None, "architecture": LLAMA, "tokeniser": "more", "adapter": "lora"}, "trains in full"),
        ({"adapter": "lora", "precision": "bf16-master"}, "bf16-master is for training in full"),
        (
            {
                "model": None,
                "tokeniser": "more",
                "architecture": {**LLAMA, "max_position_embeddings": 32},
                "sequence_length": 64,
            },
            "sequence_length 64 is more than the architecture's max_position_embeddings 32",
        ),
    ],
)
def test_settings_that_exclude_each_other(continuing, changes, says):
    with pytest.raises(ValueError, match=says):
        slot("stage", {"use": "pretrain", **continuing(**changes)})


@slow
def test_a_model_whose_packed_documents_see_each_other_is_refused_before_it_trains(
    inputs, continuing, tiny_tokeniser, tmp_path
):
    """OPT takes positions, and sees over them all the same; no library tells."""
    from transformers import AutoTokenizer, OPTConfig, OPTForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(tiny_tokeniser.payload)
    keys = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "ffn_dim": 16}
    folder = tmp_path / "leaking"
    tokens = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    OPTForCausalLM(OPTConfig(**tokens, **keys, word_embed_proj_dim=16)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    leaking = {**inputs, "base": Model(folder, "leaking", {})}
    with pytest.raises(RecipeError, match="type 'opt' lets packed documents see each other") as caught:
        make("pretrain", continuing(), tmp_path / "refused", inputs=leaking)
    assert "isolate: false" in caught.value.next
    assert make("pretrain", continuing(isolate=False), tmp_path / "joined", inputs=leaking)


@slow
def test_little_that_is_seen_over_a_boundary_is_seen(tiny_base):
    """The short convolution of LFM2 carries three tokens over, and at random weights it is next to nothing."""
    import torch
    from transformers import AutoModelForCausalLM, Lfm2Config, Lfm2ForCausalLM

    from recipe_plugins.training.attention import isolates

    for dtype in (torch.float32, torch.bfloat16):
        assert isolates(AutoModelForCausalLM.from_pretrained(tiny_base.payload, dtype=dtype))
    torch.manual_seed(0)
    keys = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
    layers = {"intermediate_size": 32, "layer_types": ["conv", "full_attention"]}
    assert not isolates(Lfm2ForCausalLM(Lfm2Config(vocab_size=64, **keys, **layers)))
