"""The built-ins' hook module: gathers each folder's COMPONENTS, which are strings. Imports nothing heavy."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable
from typing import Any

from recipe_runner import Check, Component, ExecutionConfig, Problem, hookimpl

FOLDERS = (
    "curation", "tokeniser", "pretrain", "anneal", "sft", "lora", "preference", "reward", "grpo", "merge", "export",
    "evaluate", "architectures", "optimizers", "schedules", "adapters", "objectives", "rewards", "formats", "sources",
    "filters", "launchers", "trackers",
)  # fmt: skip

CHECKED = ("adapters", "optimizers", "sources", "training")
"""The families whose settings `check_recipe` looks at."""


@hookimpl
def register_components() -> Iterable[Component]:
    """Every built-in component."""
    return [c for folder in FOLDERS for c in importlib.import_module(f"recipe_plugins.{folder}").COMPONENTS]


@hookimpl
def check_recipe(recipe: Any) -> Iterable[Problem]:
    """Files, domains, scores and stable phases that are not there; hints at rates and scales that are out of the usual.

    Of a recipe without any of what these are about, whose configs nobody has imported then, there is nothing to say.
    """
    if not any(f"recipe_plugins.{room}.config" in sys.modules for room in CHECKED):
        return []
    from recipe_plugins.hints import hints
    from recipe_plugins.missing import foreign_domains, foreign_scores, missing, no_branches

    wrong = (missing, foreign_domains, foreign_scores, no_branches)
    return [problem for check in (*wrong, hints) for problem in check(recipe)]


@hookimpl
def doctor() -> Iterable[Check]:
    """What this machine has."""
    from recipe_plugins.machine import checks

    return checks()


@hookimpl
def device_memory(execution: ExecutionConfig) -> int | None:
    """That of the smallest CUDA device, else this machine's."""
    from recipe_plugins.machine import device_memory as found

    return found(execution)
