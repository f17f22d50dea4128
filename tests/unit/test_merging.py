"""How layers meet, as golden files: each has layers, perhaps overrides, and the tree and problems that come out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from recipe_runner.layers import parse_override
from recipe_runner.merging import Layered
from recipe_runner.origins import locate, positions

CASES = sorted((Path(__file__).parent / "golden" / "merging").glob("*.yaml"))


def merged(layers: list[str], overrides: list[str]) -> Layered:
    state = Layered()
    for number, text in enumerate(layers):
        state.add(yaml.safe_load(text), positions(text, f"layer-{number}"))
    for override in overrides:
        state.add(*parse_override(override))
    return state


@pytest.mark.parametrize("case", CASES, ids=lambda path: path.stem)
def test_layers_meet_as_written_down(case: Path):
    """Trees are compared as text, so the order of entries counts."""
    written = yaml.safe_load(case.read_text())
    state = merged(written["layers"], written.get("overrides", []))
    tree = json.loads(json.dumps(state.tree))
    assert yaml.safe_dump(tree, sort_keys=False) == yaml.safe_dump(written["tree"], sort_keys=False)
    assert [problem.render() for problem in state.problems] == [text.rstrip() for text in written.get("problems", [])]
    origins = {path: str(locate(state.origins, path.split("."))) for path in written.get("origins", {})}
    assert origins == written.get("origins", {})


def test_no_layer_is_changed_by_merging():
    layer = yaml.safe_load("stages: {a: {use: x, list: [1], deep: {k: 1}}}")
    state = Layered()
    state.add(layer, {})
    state.add({"stages": {"a": {"deep": {"k": 2}}}}, {})
    assert layer == yaml.safe_load("stages: {a: {use: x, list: [1], deep: {k: 1}}}")
