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
# transformers reads no other head size of qwen3 than 128, and neither sizes of gpt2 nor numbers of experts
EXPERTS = {"num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768}
TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 32}
CASES = {
    "llama": {"use": "llama", **SMALL, "num_key_value_heads": 2, "tie_word_embeddings": False},
    "llama, tied": {"use": "llama", **SMALL},
    "qwen3": {"use": "qwen3", **SMALL, "head_dim": 128, "num_key_value_heads": 2},
    "qwen3-moe": {"use": "qwen3-moe", **TINY, **EXPERTS},
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


def test_experts_are_the_same_one_by_one_or_stacked_and_none_may_be_missing(models, tmp_path):
    """As the hub has them, and as they are in memory."""
    import torch
    from safetensors.torch import load_file, save_file

    model = models["qwen3-moe"]
    tensors = load_file(model.payload / "model.safetensors")
    place = "model.layers.0.mlp.experts"
    assert f"{place}.127.up_proj.weight" in tensors

    def stack(part):
        return torch.stack([tensors[f"{place}.{number}.{part}_proj.weight"] for number in range(128)])

    def saved(name, weights, **keys):
        folder = tmp_path / name
        shutil.copytree(model.payload, folder)
        save_file(weights, folder / "model.safetensors")
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))
        return Model(folder, name, {})

    rest = {name: tensor for name, tensor in tensors.items() if ".experts." not in name}
    both = torch.cat([stack("gate"), stack("up")], dim=1)
    stacked = saved("stacked", {**rest, f"{place}.gate_up_proj": both, f"{place}.down_proj": stack("down")})
    one, other = (export(part, tmp_path / part.digest, dtype="q8_0") for part in (model, stacked))
    assert one.digest == other.digest
    assert one.facts["export"]["stored"] == {"f32": 6, "f16": 6, "q8_0": 2}  # rows of 16 are no blocks of 32
    short = saved("short", {name: tensor for name, tensor in tensors.items() if ".experts.7." not in name})
    with pytest.raises(RecipeError, match=r"has 127 tensors for .*, not one for each of 128"):
        export(short, tmp_path / "x")
    with pytest.raises(RecipeError, match="norm_topk_prob: False cannot be exported"):
        export(saved("other", tensors, norm_topk_prob=False), tmp_path / "y")


def test_only_the_files_of_the_index_are_the_model(models, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "model"
    shutil.copytree(models["llama"].payload, folder)
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in shards.items():
        save_file({name: tensors[name] for name in part}, folder / file)
    weight_map = {name: file for file, part in shards.items() for name in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    save_file({name: 0 * tensor for name, tensor in tensors.items()}, folder / "model.safetensors")
    usual = export(models["llama"], tmp_path / "usual")
    assert export(Model(folder, "other", {}), tmp_path / "sharded").digest == usual.digest
    (folder / "b.safetensors").unlink()
    with pytest.raises(RecipeError, match=r"has no b\.safetensors"):
        export(Model(folder, "other", {}), tmp_path / "torn")


def test_a_tied_head_that_is_stored_too_is_written_once(models, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "model"
    shutil.copytree(models["llama, tied"].payload, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, folder / "model.safetensors")
    usual = export(models["llama, tied"], tmp_path / "usual")
    assert export(Model(folder, "both", {}), tmp_path / "both").digest == usual.digest
    tensors["lm_head.weight"][-1, -1] += 1  # two weights, whatever the config says: so they are loaded
    save_file(tensors, folder / "model.safetensors")
    other = export(Model(folder, "two", {}), tmp_path / "two")
    assert other.facts["export"]["tensors"] == usual.facts["export"]["tensors"] + 1


def test_what_old_versions_of_transformers_saved_beside_weights_is_left_out(models, tmp_path):
    """The hub's gpt2 has masks among its weights, and names without `transformer.`."""
    import torch
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "model"
    shutil.copytree(models["gpt2"].payload, folder)
    tensors = load_file(folder / "model.safetensors")
    old = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    old |= {"h.0.attn.bias": torch.ones(1, 1, 4, 4), "h.1.attn.masked_bias": torch.tensor(-1e4)}
    save_file(old, folder / "model.safetensors")
    usual = export(models["gpt2"], tmp_path / "usual")
    assert export(Model(folder, "old", {}), tmp_path / "old").digest == usual.digest


def test_the_file_says_whether_the_tokeniser_begins_texts_itself(models, tmp_path):
    import gguf

    def begins(model, name):
        reader = gguf.GGUFReader(export(model, tmp_path / name).payload / "model.gguf")
        return [reader.get_field(f"tokenizer.ggml.add_{end}_token").contents() for end in ("bos", "eos")]

    assert begins(models["llama"], "plain") == [False, False]
    folder = tmp_path / "model"
    shutil.copytree(models["llama"].payload, folder)
    keys = json.loads((folder / "tokenizer.json").read_text())
    first = {"id": "<s>", "ids": [0], "tokens": [keys["added_tokens"][0]["content"]]}
    single = [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    keys["post_processor"] = {
        "type": "TemplateProcessing", "single": single, "pair": single, "special_tokens": {"<s>": first},
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(keys))
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "bos_token": keys["added_tokens"][0]["content"]}))
    assert begins(Model(folder, "begins", {}), "begins") == [True, False]


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


@pytest.mark.parametrize(
    ("dtype", "loses"), [("q8_0", 0.007), ("q5_1", 0.045), ("q5_0", 0.05), ("q4_1", 0.09), ("q4_0", 0.1)]
)
def test_another_reader_finds_quantised_weights_as_near_as_it_is_said(models, dtype, loses, tmp_path):
    """transformers puts every tensor where it belongs, and its difference to the model is the one that was measured."""
    import torch
    from transformers import AutoModelForCausalLM

    exported = export(models["llama"], tmp_path, dtype=dtype)
    facts = exported.facts["export"]
    theirs = AutoModelForCausalLM.from_pretrained(exported.payload, gguf_file="model.gguf", dtype=torch.float32)
    ours = AutoModelForCausalLM.from_pretrained(models["llama"].payload, dtype=torch.float32)
    there = theirs.state_dict()
    far, size = torch.zeros(2, dtype=torch.float64)
    for name, tensor in ours.state_dict().items():
        off = (there[name] - tensor).norm() / tensor.norm()
        if tensor.ndim == 1 or "down_proj" in name:  # 48 columns are no blocks of 32
            assert off < 1e-3
            continue
        assert 0 < off < (0.007 if "embed" in name or "lm_head" in name else loses)
        far, size = far + (there[name] - tensor).double().square().sum(), size + tensor.double().square().sum()
    assert facts["relative_error"] == pytest.approx(float((far / size).sqrt()), rel=1e-4)
    assert facts["stored"] == (
        {"f32": 5, "f16": 2, "q8_0": 14} if dtype == "q8_0" else {"f32": 5, "f16": 2, "q8_0": 2, dtype: 12}
    )
    assert exported.digest == export(models["llama"], tmp_path / "again", dtype=dtype).digest
    small = (exported.payload / "model.gguf").stat().st_size
    assert small < (export(models["llama"], tmp_path / "f16", dtype="f16").payload / "model.gguf").stat().st_size


def test_more_than_a_type_may_lose_is_noticed(models, tmp_path, monkeypatch):
    """Also where writing and reading back agree."""
    import gguf

    right = gguf.quants.quantize

    def worse(array, kind):
        return right(array + 0.6 * abs(array).max() / 127, kind)

    monkeypatch.setattr(gguf.quants, "quantize", worse)
    with pytest.raises(RecipeError, match="lost more than q8_0 may"):
        export(models["gpt2"], tmp_path, dtype="q8_0")


@pytest.mark.parametrize("kind", ["q8_0", "q5_1", "q5_0", "q4_1", "q4_0"])
def test_a_type_s_limit_is_reached_and_never_passed(kind):
    """Of all that blocks may be: small, one-sided, with one large weight, of zeros."""
    import gguf
    import torch

    from recipe_plugins.export.quantised import TYPES

    draw = torch.Generator().manual_seed(1)
    weights = torch.randn(400, 64, generator=draw) * torch.randn(400, 1, generator=draw).mul(4).exp() * 1e-3
    weights[::5] = weights[::5].abs()
    weights[1::5, ::32] *= 50
    weights[2::50] = 0
    weights[3::50] = -weights[3::50].abs()
    raw = gguf.GGMLQuantizationType[kind.upper()]
    read = torch.from_numpy(gguf.quants.dequantize(gguf.quants.quantize(weights.numpy(), raw), raw))
    share = (read - weights).abs().reshape(400, 2, 32) / TYPES[kind].limit(weights)
    assert 0.8 < float(share.max()) <= 1


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
    quantised = changed("q", "config.json", quantization_config={"quant_method": "fp8"})
    with pytest.raises(RecipeError, match=r"were saved quantised \(fp8\)"):
        export(quantised, tmp_path / "w")
    with pytest.raises(RecipeError, match="a model of type 'mamba'"):
        export(changed("b", "config.json", model_type="mamba"), tmp_path / "y")
    with pytest.raises(RecipeError, match="a rule that GGUF has no name for"):
        export(changed("c", "tokenizer.json", pre_tokenizer={"type": "Whitespace"}), tmp_path / "z")
