"""What must not depend on how the work is cut up: accumulation, packing, saving and loading."""

from __future__ import annotations

import numpy as np
import pytest

from recipe_runner.testing import LocalContext
from recipe_runner.testing.local import slot

VOCAB, LENGTH = 96, 32


def llama(**changes):
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    return slot("architecture", {"use": "llama", **shape, "max_position_embeddings": 64, **changes})


def experts():
    """A mixture of experts whose balancing loss is far from nothing."""
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 8}
    routed = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "router_aux_loss_coef": 1.0}
    return slot("architecture", {"use": "qwen3-moe", **shape, **routed})


class Rows:
    """Rows with very different numbers of labels, one of them with none."""

    def __len__(self):
        return 24

    def __getitem__(self, number):
        draw = np.random.default_rng(number)
        ids = draw.integers(0, VOCAB, LENGTH)
        labels = np.where(np.arange(LENGTH) < (number * 5) % LENGTH, ids, -100)
        return {"input_ids": ids, "labels": labels, "position_ids": np.arange(LENGTH)}


def trained(tmp_path, micro_batch: int, architecture=llama):
    """Losses, gradient norms and weights after 4 steps of 8 rows."""
    import torch
    from transformers import PreTrainedTokenizerFast

    from recipe_plugins.training import TrainingConfig, train

    torch.manual_seed(0)
    model = architecture().build().build(VOCAB)
    config = TrainingConfig.model_validate(
        {
            "budget": {"steps": 4},
            "batch_size": 8,
            "sequence_length": LENGTH,
            "optimizer": {"lr": 1e-3, "eps": 1e-3},  # a large eps, so that rounding in tiny gradients stays tiny
            "execution": {"device": "cpu", "threads": 1, "micro_batch": micro_batch},
        }
    )
    context = LocalContext(tmp_path / str(micro_batch))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=_words())
    result = train(context, config, model, Rows(), tokenizer, steps=4, optimizer=config.optimizer, digests={})
    rows = [[row[name] for name in ("loss", "grad_norm", "balance") if name in row] for row in context.rows]
    return np.array(rows), torch.cat([p.detach().flatten() for p in model.parameters()]).numpy(), result


def _words():
    from tokenizers import Tokenizer, models

    return Tokenizer(models.WordLevel({str(n): n for n in range(VOCAB)}, unk_token="0"))


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [llama, experts])
def test_accumulation_does_not_change_the_step(tmp_path, architecture):
    one, weights, result = trained(tmp_path, 8, architecture)
    for micro_batch in (1, 2, 3, 4):
        other, others, counted = trained(tmp_path, micro_batch, architecture)
        np.testing.assert_allclose(other, one, rtol=2e-5)
        np.testing.assert_allclose(others, weights, atol=2e-6)
        assert (counted.supervised_tokens, counted.rows_without_labels) == (
            result.supervised_tokens,
            result.rows_without_labels,
        )
    assert result.rows_without_labels > 0


@pytest.mark.slow
def test_packed_and_isolated_equals_one_document_at_a_time():
    """The same loss and gradients from rows that hold several documents as from each alone."""
    import torch

    from recipe_plugins.training.losses import summed_loss
    from recipe_plugins.training.order import stack
    from recipe_plugins.training.store import cut

    draw = np.random.default_rng(3)
    lengths = [5, 11, 16, 9, 23]  # the first three fill a row exactly, so do the last two
    documents = [draw.integers(0, VOCAB, length) for length in lengths]
    stream, ends = np.concatenate(documents), np.cumsum(lengths)
    torch.manual_seed(0)
    model = llama().build().build(VOCAB)
    model.config.use_cache = False

    def measured(batches):
        model.zero_grad()
        total = sum(summed_loss(model(input_ids=b["input_ids"], position_ids=b["position_ids"]).logits, b["labels"])
                    for b in batches)  # fmt: skip
        total.backward()
        return total.item(), torch.cat([p.grad.flatten() for p in model.parameters()])

    packed, gradient = measured([stack([cut(stream, ends, start, 32, isolate=True) for start in (0, 32)])])
    alone, expected = measured([stack([cut(d, np.array([len(d)]), 0, len(d), isolate=True)]) for d in documents])
    assert packed == pytest.approx(alone, rel=1e-6)
    torch.testing.assert_close(gradient, expected, atol=2e-6, rtol=1e-4)
    leaking, _ = measured([stack([cut(stream, ends, start, 32, isolate=False) for start in (0, 32)])])
    assert abs(leaking - alone) > 1e-2


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"tie_word_embeddings": True}, {"tie_word_embeddings": False}])
def test_saved_and_loaded_gives_equal_logits(tmp_path, tiny_tokeniser, changes):
    import torch

    from recipe_plugins.training.loading import load_model, load_tokenizer, save_model, set_special_tokens
    from recipe_runner import Model

    context = LocalContext(tmp_path)
    tokenizer = load_tokenizer(context, tiny_tokeniser)
    model = llama(**changes, num_key_value_heads=2).build().build(len(tokenizer))
    set_special_tokens(model, tokenizer)
    for folder in ("one", "two"):
        save_model(model, tokenizer, tmp_path / folder)
    again = load_model(context, Model(tmp_path / "one", "", {}))
    ids = torch.arange(20)[None]
    assert torch.equal(model.eval()(ids).logits, again.eval()(ids).logits)
    tied = again.get_input_embeddings().weight.data_ptr() == again.get_output_embeddings().weight.data_ptr()
    assert tied == changes["tie_word_embeddings"]
    assert again.config.use_cache
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("keys", "why", "mend"),
    [
        (
            {"model_type": "mamba"},
            "a model of type 'mamba' has no attention that torch computes",
            "llama, qwen3 or olmo2",
        ),
        ({"model_type": "t5"}, "a model of type 't5' is no causal language model", "llama, qwen3 or olmo2"),
        (
            {"model_type": "lama"},
            "transformers that is installed knows no model of type 'lama'",
            "llama, qwen3 or olmo2",
        ),
        ({"model_type": "x", "auto_map": {"AutoConfig": "a.B"}}, "it brings code of its own", "--trust-remote-code"),
        (
            {"model_type": "llama", "num_hidden_layers": 1},
            "no file named model.safetensors",
            "whether the folder is whole",
        ),
        (None, "Unrecognized model", "whether the folder is whole"),
    ],
)
def test_what_no_library_loads_is_a_users_error_that_says_why(tmp_path, keys, why, mend):
    import json

    from recipe_plugins.training.loading import load_model
    from recipe_runner import Model, RecipeError

    if keys is not None:
        (tmp_path / "config.json").write_text(json.dumps(keys))
    with pytest.raises(RecipeError, match=why) as caught:
        load_model(LocalContext(tmp_path), Model(tmp_path, "", {}))
    assert mend in caught.value.next


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen3", "gemma2"])
def test_a_model_without_its_tokenizer_is_refused(tmp_path, kind):
    """Of all but the first the library makes one to which every text is empty."""
    import json

    from recipe_plugins.training.loading import load_tokenizer
    from recipe_runner import Model, RecipeError

    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    with pytest.raises(RecipeError, match=r"the tokenizer in .* cannot be loaded") as caught:
        load_tokenizer(LocalContext(tmp_path), Model(tmp_path, "", {}))
    assert "whether the folder is whole" in caught.value.next


@pytest.mark.slow
def test_a_model_without_its_weights_is_refused(tmp_path, tiny_base):
    import json
    import shutil

    from recipe_plugins.training.loading import load_model
    from recipe_runner import Model, RecipeError

    folder = tmp_path / "model"
    shutil.copytree(tiny_base.payload, folder)
    keys = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**keys, "num_hidden_layers": 3}))
    with pytest.raises(RecipeError, match="missing keys"):
        load_model(LocalContext(tmp_path), Model(folder, "", {}))
