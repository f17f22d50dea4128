"""Keys of whole recipes: equal wherever they are computed, and not touched by names and places."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from recipe_runner import Event, identity
from recipe_runner.errors import StageFailed
from recipe_runner.recipe import Recipe
from recipe_runner.run import Options, Run

STAGES = """
  data: {use: toy-corpus, words: [a, b], beside: ./there, text: words.txt}
  train:
    use: toy-train
    rules: {one: times, two: {use: plus, every: 3}}
    weights: {z: 1.0, a: 2.0, m: 3.0}
    cache: ./here
    details: {folder: deep}
    seed: 5
"""
KEYS = """
import json, sys
from recipe_runner import Event, identity
from recipe_runner.recipe import load
recipe = load(sys.argv[1])
payloads = {n: identity.payload(use, recipe.seed_of(n), {}, {}) for n, use in recipe.stages.items()}
print(json.dumps({n: identity.key_of(payload) for n, payload in payloads.items()}))
"""


def keys(recipe: Recipe) -> dict[str, str]:
    payloads = {n: identity.payload(use, recipe.seed_of(n), {}, {}) for n, use in recipe.stages.items()}
    return {name: identity.key_of(payload) for name, payload in payloads.items()}


def test_keys_are_equal_in_other_processes_folders_and_under_other_hash_seeds(bench, tmp_path):
    here = keys(_written(bench, tmp_path / "here").load())
    for hash_seed in ("0", "77"):
        elsewhere = tmp_path / f"else-{hash_seed}"
        _written(bench, elsewhere)
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "HOME": str(elsewhere)}
        command = [sys.executable, "-c", KEYS, "../recipe.yaml"]
        there = subprocess.run(
            command, cwd=elsewhere / "deep", env=environment, capture_output=True, check=True, text=True
        )
        assert json.loads(there.stdout) == here


def _written(bench, folder):
    (folder / "deep").mkdir(parents=True)
    (folder / "words.txt").write_text("c d")
    bench.recipe = folder / "recipe.yaml"
    return bench.write(STAGES)


def test_a_worker_makes_the_key_of_its_parent(bench, tmp_path):
    """The worker refuses otherwise; a file, places, options, nested configs and seeds go through the job."""
    assert set(_written(bench, tmp_path / "here").statuses().values()) == {"built"}


def test_a_worker_that_makes_another_key_refuses(bench, tmp_path):
    """Here the file changes between the parent's look and the worker's: the result would lie under a wrong name."""
    recipe = _written(bench, tmp_path / "here").load()

    def late(event: Event) -> None:
        if event.kind == "stage-started":
            (tmp_path / "here" / "words.txt").write_text("e f")

    with pytest.raises(StageFailed, match="of a stage that its parent calls") as caught:
        Run(recipe, bench.store, bench.plugins, Options(until="data"), [late]).execute()
    assert "run again" in caught.value.render()
    assert list(bench.store.artifacts()) == []


def test_names_of_stages_and_of_the_recipe_cost_nothing(bench):
    bench.write("  data: {use: toy-corpus}\n  train: {use: toy-train, corpus: data}\n").run()
    bench.write("  d: {use: toy-corpus}\n  t: {use: toy-train, corpus: d}\n", "schema: 1\nname: other\nstages:\n")
    assert bench.statuses() == {"d": "cached", "t": "cached"}


def test_another_store_gives_the_same_keys_and_bytes(bench, tmp_path):
    from recipe_runner.store import Store

    bench.write("  data: {use: toy-corpus}\n  train: {use: toy-train, corpus: data}\n")
    first = {name: (result.key, bench.last.made[name].digest) for name, result in bench.run().results.items()}
    bench.store = Store(tmp_path / "another" / "store")
    assert first == {name: (result.key, bench.last.made[name].digest) for name, result in bench.run().results.items()}


def test_the_recipe_s_seed_reaches_every_stage_that_has_none(bench):
    bench.write("  a: {use: toy-corpus}\n  b: {use: toy-corpus, seed: 0}\n  c: {use: toy-corpus, seed: 3}\n")
    plain, seeded = keys(bench.load()), keys(bench.load("seed=3"))
    assert plain["a"] == plain["b"] == seeded["b"]
    assert seeded["a"] == plain["c"] == seeded["c"] != plain["a"]
