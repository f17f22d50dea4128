"""`recipe check`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict

from recipe_runner.commands import Switches, load_plugins, print_json, tell_hints
from recipe_runner.errors import InvalidRecipe
from recipe_runner.recipe import load


def check_recipe(switches: Switches, path: str, overrides: Sequence[str], json: bool) -> None:
    """Report all problems, or the stages in the order in which they would run."""
    try:
        recipe = load(path, overrides, plugins=load_plugins(switches))
    except InvalidRecipe as error:
        if json:
            print_json({"ok": False, "problems": [asdict(problem) for problem in error.problems]})
        raise
    stages = {name: use.component.name for name, use in recipe.stages.items()}
    if json:
        hints = [asdict(hint) for hint in recipe.hints]
        print_json({"ok": True, "recipe": recipe.name, "stages": stages, "hints": hints})
    else:
        tell_hints(recipe)
        print(f"{recipe.file} is valid: " + ", ".join(stages), file=sys.stderr)
