"""The two ways to the loss are one: nats, z-loss and gradients."""

from __future__ import annotations

import numpy as np
import pytest

from recipe_plugins.training.config import TrainingConfig
from recipe_runner import RecipeError
from recipe_runner.testing import LocalContext
from recipe_runner.testing.local import slot

pytestmark = pytest.mark.slow

VOCAB, LENGTH = 200, 24


def llama(**changes):
    import torch

    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
    return slot("architecture", {"use": "llama", **shape, **changes}).build().build(VOCAB)


def batch():
    import torch

    ids = torch.randint(0, VOCAB, (3, LENGTH), generator=torch.Generator().manual_seed(1))
    labels = torch.where(torch.rand(ids.shape, generator=torch.Generator().manual_seed(2)) < 0.3, -100, ids)
    return ids, labels


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_chunked_is_plain(monkeypatch, tied, z_loss, chunk):
    import torch

    from recipe_plugins.training import losses
    from recipe_plugins.training.trainer import chunked_head

    monkeypatch.setattr(losses, "CHUNK_LOGITS", chunk * VOCAB)
    ids, labels = batch()
    model = llama(tie_word_embeddings=tied)
    logits = model(input_ids=ids, use_cache=False).logits
    plain = losses.summed_loss(logits, labels)
    (plain + z_loss * losses.summed_z(logits, labels)).mul(0.5).backward()
    expected = [parameter.grad.clone() for parameter in model.parameters()]

    model.zero_grad()
    head = chunked_head(model, torch.float32)
    with head.instead():
        assert model(input_ids=ids, use_cache=False).logits.shape == (3, 0, VOCAB)
    loss, nats = head.losses(labels, z_loss)
    (loss * 0.5).backward()
    torch.testing.assert_close(nats, plain, rtol=1e-6, atol=0)
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        scale = gradient.abs().max()
        assert (parameter.grad - gradient).abs().max() <= 2e-6 * scale
    assert model(input_ids=ids, use_cache=False).logits.shape == (3, LENGTH, VOCAB)  # and the head is back


def test_z_is_the_square_of_the_log_normaliser():
    import torch

    from recipe_plugins.training.losses import summed_z

    logits = torch.zeros(1, 3, 7)
    labels = torch.tensor([[5, 2, -100]])  # one of the two that follow has a label
    assert summed_z(logits, labels) == pytest.approx(np.log(7) ** 2)


def test_a_head_with_more_to_it_is_taken_whole():
    import torch

    from recipe_plugins.training.trainer import chunked_head

    model = llama()
    model.register_forward_hook(lambda module, inputs, output: setattr(output, "logits", output.logits * 0.5))
    assert chunked_head(model, torch.float32) is None
    biased = llama(tie_word_embeddings=False)
    biased.lm_head = torch.nn.Linear(32, VOCAB)
    assert chunked_head(biased, torch.float32) is None


class Rows:
    def __len__(self):
        return 20

    def __getitem__(self, number):
        ids = np.random.default_rng(number).integers(0, VOCAB, LENGTH)
        return {"input_ids": ids, "labels": ids, "position_ids": np.arange(LENGTH)}


def trained(folder, net=None, **changes):
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    import recipe_plugins.training as training

    execution = {"device": "cpu", "threads": 1, "micro_batch": 2}
    settings = {"budget": {"steps": 4}, "batch_size": 4, "sequence_length": LENGTH, "execution": execution}
    config = training.TrainingConfig.model_validate({**settings, **changes})
    context = LocalContext(folder)
    words = Tokenizer(models.WordLevel({str(n): n for n in range(VOCAB)}, unk_token="0"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words)
    training.train(context, config, net or llama(), Rows(), tokenizer, steps=4, optimizer=config.optimizer, digests={})
    return [(row["loss"], row["grad_norm"]) for row in context.rows]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_loop_takes_either(tmp_path, precision):
    plain = trained(tmp_path / "plain", precision=precision, z_loss=1e-3)
    chunked = trained(tmp_path / "chunked", precision=precision, z_loss=1e-3, chunked_loss="on")
    np.testing.assert_allclose(chunked, plain, rtol=1e-6 if precision == "fp32" else 5e-3)
    without = trained(tmp_path / "without", precision=precision)
    assert without[0][0] == plain[0][0]  # what is told is the cross-entropy
    assert without[0][1] != plain[0][1]


def test_chunks_are_taken_where_a_pass_has_many_logits_unless_the_recipe_says():
    from types import SimpleNamespace

    from recipe_plugins.training.run import _chunked

    def taken(rows: int, vocabulary: int, **changes) -> bool:
        text = SimpleNamespace(vocab_size=vocabulary)
        model = SimpleNamespace(config=SimpleNamespace(get_text_config=lambda: text))
        given = {"budget": {"steps": 1}, "batch_size": 16, "sequence_length": 2048, **changes}
        return _chunked(TrainingConfig.model_validate(given), rows, model)

    assert taken(16, 32_768), "a micro-batch of pretrain-125m: 4 GiB of logits in fp32"
    assert not taken(16, 2_048), "256 MiB, which the plain loss is faster at"
    assert not taken(16, 32_768, chunked_loss="off")
    assert taken(1, 256, chunked_loss="on")


def test_what_cannot_be_chunked_is_refused_only_if_it_was_asked_for(tmp_path):
    import torch

    biased = llama(tie_word_embeddings=False)
    biased.lm_head = torch.nn.Linear(32, VOCAB)
    with pytest.raises(RecipeError, match="its logits are not a plain product"):
        trained(tmp_path, biased, chunked_loss="on")
