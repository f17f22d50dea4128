"""`recipe run`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from recipe_runner.commands import Switches, load_plugins
from recipe_runner.contract import Event
from recipe_runner.events import encode, for_people
from recipe_runner.recipe import load
from recipe_runner.run import Options, Run
from recipe_runner.store import Store


def run_recipe(
    switches: Switches, path: str, overrides: Sequence[str], store: Path, options: Options, json: bool
) -> None:
    """Load, run, and say where everything lies; with `json`, events go to stdout as they happen."""
    plugins = load_plugins(switches)
    recipe = load(path, overrides, plugins=plugins)
    run = Run(recipe, Store(store), plugins, options, [_to_stdout if json else for_people()])
    run.execute()
    if not json:
        for name, result in run.results.items():
            print(f"{name:<12} {result.status:<8} {result.path}", file=sys.stderr)


def _to_stdout(event: Event) -> None:
    sys.stdout.write(encode(event))
    sys.stdout.flush()
