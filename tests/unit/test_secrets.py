"""What a recipe cannot do: run code, read the environment into a result, or leak it into any output."""

from __future__ import annotations

import json
import os

import pytest

from recipe_runner.errors import InvalidRecipe

TOKEN = "hf_PLANTED0123456789"


def test_a_planted_token_is_found_in_no_output(bench, monkeypatch):
    """Not in the store, a failing stage's logs, the command's output, nor in what stays in the temporary folder."""
    for name in ("HF_TOKEN", "WANDB_API_KEY", "RECIPE_TEST_SECRET"):
        monkeypatch.setenv(name, TOKEN)
    temporary = bench.folder / "tmp"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    stages = "  data: {use: toy-corpus}\n  train: {use: toy-train, corpus: data, execution: {checkpoint_every: 2}}\n"
    bench.write(stages, "schema: 1\nname: t\ntrackers: {told: {use: told, path: ./heard}}\nstages:\n")
    said = ""
    for override, code in (("stages.train.fail_at=5", 1), ("stages.train.fail_at=-1", 0), ("stages.train.steps=x", 2)):
        process = bench.start(override)
        out, err = process.communicate(timeout=30)
        assert process.returncode == code, err
        said += out + err
    files = [path for path in bench.folder.rglob("*") if path.is_file()]
    assert len(files) > 15
    assert TOKEN not in said
    assert [path for path in files if TOKEN.encode() in path.read_bytes()] == []
    assert list(temporary.iterdir()) == [], "the folder of a run's pipes goes with it"


@pytest.mark.parametrize(
    "value",
    [
        "${env:RECIPE_TEST_SECRET}", "${ env : RECIPE_TEST_SECRET }", "${oc.env:RECIPE_TEST_SECRET}",
        "${oc.${vars.x}:RECIPE_TEST_SECRET}", "${oc.decode:RECIPE_TEST_SECRET}", "${execution.device}",
        "${stages.other.execution.device}", "${vars.through}",
    ],
)  # fmt: skip
def test_no_field_of_a_key_reads_the_environment(bench, monkeypatch, value):
    monkeypatch.setenv("RECIPE_TEST_SECRET", TOKEN)
    monkeypatch.setenv("RECIPE_TEST_DEVICE", "cpu")
    head = "schema: 1\nname: t\nvars: {x: env, through: '${execution.device}'}\n"
    head += "execution: {device: '${env:RECIPE_TEST_DEVICE}'}\nstages:\n"
    other = "  other: {use: toy-corpus, execution: {device: '${env:RECIPE_TEST_DEVICE}'}}\n"
    with pytest.raises(InvalidRecipe) as caught:
        bench.write(f"{other}  train: {{use: toy-train, label: '{value}'}}\n", head).load()
    assert TOKEN not in caught.value.render()


@pytest.mark.parametrize(
    "use", ["recipe_toy.stages:Train", "os:system", "recipe_toy.stages.Train", "builtins.eval", "__import__('os')"]
)
def test_a_component_is_a_registered_name_and_never_a_path(bench, use):
    with pytest.raises(InvalidRecipe, match="no stage is called"):
        bench.write(f'  train: {{use: "{use}"}}\n').load()


@pytest.mark.parametrize(
    "field",
    ["allow_remote_code", "trust_remote_code", "execution: {trust_remote_code", "execution: {allow_remote_code"],
)
def test_remote_code_is_no_field_of_a_recipe(bench, field):
    end = "}" if "{" in field else ""
    with pytest.raises(InvalidRecipe, match="unknown key"):
        bench.write(f"  train: {{use: toy-train, {field}: true{end}}}\n").load()


def test_remote_code_comes_from_the_command_line_alone(bench):
    bench.write("  train: {use: toy-train}\n").run()
    assert bench.manifest("train")["facts"]["remote_code"] is False
    bench.run("stages.train.label=x", allow_remote_code=True)
    assert bench.manifest("train")["facts"]["remote_code"] is True


def test_the_working_directory_is_never_changed(bench):
    before = os.getcwd()
    bench.write("  train: {use: toy-train}\n").run()
    assert os.getcwd() == before == bench.manifest("train")["facts"]["cwd"]


def test_what_a_worker_is_told_holds_no_environment(bench, monkeypatch):
    monkeypatch.setenv("RECIPE_TEST_SECRET", TOKEN)
    monkeypatch.setenv("TMPDIR", str(bench.folder))
    held = bench.write("  train: {use: toy-train}\n").held()
    (job,) = bench.folder.glob("recipe-*/job.json")
    assert json.loads(job.read_text())["stage"] == "train"
    assert TOKEN not in job.read_text()
    held.kill("parent")
