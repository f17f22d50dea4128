"""No field that nothing reads: every field of every built-in config is read somewhere in the built-ins.

A field that enters the key and changes nothing would make people pay twice for the same result.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel

from recipe_runner import Slot
from recipe_runner.plugins import installed

PLUGINS = Path(__file__).resolve().parents[2] / "plugins" / "recipe_plugins"
RUNNER = Path(__file__).resolve().parents[2] / "runner" / "recipe_runner"

ELSEWHERE = {
    "seed": "StageConfig's; the runner makes the effective seed of it",
}
"""Fields that the built-ins rightly do not read, and who does."""

NAMED_BY_TABLES = {
    "GopherRepetitionConfig": "its thresholds are named by the lengths of n-grams; test_filters_gopher tries each",
    "LengthConfig": "its bounds are named min_ and max_ of a unit; test_filters_web tries each",
}
"""Configs whose fields are read under names that code puts together, and what tests them."""


def reads() -> set[str]:
    """Every attribute that the code reads, and every word that stands alone in a string, as tables of rules do."""
    found: set[str] = set()
    for file in [*PLUGINS.rglob("*.py"), *RUNNER.rglob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                found.add(node.attr)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isidentifier():
                found.add(node.value)
    return found


def whole(config: type[BaseModel]) -> bool:
    """Whether a config, or its parent beside it, hands all fields on (`model_dump`): none can be left unread."""
    beside = [part for part in config.__mro__ if part.__module__ == config.__module__]
    return any("self.model_dump(" in inspect.getsource(part) for part in beside)


def configs() -> Iterator[tuple[str, type[BaseModel]]]:
    """Each built-in config class, those of slots' options and of nested blocks included, with a component's name."""
    seen: set[type] = set()
    todo = [(c.name, c.config_class()) for c in installed().registry if c.dist == "recipe-runner"]
    while todo:
        name, config = todo.pop()
        if config in seen:
            continue
        seen.add(config)
        yield name, config
        for field in config.model_fields.values():
            marks = [*field.metadata, *(mark for arg in get_args(field.annotation) for mark in get_args(arg)[1:])]
            todo += [(name, mark.options) for mark in marks if isinstance(mark, Slot) and mark.options]
            parts = [field.annotation, *get_args(field.annotation)]
            todo += [(name, part) for part in parts if isinstance(part, type) and issubclass(part, BaseModel)]


@pytest.fixture(scope="module")
def read() -> set[str]:
    return reads()


@pytest.mark.parametrize(("name", "config"), sorted(configs(), key=lambda pair: (pair[1].__module__, pair[1].__name__)))
def test_every_field_is_read(name: str, config: type[BaseModel], read: set[str]):
    unread = [field for field in config.model_fields if field not in read and field not in ELSEWHERE]
    assert not unread or whole(config) or config.__name__ in NAMED_BY_TABLES, (
        f"{name}: {config.__name__} has fields that nothing reads: {unread}"
    )


def test_a_field_that_may_be_left_out_is_shown_with_what_it_is():
    from recipe_runner.commands.fields import fields_table

    table = fields_table(installed().registry.find("stage", "pretrain"))
    told = {row[0]: row[3] for row in table["rows"]}
    assert "of all parameters" in told["budget.tokens_per_parameter"]
    assert all(told[f"budget.{unit}"] for unit in ("steps", "epochs", "flops", "minutes"))
    assert told["execution.micro_batch"]


@pytest.mark.parametrize(
    ("kind", "name", "paths"),
    [
        ("stage", "curation", ["mix.weights", "sources.*.limit", "steps.*.only", "steps.*.only.domain"]),
        ("filter", "quality-classifier", ["keep.top"]),
    ],
)
def test_what_may_be_left_out_and_what_a_slot_takes_beside_a_component_is_shown_too(kind, name, paths):
    from recipe_runner.commands.fields import fields_table

    told = {row[0]: row[3] for row in fields_table(installed().registry.find(kind, name))["rows"]}
    assert all(told[path] for path in paths)
