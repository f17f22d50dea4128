"""The work behind each command, imported only when the command is given."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from recipe_runner.plugins import Plugins
    from recipe_runner.recipe import Recipe
    from recipe_runner.store import Store


class Switches(Protocol):
    """The options that stand before the command."""

    disabled: tuple[str, ...]
    strict: bool


def load_plugins(switches: Switches) -> Plugins:
    """The installed plugins; each broken one is a line on stderr."""
    from recipe_runner.plugins import installed

    plugins = installed(switches.disabled, switches.strict)
    for record in plugins.records:
        if record.error:
            print(f"plugin {record.dist} {record.version} is off: {record.error}", file=sys.stderr)
    return plugins


def tell_hints(recipe: Recipe) -> None:
    """What is valid but out of the usual, on stderr."""
    for hint in recipe.hints:
        print(f"hint: {hint.render()}", file=sys.stderr)


def print_json(value: Any) -> None:
    """Facts on stdout, and nothing else."""
    print(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))


def answer(as_json: bool, title: str, facts: Sequence[Mapping[str, Any]], columns: str) -> None:
    """Facts as JSON on stdout, or their `columns` as a table for people on stderr."""
    if as_json:
        print_json(facts)
        return
    from recipe_runner.commands.tables import show, table

    show([table(title, columns, ([fact[name] for name in columns.split(", ")] for fact in facts))])


def find_run(store: Store, text: str) -> Path:
    """The folder of a run: given as a folder, a run's id, or a recipe whose newest it is; the newest of all for ``."""
    from recipe_runner.errors import UsageError, suggest

    if text and (Path(text) / "run.json").is_file():
        return Path(text).absolute()
    runs = store.runs()
    found = [folder for folder in runs if text in ("", folder.name, folder.parent.name)]
    if not found:
        known = {name for folder in runs for name in (folder.name, folder.parent.name)}
        what = f"no run {text!r} in" if text else "no run in"
        raise UsageError(f"{what} {store.root}", next=suggest(text, known, noun="runs"))
    return found[-1]
