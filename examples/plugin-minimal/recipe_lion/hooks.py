"""What the entry point names: strings only, so that listing plugins costs no heavy import."""

from collections.abc import Iterable

from recipe_runner import Component, hookimpl


@hookimpl
def register_components() -> Iterable[Component]:
    """The optimizer and the filter."""
    return [
        Component(
            kind="optimizer",
            name="lion",
            target="recipe_lion.lion:LionOptimizer",
            config="recipe_lion.config:LionConfig",
            summary="the sign of a momentum, with decoupled decay",
        ),
        Component(
            kind="filter",
            name="min-words",
            target="recipe_lion.min_words:MinWords",
            config="recipe_lion.config:MinWordsConfig",
            summary="removes documents of few words",
        ),
    ]
