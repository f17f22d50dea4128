"""Several models into one: the methods give what their papers define, whatever the size of a block."""

from __future__ import annotations

import json
import shutil

import pytest

from recipe_runner import Artifact, Model, RecipeError
from recipe_runner.testing import make, slot

pytestmark = pytest.mark.slow

BASE = [[1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 0.0, 0.0]]
ONE = [[2.0, 2.0, 1.0, 4.5], [0.0, 0.25, 0.0, -3.0]]
TWO = [[0.5, 3.0, 2.0, 4.25], [1.0, 0.0, 0.5, -1.0]]
# task vectors: [1, 0, -2, .5, 0, .25, 0, -3] and [-.5, 1, -1, .25, 1, 0, .5, -1]


def saved(folder, rows, **config):
    """A folder like that of a model, with one matrix, a scalar and a vector in 16 bits."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    weight = torch.tensor(rows)
    tensors = {"layer.weight": weight, "scalar": weight[0, 0].clone(), "half": weight[0].to(torch.bfloat16)}
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"num_hidden_layers": 1, **config}))
    return folder


@pytest.fixture
def folders(tmp_path):
    return {name: saved(tmp_path / name, rows) for name, rows in (("base", BASE), ("one", ONE), ("two", TWO))}


def merged(folders, method, models, *, block=2**26, seed=0, **settings):
    """The tensors that a method makes of the folders, without the stage around it."""
    from contextlib import ExitStack

    import torch

    from recipe_plugins.merge.config import MergedModel
    from recipe_plugins.merge.parts import Part, Parts, Weights, spans
    from recipe_runner.identity import make_seed

    use = slot("merge-method", {"use": method, **settings})
    options = {name: MergedModel(model=name, **given) for name, given in models.items()}
    use.config.check(options)
    with ExitStack() as stack:
        parts = Parts(
            {name: Part(Weights(folders[name], stack), given) for name, given in options.items()},
            Weights(folders["base"], stack) if use.config.needs_base else None,
            lambda *words: make_seed(seed, *words),
        )
        built = use.build()
        found = {}
        origins = built.tensors(parts)
        built.prepare(parts)
        for name, origin in origins.items():
            kind = parts.models[origin.model].weights.kinds[origin.tensor]
            found[name] = torch.cat([built.rows(parts, name, a, b) for a, b in spans(kind, block)])
        return found


def weight(folders, method, models, **settings):
    return merged(folders, method, models, **settings)["layer.weight"].tolist()


def test_linear_is_the_weighted_mean(folders):
    assert weight(folders, "linear", {"one": {}, "two": {}}) == [[1.25, 2.5, 1.5, 4.375], [0.5, 0.125, 0.25, -2.0]]
    thrice = weight(folders, "linear", {"one": {"weight": 3}, "two": {"weight": 1}})
    assert thrice[0] == [1.625, 2.25, 1.25, 4.4375]
    as_they_are = weight(folders, "linear", {"one": {"weight": 2}, "two": {"weight": 1}}, normalise=False)
    assert as_they_are[0] == [4.5, 7.0, 4.0, 13.25]
    assert weight(folders, "linear", {"one": {"weight": 0.3}}) == ONE
    with pytest.raises(RecipeError, match="sum to 0"):
        weight(folders, "linear", {"one": {"weight": 1}, "two": {"weight": -1}})


def test_slerp_begins_and_ends_at_the_models_and_keeps_their_length(tmp_path):
    import torch

    right = {
        "one": saved(tmp_path / "one", [[3.0, 0.0], [0.0, 0.0]]),
        "two": saved(tmp_path / "two", [[0, 3.0], [0, 0]]),
    }
    both = {"one": {}, "two": {}}
    assert weight(right, "slerp", both, t=0) == [[3.0, 0.0], [0.0, 0.0]]
    assert weight(right, "slerp", both, t=1) == [[0.0, 3.0], [0.0, 0.0]]
    middle = merged(right, "slerp", both, t=0.5)["layer.weight"]
    assert torch.allclose(middle, torch.tensor([[3.0, 3.0], [0.0, 0.0]]) / 2**0.5)
    third = merged(right, "slerp", both, t=1 / 3)["layer.weight"]
    assert torch.allclose(third[0], torch.tensor([3 * 3**0.5 / 2, 1.5]))
    by_name = merged(right, "slerp", both, t={"layer.*": 0, "*": 1})
    assert by_name["layer.weight"].tolist() == [[3.0, 0.0], [0.0, 0.0]]
    assert by_name["half"].tolist() == [0.0, 3.0]


def test_slerp_is_linear_between_parallel_tensors(folders):
    import torch

    twice = {"one": folders["one"], "two": folders["one"]}
    found = merged(twice, "slerp", {"one": {}, "two": {}}, t=0.3)["layer.weight"]
    assert torch.allclose(found, torch.tensor(ONE))


def test_task_arithmetic_adds_task_vectors(folders):
    assert weight(folders, "task-arithmetic", {"one": {}}) == ONE
    assert weight(folders, "task-arithmetic", {"one": {}, "two": {}}) == [[1.5, 3.0, 0.0, 4.75], [1.0, 0.25, 0.5, -4.0]]
    assert weight(folders, "task-arithmetic", {"one": {}}, scale=0) == BASE
    forgotten = weight(folders, "task-arithmetic", {"one": {"weight": -1}})
    assert forgotten == [[0.0, 2.0, 5.0, 3.5], [0.0, -0.25, 0.0, 3.0]]


def test_ties_of_one_model_is_its_trimmed_task_vector(folders):
    # Of 13 changes (8, a scalar, 4 in 16 bits) the 4 of largest magnitude: -3, -2 and -2, and the three of size 1.
    assert weight(folders, "ties", {"one": {"density": 4 / 13}}) == [[2.0, 2.0, 1.0, 4.0], [0.0, 0.0, 0.0, -3.0]]
    assert weight(folders, "ties", {"one": {"density": 1}}) == ONE
    only_largest = weight(folders, "ties", {"one": {"density": {"layer.*": 1 / 8, "*": 1}}})
    assert only_largest == [[1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 0.0, -3.0]]


def test_ties_elects_a_sign_and_takes_the_mean_of_those_that_have_it(folders):
    found = weight(folders, "ties", {"one": {"density": 1}, "two": {"density": 1}})
    # 1 and -.5: plus, 1 alone; 0 and 1: 1; -2 and -1: -1.5; .5 and .25: .375; 0 and 1; .25; .5; -3 and -1: -2
    assert found == [[2.0, 3.0, 1.5, 4.375], [1.0, 0.25, 0.5, -2.0]]
    heavier = weight(folders, "ties", {"one": {"density": 1}, "two": {"density": 1, "weight": 3}})
    assert heavier[0][0] == 0.5, "three times -.5 outweighs 1"
    assert heavier[0][2] == 3 + (-2 - 3) / 4


def test_dare_drops_and_rescales_and_draws_by_place(folders):
    import torch

    from recipe_plugins.merge.methods import uniform

    both = {"one": {"density": 0.5}, "two": {"density": 0.5}}
    found = torch.tensor(weight(folders, "dare-linear", {"one": both["one"]})) - torch.tensor(BASE)
    doubled = 2 * (torch.tensor(ONE) - torch.tensor(BASE))
    assert ((found == doubled) | (found == 0)).all()
    assert 0 < int((found != 0).sum()) < 5
    assert weight(folders, "dare-linear", both) == weight(folders, "dare-linear", both)
    assert weight(folders, "dare-linear", both) != weight(folders, "dare-linear", both, seed=1)
    turned = weight(folders, "dare-linear", dict(reversed(both.items())))
    assert torch.allclose(torch.tensor(turned), torch.tensor(weight(folders, "dare-linear", both)))
    assert weight(folders, "dare-ties", {"one": {"density": 1}}) == ONE
    many = uniform(7, 0, 100_000)
    assert torch.equal(torch.cat([uniform(7, 0, 13), uniform(7, 13, 6), uniform(7, 19, 81)]), many[:100])
    assert abs(float((many < 0.3).double().mean()) - 0.3) < 0.01


def test_breadcrumbs_leaves_out_the_largest_and_the_smallest_of_each_tensor(folders):
    # of 8 changes the largest (-3) goes, the next two (-2, 1) stay, in each tensor by itself
    found = weight(folders, "breadcrumbs", {"one": {"density": 2 / 8}}, gamma=1 / 8)
    assert found == [[2.0, 2.0, 1.0, 4.0], [0.0, 0.0, 0.0, 0.0]]
    assert weight(folders, "breadcrumbs", {"one": {"density": 1}}, gamma=0) == ONE


def test_a_rank_s_magnitude_is_exact():
    import torch

    from recipe_plugins.merge.cuts import magnitude_at

    values = torch.randn(5000, generator=torch.Generator().manual_seed(1)).exp() * 1e-3
    values[::7] *= -1
    ranked = values.abs().sort(descending=True).values
    for rank in (1, 2, 77, 2500, 5000):
        assert magnitude_at(lambda: values.split(333), rank) == float(ranked[rank - 1])


METHODS = {
    "linear": ({}, {"weight": {"layer.*": 0.3, "*": 0.7}}),
    "slerp": ({"t": 0.3}, {}),
    "task-arithmetic": ({"scale": 0.7}, {"weight": 0.3}),
    "ties": ({"scale": 0.7}, {"density": 0.3}),
    "dare-linear": ({}, {"density": 0.3}),
    "dare-ties": ({}, {"density": {"layer.*": 0.3, "*": 0.7}}),
    "breadcrumbs": ({"gamma": 0.05}, {"density": 0.5}),
}


BY_TENSOR = [
    ("linear", "weight", {}, {}),
    ("task-arithmetic", "weight", {"scale": 0.7}, {}),
    ("ties", "weight", {}, {"density": 0.3}),
    ("dare-linear", "weight", {}, {"density": 0.5}),
    ("dare-linear", "density", {}, {"weight": 0.7}),
    ("dare-ties", "weight", {}, {"density": 0.5}),
    ("dare-ties", "density", {}, {"weight": 0.7}),
    ("breadcrumbs", "weight", {"gamma": 0.1}, {"density": 0.5}),
    ("breadcrumbs", "density", {"gamma": 0.1}, {"weight": 0.7}),
]


@pytest.mark.parametrize(("method", "what", "settings", "given"), BY_TENSOR)
def test_weights_and_densities_go_by_model_and_by_tensor(tmp_path, method, what, settings, given):
    """Each tensor is what it would be if its model's number for it were the number for all."""
    import torch

    draw = torch.Generator().manual_seed(4)
    folders = {n: saved(tmp_path / n, torch.randn(9, 11, generator=draw).tolist()) for n in ("base", "one", "two")}

    def made(one, two):
        return merged(folders, method, {"one": {**given, what: one}, "two": {**given, what: two}}, **settings)

    found = made({"layer.*": 0.2, "*": 0.8}, {"lay*": 0.6, "half": 0.3, "*": 0.5})
    alike = {"layer.weight": made(0.2, 0.6), "half": made(0.8, 0.3), "scalar": made(0.8, 0.5)}
    assert all(torch.equal(found[name], whole[name]) for name, whole in alike.items())
    assert not torch.equal(found["layer.weight"], alike["half"]["layer.weight"])


def test_the_densities_of_ties_are_shares_of_what_a_pattern_fits(tmp_path):
    import torch

    draw = torch.Generator().manual_seed(5)
    folders = {n: saved(tmp_path / n, torch.randn(9, 11, generator=draw).tolist()) for n in ("base", "one")}
    density = {"layer.*": 0.25, "half": 3 / 11, "*": 1}
    found = merged(folders, "ties", {"one": {"density": density}})
    base, one = (merged(folders, "linear", {name: {}}) for name in folders)
    for name, kept in (("layer.weight", 25), ("half", 3), ("scalar", 1)):
        changes = (one[name] - base[name]).abs().flatten()
        stay = changes >= changes.sort(descending=True).values[kept - 1]
        assert torch.equal((found[name] != base[name]).flatten(), stay)


@pytest.mark.parametrize("method", METHODS)
def test_the_size_of_a_block_changes_no_bit(tmp_path, method):
    import torch

    draw = torch.Generator().manual_seed(3)
    folders = {n: saved(tmp_path / n, torch.randn(37, 19, generator=draw).tolist()) for n in ("base", "one", "two")}
    settings, given = METHODS[method]
    whole = merged(folders, method, {"one": given, "two": given}, **settings)
    for block in (1, 4 * 19 * 5, 4 * 19 * 16):
        parts = merged(folders, method, {"one": given, "two": given}, block=block, **settings)
        assert all(torch.equal(whole[name], parts[name]) for name in whole)


@pytest.mark.parametrize(
    ("method", "models", "settings", "said"),
    [
        ("slerp", {"one": {}}, {"t": 0.5}, "models has 1"),
        ("slerp", {"one": {"weight": 2}, "two": {}}, {"t": 0.5}, "takes no weight"),
        ("linear", {"one": {"density": 0.5}}, {}, "takes no density"),
        ("ties", {"one": {}}, {}, "density of one, .* is missing"),
        ("breadcrumbs", {"one": {"density": 0.9}}, {"gamma": 0.2}, "more than 1"),
        ("passthrough", {"one": {}}, {"slices": [{"model": "on", "layers": [0, 1]}], "rest": "one"}, "no model is"),
        (
            "passthrough",
            {"one": {}, "two": {}},
            {"slices": [{"model": "one", "layers": [0, 1]}], "rest": "one"},
            "noth",
        ),
        ("linear", {"one": {"weight": {"layr.*": 1, "*": 2}}}, {}, "no tensor takes the pattern 'layr"),
        ("linear", {"one": {"weight": {"layer.*": 1}}}, {}, "no pattern of layer"),
    ],
)
def test_what_a_method_cannot_take_is_said(folders, method, models, settings, said):
    with pytest.raises((ValueError, RecipeError), match=said):
        merged(folders, method, models, **settings)


def test_other_shapes_and_names_are_refused(folders, tmp_path):
    folders["two"] = saved(tmp_path / "wide", [[1.0, 2.0, 3.0]])
    with pytest.raises(RecipeError, match=r"has the shape \[3\] in two and \[4\] in one"):
        merged(folders, "linear", {"one": {}, "two": {}})


# ── the stage ────────────────────────────────────────────────────────────────────────────────────────────────────

CPU = {"execution": {"device": "cpu", "threads": 1}}


def stage(folder, inputs, models, method, **settings):
    config = {"models": models, "method": method, **CPU, **settings}
    return make("merge", config, folder, inputs=inputs)


def tensors(model):
    from safetensors.torch import load_file

    found = {}
    for path in sorted(model.payload.glob("*.safetensors")):
        found |= load_file(path)
    return found


def test_a_merge_of_models_is_a_whole_chat_model(chat, tiny_base, questions, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    inputs = {"chat": chat, "base": tiny_base, "questions": questions}
    method = {"use": "ties", "scale": 1.0}
    models = {"chat": {"model": "chat", "density": 1.0}}
    found = stage(tmp_path / "a", inputs, models, method, model="base", corpus="questions")
    theirs, ours = tensors(chat), tensors(found)
    assert theirs.keys() == ours.keys(), "tied stays tied"
    assert all(torch.allclose(theirs[name], ours[name], atol=1e-6) for name in theirs)
    model = AutoModelForCausalLM.from_pretrained(found.payload)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    tokenizer = AutoTokenizer.from_pretrained(found.payload)
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(chat.payload).chat_template
    assert (
        model.generation_config.eos_token_id
        == AutoModelForCausalLM.from_pretrained(chat.payload).generation_config.eos_token_id
    )
    facts = found.facts["merge"]
    assert facts["loss"] == pytest.approx(facts["losses"]["chat"], abs=1e-4)
    assert facts["losses"]["chat"] < facts["losses"]["the base"]
    assert [row[0] for row in found.facts["tables"][0]["rows"]] == ["merged", "of: chat", "of: the base"]
    assert found.digest == stage(tmp_path / "b", inputs, models, method, model="base", block=4096).digest
    assert chat.digest[:12] in (found.path / "README.md").read_text()


def test_without_memory_for_the_result_its_weights_are_read_and_it_is_said(chat, tiny_base, tmp_path, monkeypatch):
    import shutil

    import torch
    from safetensors.torch import save_file

    from recipe_plugins.merge import models

    monkeypatch.setattr(models, "load_model", None)  # which would fail
    inputs = {"chat": chat, "base": tiny_base}
    found = stage(tmp_path / "a", inputs, {"chat": "chat", "base": "base"}, "linear", memory="1KB")
    assert "0.000001 GB are allowed" in found.facts["merge"]["not_measured"].replace("1e-06", "0.000001")
    assert found.manifest["warnings"] == [
        f"the merged model was not tried: {found.facts['merge']['not_measured']}; its weights are numbers, all of them"
    ]
    broken = tensors(chat)
    broken["model.norm.weight"] = broken["model.norm.weight"] * torch.nan
    shutil.copytree(chat.payload, tmp_path / "broken")
    save_file(broken, tmp_path / "broken" / "model.safetensors")
    inputs["chat"] = Artifact(tmp_path / "broken", "", {})
    with pytest.raises(RecipeError, match=r"model\.norm\.weight has weights that are no numbers"):
        stage(tmp_path / "b", inputs, {"chat": "chat", "base": "base"}, "linear", gate="weights")


def test_models_that_store_a_tied_head_and_some_that_do_not_are_merged_alike(chat, tiny_base, tmp_path):
    """Some of the hub's tied models store it; what draws by tensor must not draw twice for one."""
    from safetensors.torch import load_file, save_file

    def both(model, name):
        folder = tmp_path / name
        shutil.copytree(model.payload, folder)
        weights = load_file(folder / "model.safetensors")
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
        save_file(weights, folder / "model.safetensors")
        return Model(folder, model.digest, {})

    models, method = {"chat": {"model": "chat", "density": 0.5}}, {"use": "dare-linear"}
    usual = stage(tmp_path / "a", {"chat": chat, "base": tiny_base}, models, method, model="base")
    assert "lm_head.weight" not in tensors(usual)
    for name, given in {
        "b": {"chat": chat, "base": both(tiny_base, "base")},
        "c": {"chat": both(chat, "first"), "base": both(tiny_base, "second")},
    }.items():
        found = stage(tmp_path / name, given, models, method, model="base")
        assert all((tensor == tensors(usual)[key]).all() for key, tensor in tensors(found).items())
        assert tensors(found).keys() == tensors(usual).keys()


def test_linear_of_one_model_is_that_model(chat, tmp_path):
    import torch

    found = stage(tmp_path, {"chat": chat}, {"chat": "chat"}, "linear")
    assert all(torch.equal(tensor, tensors(found)[name]) for name, tensor in tensors(chat).items())


def test_passthrough_stacks_layers(chat, tiny_base, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM

    slices = [{"model": "chat", "layers": [0, 2]}, {"model": "base", "layers": [1, 2]}]
    method = {"use": "passthrough", "slices": slices, "rest": "chat"}
    found = stage(tmp_path, {"chat": chat, "base": tiny_base}, {"chat": "chat", "base": "base"}, method)
    model = AutoModelForCausalLM.from_pretrained(found.payload)
    assert model.config.num_hidden_layers == len(model.model.layers) == 3
    theirs = tensors(tiny_base)["model.layers.1.mlp.up_proj.weight"]
    assert torch.equal(model.model.layers[2].mlp.up_proj.weight, theirs)
    slices[1]["layers"] = [1, 3]
    with pytest.raises(RecipeError, match="base has no layer 2: it has 2"):
        stage(tmp_path / "b", {"chat": chat, "base": tiny_base}, {"chat": "chat", "base": "base"}, method)


@pytest.mark.parametrize(("key", "value"), [("num_attention_heads", 2), ("rms_norm_eps", 0.1)])
def test_models_that_compute_something_else_with_such_weights_are_refused(chat, tiny_base, tmp_path, key, value):
    import shutil

    shutil.copytree(tiny_base.payload, tmp_path / "other")
    path = tmp_path / "other" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    other = Artifact(tmp_path / "other", "", {})
    with pytest.raises(RecipeError, match=f"other and chat differ in their {key}"):
        stage(tmp_path / "merged", {"chat": chat, "other": other}, {"chat": "chat", "other": "other"}, "linear")


def test_a_base_that_an_older_library_wrote_down_is_the_same_model(chat, tiny_base, tmp_path):
    import shutil

    old = tmp_path / "old"
    shutil.copytree(tiny_base.payload, old)
    keys = json.loads((old / "config.json").read_text())
    del keys["head_dim"]
    keys |= {"rope_theta": keys.pop("rope_parameters")["rope_theta"], "rope_scaling": None}
    (old / "config.json").write_text(json.dumps(keys))
    tokenizer = json.loads((old / "tokenizer.json").read_text())
    del tokenizer["model"]["ignore_merges"]
    tokenizer["model"]["merges"] = [" ".join(pair) for pair in tokenizer["model"]["merges"]]
    (old / "tokenizer.json").write_text(json.dumps(tokenizer))
    models, method = {"chat": {"model": "chat", "density": 0.2}}, {"use": "ties"}
    found = [
        stage(tmp_path / name, {"chat": chat, "base": base}, models, method, model="base")
        for name, base in (("new form", tiny_base), ("old form", Artifact(old, "", {})))
    ]
    assert found[0].digest == found[1].digest


def test_models_of_other_vocabularies_are_refused(chat, tiny_base, tmp_path):
    import shutil

    shutil.copytree(tiny_base.payload, tmp_path / "other")
    path = tmp_path / "other" / "tokenizer.json"
    keys = json.loads(path.read_text())
    first = next(iter(keys["model"]["vocab"]))
    keys["model"]["vocab"][first + "x"] = keys["model"]["vocab"].pop(first)
    path.write_text(json.dumps(keys))
    other = Artifact(tmp_path / "other", "", {})
    with pytest.raises(RecipeError, match="other and chat differ in their tokeniser"):
        stage(tmp_path / "a", {"chat": chat, "other": other}, {"chat": "chat", "other": "other"}, "linear")


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({}, "exactly one of adapter"),
        ({"adapter": "a", "method": "linear"}, "exactly one of adapter"),
        ({"adapter": "a"}, "model, which the adapter was trained on, is missing"),
        ({"adapter": "a", "model": "m", "models": {"b": "b"}}, "merged by a method"),
        ({"method": "linear"}, "models, which the method merges"),
        ({"method": "linear", "model": "m", "models": {"b": "b"}}, "it takes no base"),
        ({"method": "task-arithmetic", "models": {"b": "b"}}, "task vectors start from, is missing"),
    ],
)
def test_a_merge_is_of_an_adapter_or_of_models(config, said):
    with pytest.raises(ValueError, match=said):
        slot("stage", {"use": "merge", **config})


def test_large_models_are_written_in_shards_that_load(chat, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM

    from recipe_plugins.merge.parts import Kind
    from recipe_plugins.merge.writing import write

    found = tensors(chat)
    names = {torch.float32: "F32"}
    kinds = {name: Kind(names[tensor.dtype], tuple(tensor.shape)) for name, tensor in found.items()}
    write(tmp_path, kinds, lambda name: found[name].split(3), shard=20_000)
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    (tmp_path / "config.json").write_text((chat.payload / "config.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    state = model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in found.items())


@pytest.mark.parametrize(("row", "same"), [(None, True), (0, False), (4_999, False)])
def test_a_head_is_a_copy_of_its_embedding_only_where_every_row_is(tmp_path, row, same):
    """Weights that differ are loaded as two, whatever the config says: both are kept."""
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    from recipe_plugins.merge.into_base import _one_table
    from recipe_plugins.training.weights import tied_copy

    table = torch.arange(10_000.0).view(5_000, 2)
    head = table.clone()
    if row is not None:
        head[row] += 1
    tables = {"model.embed_tokens.weight": table, "lm_head.weight": head}
    save_file(tables, tmp_path / "model.safetensors")
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        found = tied_copy({name: file.get_slice(name) for name in tables}, {"tie_word_embeddings": True})
    assert found == ({"lm_head.weight"} if same else set())
    assert _one_table(tmp_path, frozenset(tables)) == same
