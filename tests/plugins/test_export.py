"""The stage `export`: the file is the model, for another reader too."""

from __future__ import annotations

import json
import shutil

import pytest

from recipe_runner import Model, RecipeError
from recipe_runner.testing import make, slot

pytestmark = pytest.mark.slow
pytest.importorskip("gguf")

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
# transformers reads no other head size of qwen3 than 128, and neither sizes of gpt2
CASES = {
    "llama": {"use": "llama", **SMALL, "num_key_value_heads": 2, "tie_word_embeddings": False},
    "llama, tied": {"use": "llama", **SMALL},
    "qwen3": {"use": "qwen3", **SMALL, "head_dim": 128, "num_key_value_heads": 2},
    "gpt2": {"use": "gpt2", **SMALL, "intermediate_size": 128, "max_position_embeddings": 1024},
}


@pytest.fixture(scope="session")
def models(tiny_tokeniser, tmp_path_factory):
    """A random model of each architecture, with a tokeniser whose turn tokens it knows."""
    import torch
    from transformers import AutoTokenizer

    from recipe_plugins.training.loading import save_model, set_special_tokens

    tokenizer = AutoTokenizer.from_pretrained(tiny_tokeniser.payload)
    found = {}
    for name, case in CASES.items():
        torch.manual_seed(0)
        model = slot("architecture", case).build().build(len(tokenizer))
        for parameter in model.parameters():  # norms and biases too, so that none can be left out
            parameter.data += 0.1 * torch.randn_like(parameter)
        set_special_tokens(model, tokenizer)
        folder = tmp_path_factory.mktemp("model")
        save_model(model, tokenizer, folder)
        found[name] = Model(folder, name, {})
    return found


def export(model, folder, **settings):
    return make("export", {"model": "model", "dtype": "f32", **settings}, folder, inputs={"model": model})


def logits(model):
    import torch

    with torch.no_grad():
        return model.eval()(input_ids=torch.arange(4, 44)[None], use_cache=False).logits


@pytest.mark.parametrize("name", CASES)
def test_another_reader_finds_the_same_model(models, name, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM

    exported = export(models[name], tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(exported.payload, gguf_file="model.gguf", dtype=torch.float32)
    ours = AutoModelForCausalLM.from_pretrained(models[name].payload, dtype=torch.float32)
    assert torch.allclose(logits(theirs), logits(ours), atol=1e-5)
    assert exported.facts["export"]["read_back"] == "equal"


def test_another_reader_finds_the_same_tokeniser(models, tmp_path):
    from transformers import AutoTokenizer

    exported = export(models["llama"], tmp_path)
    theirs = AutoTokenizer.from_pretrained(exported.payload, gguf_file="model.gguf")
    ours = AutoTokenizer.from_pretrained(models["llama"].payload)
    text = "def split(text):\n    return text.split(', ')  # it's 12345 ünï"
    assert theirs(text, add_special_tokens=False)["input_ids"] == ours(text, add_special_tokens=False)["input_ids"]
    assert theirs.eos_token_id == ours.eos_token_id
    assert theirs.chat_template == ours.chat_template


def test_equal_models_give_equal_bytes_and_16_bits_are_half(models, tmp_path):
    files = [export(models["llama"], tmp_path / name, dtype=name[:3]) for name in ("f32", "f32-again", "f16")]
    sizes = [(part.payload / "model.gguf").stat().st_size for part in files]
    assert files[0].digest == files[1].digest != files[2].digest
    assert sizes[2] < 0.75 * sizes[0]
    export(models["gpt2"], tmp_path / "bf16", dtype="bf16")


def test_a_file_that_differs_is_noticed(models, tmp_path, monkeypatch):
    from recipe_plugins.export import stage

    right = stage._write

    def wrong(gguf, path, family, words, tensors):
        right(gguf, path, family, words, tensors)
        data = bytearray(path.read_bytes())
        data[-100] ^= 1
        path.write_bytes(data)

    monkeypatch.setattr(stage, "_write", wrong)
    with pytest.raises(RecipeError, match="was not written as it is"):
        export(models["llama"], tmp_path)


def test_what_gguf_cannot_say_is_refused(models, tmp_path):
    def changed(name, file, **keys):
        folder = tmp_path / name
        shutil.copytree(models["llama"].payload, folder)
        path = folder / file
        path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))
        return Model(folder, name, {})

    scaled = changed("a", "config.json", rope_parameters={"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0})
    with pytest.raises(RecipeError, match="'yarn' cannot be exported"):
        export(scaled, tmp_path / "x")
    with pytest.raises(RecipeError, match="a model of type 'mamba'"):
        export(changed("b", "config.json", model_type="mamba"), tmp_path / "y")
    with pytest.raises(RecipeError, match="a rule that GGUF has no name for"):
        export(changed("c", "tokenizer.json", pre_tokenizer={"type": "Whitespace"}), tmp_path / "z")
