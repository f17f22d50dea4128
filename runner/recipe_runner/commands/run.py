"""`recipe run`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from recipe_runner.commands import Switches, load_plugins, tell_hints
from recipe_runner.commands.report import gather, save, show_end
from recipe_runner.contract import Event
from recipe_runner.errors import StoreError
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
    tell_hints(recipe)
    run = Run(recipe, Store(store), plugins, options, [_to_stdout if json else for_people()])
    try:
        run.execute()
    except BaseException:
        with suppress(OSError, StoreError):  # the run's own error tells of a full disk
            save(gather(run.folder))
        raise
    facts = gather(run.folder)
    report = save(facts)
    if not json:
        show_end(facts, report)


def _to_stdout(event: Event) -> None:
    sys.stdout.write(encode(event))
    sys.stdout.flush()
