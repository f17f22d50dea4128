"""The JSON Schema of recipes: what it accepts is what `recipe check` accepts, and it points at what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from recipe_runner.layers import shipped
from recipe_runner.plugins import installed
from recipe_runner.schema import recipe_schema

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = sorted([*shipped().glob("*.yaml"), *ROOT.glob("examples/fork-a-recipe/*.yaml")])


@pytest.fixture(scope="module")
def builtin() -> jsonschema.Draft7Validator:
    """The schema of what is installed here."""
    schema = recipe_schema(installed().registry)
    jsonschema.Draft7Validator.check_schema(schema)
    return jsonschema.Draft7Validator(schema)


@pytest.fixture
def toy_schema(plugins) -> jsonschema.Draft7Validator:
    """The schema with the toy plugin."""
    return jsonschema.Draft7Validator(recipe_schema(plugins.registry))


def wrong(validator: jsonschema.Draft7Validator, text: str) -> list[str]:
    """The dotted paths at which a recipe is wrong."""
    return sorted({".".join(map(str, error.absolute_path)) for error in validator.iter_errors(yaml.safe_load(text))})


def test_the_command_prints_the_schema(recipe, plugins):
    said = recipe("schema")
    assert json.loads(said.out) == json.loads(json.dumps(recipe_schema(plugins.registry)))
    assert said.err == ""


def test_another_word_for_a_field_is_known_too(builtin):
    text = "stages: {{base: {{use: pretrain, architecture: {{use: llama, {word}: {value}}}}}}}"
    assert wrong(builtin, text.format(word="parameters", value="125M")) == []
    assert wrong(builtin, text.format(word="parameters", value="[1]"))
    assert wrong(builtin, text.format(word="parametres", value="125M"))


@pytest.mark.parametrize("file", SHIPPED, ids=lambda f: f.name)
def test_shipped_recipes_are_valid(builtin, file):
    assert wrong(builtin, file.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("file", SHIPPED, ids=lambda f: f.name)
def test_recipes_are_valid_with_every_default_written(builtin, file):
    from recipe_runner.recipe import load

    assert wrong(builtin, yaml.safe_dump(load(str(file)).resolved())) == []


ACCEPTED = """
schema: 1
extends: toy.yaml
vars: {n: 3}
execution: {threads: 2, launcher: local}
stages:
  data: {use: "recipe-toy:toy-corpus", text: "${vars.file}", repeat: "${vars.n}", before: base}
  base:
    use: toy-train
    steps: "${vars.n}"
    budget: 2M
    size: 5MB
    rule: {by: 3}
    rules:
      one: plus
      two: {use: times, by: 2, every: 3, after: one}
      three: null
    execution: {checkpoint_every: 5}
  tuned: {steps: 3}
  gone: null
"""


def test_one_layer_of_several_is_accepted(toy_schema):
    assert wrong(toy_schema, ACCEPTED) == []


@pytest.mark.parametrize(
    ("written", "instead", "path"),
    [
        ("vars: {n", "var: {n", ""),
        ("toy-corpus", "toy-corps", "stages.data.use"),
        ("use: times", "use: tims", "stages.base.rules.two.use"),
        ("one: plus", "one: pluss", "stages.base.rules.one"),
        ("every: 3", "evry: 3", "stages.base.rules.two"),
        ("every: 3", "every: three", "stages.base.rules.two.every"),
        ("threads: 2", "threds: 2", "execution"),
        ('{use: "recipe-toy:toy-corpus"', '{use: "recipe-toy:toy-corpus", wrods: [a]', "stages.data"),
    ],
)
def test_what_is_wrong_is_pointed_at(toy_schema, written, instead, path):
    assert written in ACCEPTED
    assert path in wrong(toy_schema, ACCEPTED.replace(written, instead))


def test_a_share_is_a_number_or_a_percentage(builtin):
    curation = "stages: {{c: {{use: curation, sources: {{a: {{use: text, path: x}}}}, heldout: {0}}}}}"
    assert wrong(builtin, curation.format("0.1")) == wrong(builtin, curation.format("1%")) == []
    assert wrong(builtin, curation.format("many")) == wrong(builtin, curation.format("2")) == ["stages.c.heldout"]


def test_a_broken_component_is_accepted_unchecked(toy_schema):
    assert wrong(toy_schema, "stages: {base: {use: toy-train, rule: {use: broken, anything: 1}}}") == []
