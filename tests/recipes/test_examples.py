"""The fork example: what it shares with the recipe it extends, and what it changes."""

from __future__ import annotations

from pathlib import Path

import pytest

from recipe_runner.identity import inputs, use_identity
from recipe_runner.recipe import Recipe, load

FORK = Path(__file__).resolve().parents[2] / "examples" / "fork-a-recipe" / "faster-chat.yaml"


@pytest.fixture(scope="module")
def original() -> Recipe:
    return load("tiny")


@pytest.fixture(scope="module")
def fork() -> Recipe:
    return load(str(FORK))


def test_the_fork_changes_one_stage_s_identity(original, fork):
    assert list(fork.stages) == list(original.stages)
    changed = [name for name, use in fork.stages.items() if use_identity(use) != use_identity(original.stages[name])]
    assert changed == ["chat"]
    assert all(fork.seed_of(name) == original.seed_of(name) for name in fork.stages)


def test_what_the_fork_reruns_is_what_its_readme_says(fork):
    """The changed stage, and all that has it among its inputs, near or far."""
    rerun: list[str] = []
    for name in fork.stages:
        if name == "chat" or {ref.text for ref in inputs(fork.config(name)).values()} & set(rerun):
            rerun.append(name)
    readme = FORK.with_name("README.md").read_text(encoding="utf-8")
    shared = [name for name in fork.stages if name not in rerun]
    row = next(line for line in readme.splitlines() if "original's artifacts" in line)
    assert all(f"`{name}`" in row for name in shared)
    assert row.count("`") == 2 * len(shared)
    after = next(line for line in readme.splitlines() if "input is another" in line)
    assert all(f"`{name}`" in after for name in rerun if name != "chat")
