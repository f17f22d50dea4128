"""Events: every kind is declared, every listener hears all in order, and none of them costs a run."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

from recipe_runner import Event
from recipe_runner.events import KINDS, Listeners, decode, encode

ROOTS = [Path(__file__).parents[2] / "runner", Path(__file__).parents[2] / "plugins"]


def emitted() -> set[str]:
    """The kinds of all events that the source makes, by their literal."""
    calls = (
        node
        for root in ROOTS
        for path in root.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Event"
    )
    return {call.args[0].value for call in calls if call.args and isinstance(call.args[0], ast.Constant)}


def test_every_kind_that_is_emitted_is_declared_and_the_other_way_round():
    assert emitted() == set(KINDS)


@pytest.mark.parametrize(
    "data", [{}, {"a": [1, {"b": None}], "text": 'é\n\udc80 "x"'}, {"text": "y" * 100_000}, {"nested": {"1": 2.5}}]
)
def test_an_event_is_one_line_and_comes_back(data):
    line = encode(Event("note", "s", data, 1.5))
    assert line.endswith("\n")
    assert line.count("\n") == 1
    assert line.isascii()
    assert decode(line) == Event("note", "s", data, 1.5)


def test_what_is_not_finite_is_a_word():
    values = {"a": float("nan"), "b": [float("inf")], "c": (-float("inf"),)}
    assert json.loads(encode(Event("metrics", "s", values)))["data"] == {"a": "nan", "b": ["inf"], "c": ["-inf"]}


def test_a_listener_that_raises_is_dropped_and_the_others_go_on(capsys):
    heard: list[str] = []

    def broken(event):
        heard.append("broken")
        raise SystemExit(3)

    listeners = Listeners([broken, lambda event: heard.append(event.kind)])
    for kind in ("one", "two"):
        listeners(Event(kind))
    assert heard == ["broken", "one", "two"]
    assert capsys.readouterr().err.count("broken failed and is off for this run: SystemExit(3)") == 1


def test_trackers_hear_what_the_log_keeps_and_a_broken_one_costs_nothing(bench, capsys):
    head = """schema: 1
name: t
trackers: {one: {use: told, path: ./heard}, two: {use: told, path: ./never, fails: true}}
stages:
"""
    bench.write("  train: {use: toy-train, steps: 3, execution: {checkpoint_every: 2}}\n", head).run()
    heard = (bench.folder / "heard").read_text().split()
    assert heard == [event.kind for event in bench.events]
    assert set(heard) <= set(KINDS)
    log = [json.loads(line) for line in (bench.last.folder / "events.jsonl").read_text().splitlines()]
    assert [row["kind"] for row in log] == [kind for kind in heard if kind not in ("progress", "flush")]
    assert all(row["time"] > 0 for row in log)
    assert capsys.readouterr().err.count("Told.on_event failed and is off for this run") == 1
