"""What a recipe names and is not there: files, domains, scores, stable phases. `recipe check` says so, before anything
waits for them.

Of files only existence is looked at, and only on this machine: what lies at a URL is asked for when it is planned. Of
domains and scores only those of a corpus that the recipe itself curates are known; a score that the rows of a source
may bring along, in a column `meta`, is hinted at.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from recipe_plugins.filters.rules.where import parsed
from recipe_plugins.sources.config import FilesConfig, HuggingFaceConfig
from recipe_plugins.training.config import TextConfig
from recipe_runner import Problem, RecipeError, Use, suggest


def missing(recipe: Any) -> Iterator[Problem]:
    """A problem for each source of each stage whose path, folder or glob leads to no file."""
    for stage, use in recipe.stages.items():
        sources: dict[str, Use[Any]] = getattr(use.config, "sources", {})
        for name, source in sources.items():
            if isinstance(source.config, FilesConfig) and (wrong := _wrong(source.config.path)):
                yield recipe.problem(f"stages.{stage}.sources.{name}.path", wrong.what, wrong.next)


def no_branches(recipe: Any) -> Iterator[Problem]:
    """A problem for each model that cannot be annealed, by the settings of the stage that makes it."""
    for stage, use in recipe.stages.items():
        refused, model = getattr(use.config, "refused", None), getattr(use.config, "model", None)
        if refused is None or model is None or model.where == "path":
            continue
        wrong = refused(recipe.stages[model.text].config if model.where == "stage" else None)
        if wrong is not None:
            yield recipe.problem(f"stages.{stage}.model", wrong.what, wrong.next)


def foreign_domains(recipe: Any) -> Iterator[Problem]:
    """A problem for each domain that a stage weighs or selects from, and that no source of its corpus is called."""
    for stage, config, curation in _trained_on_text(recipe):
        domains = curation.sources
        named = {f"mix.{name}": name for name in config.mix if name not in config.select}
        named |= {f"select.{name}.domain": part.domain for name, part in config.select.items()}
        for path, domain in named.items():
            if domain not in domains:
                what = f"{config.corpus} has no domain {domain!r}"
                yield recipe.problem(f"stages.{stage}.{path}", what, suggest(domain, domains, noun="its domains"))


def foreign_scores(recipe: Any) -> Iterator[Problem]:
    """A problem for each score that a stage selects by, and that no document of the domain can have.

    A hint where rows may bring it along; else the stage, often the last of a long recipe, would be the one to find out.
    """
    for stage, config, curation in _trained_on_text(recipe):
        if not config.select:
            continue
        from recipe_plugins.filters.rules.measures import NAMES

        if any(curation.keeps_scores(step) for step in curation.steps.values()):
            continue  # what they are called is known when they are there
        for name, part in config.select.items():
            source = curation.sources.get(part.domain)
            if source is None or not isinstance(source.config, FilesConfig | HuggingFaceConfig):
                continue
            kept = {*NAMES, *source.options.format.config.keep}
            wanted = {comparison.name for group in parsed(part.where) for comparison in group}
            for score in sorted(wanted - kept) if "scores" not in kept else ():
                yield recipe.problem(
                    f"stages.{stage}.select.{name}.where",
                    f"nothing gives the documents of {part.domain!r} a score {score!r}",
                    f"keep it from the rows, `format: {{use: text, keep: [{score}]}}`; let a step that scores say "
                    f"`keep_scores: true`; or select by what every text has: words, characters, diversity",
                    hint=source.options.format.component.name == "auto" and source.component.name != "text",
                )


def _trained_on_text(recipe: Any) -> Iterator[tuple[str, TextConfig, Any]]:
    """The stages that train on text whose corpus the recipe itself curates: name, config, and the curation's config."""
    for stage, use in recipe.stages.items():
        config: Any = use.config
        if not isinstance(config, TextConfig):
            continue
        made_by = recipe.stages.get(config.corpus.text) if config.corpus.where == "stage" else None
        if made_by is not None and hasattr(made_by.config, "sources"):
            yield stage, config, made_by.config


def _wrong(path: str) -> RecipeError | None:
    from recipe_plugins.sources.files import matching
    from recipe_plugins.sources.remote import is_remote

    if not is_remote(path):
        try:
            matching(path)
        except RecipeError as error:
            return error
    return None
