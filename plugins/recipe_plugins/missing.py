"""Files that a recipe reads and that are not there: `recipe check` says so, before anything waits for them.

Only existence is looked at, and only on this machine: what lies at a URL is asked for when it is planned.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from recipe_plugins.sources.config import FilesConfig
from recipe_runner import Problem, RecipeError, Use


def missing(recipe: Any) -> Iterator[Problem]:
    """A problem for each source of each stage whose path, folder or glob leads to no file."""
    for stage, use in recipe.stages.items():
        sources: dict[str, Use[Any]] = getattr(use.config, "sources", {})
        for name, source in sources.items():
            if isinstance(source.config, FilesConfig) and (wrong := _wrong(source.config.path)):
                yield recipe.problem(f"stages.{stage}.sources.{name}.path", wrong.what, wrong.next)


def _wrong(path: str) -> RecipeError | None:
    from recipe_plugins.sources.files import matching
    from recipe_plugins.sources.remote import is_remote

    if not is_remote(path):
        try:
            matching(path)
        except RecipeError as error:
            return error
    return None
