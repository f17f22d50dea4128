"""What a recipe names and is not there: files and domains. `recipe check` says so, before anything waits for them.

Of files only existence is looked at, and only on this machine: what lies at a URL is asked for when it is planned. Of
domains only those of a corpus that the recipe itself curates are known.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from recipe_plugins.sources.config import FilesConfig
from recipe_plugins.training.config import TextConfig
from recipe_runner import Problem, RecipeError, Use, suggest


def missing(recipe: Any) -> Iterator[Problem]:
    """A problem for each source of each stage whose path, folder or glob leads to no file."""
    for stage, use in recipe.stages.items():
        sources: dict[str, Use[Any]] = getattr(use.config, "sources", {})
        for name, source in sources.items():
            if isinstance(source.config, FilesConfig) and (wrong := _wrong(source.config.path)):
                yield recipe.problem(f"stages.{stage}.sources.{name}.path", wrong.what, wrong.next)


def foreign_domains(recipe: Any) -> Iterator[Problem]:
    """A problem for each domain that a stage weighs or selects from, and that no source of its corpus is called."""
    for stage, use in recipe.stages.items():
        config: Any = use.config
        if not isinstance(config, TextConfig):
            continue
        made_by = recipe.stages.get(config.corpus.text) if config.corpus.where == "stage" else None
        if made_by is None or not hasattr(made_by.config, "sources"):
            continue
        domains = made_by.config.sources
        named = {f"mix.{name}": name for name in config.mix if name not in config.select}
        named |= {f"select.{name}.domain": part.domain for name, part in config.select.items()}
        for path, domain in named.items():
            if domain not in domains:
                what = f"{config.corpus} has no domain {domain!r}"
                yield recipe.problem(f"stages.{stage}.{path}", what, suggest(domain, domains, noun="its domains"))


def _wrong(path: str) -> RecipeError | None:
    from recipe_plugins.sources.files import matching
    from recipe_plugins.sources.remote import is_remote

    if not is_remote(path):
        try:
            matching(path)
        except RecipeError as error:
            return error
    return None
