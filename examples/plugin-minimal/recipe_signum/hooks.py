"""What the entry point names: strings only, so that listing plugins costs no heavy import."""

from collections.abc import Iterable

from recipe_runner import Component, hookimpl


@hookimpl
def register_components() -> Iterable[Component]:
    """The optimizer and the filter."""
    return [
        Component(
            kind="optimizer",
            name="signum",
            target="recipe_signum.signum:SignumOptimizer",
            config="recipe_signum.config:SignumConfig",
            summary="the sign of the momentum, with decoupled decay",
        ),
        Component(
            kind="filter",
            name="min-words",
            target="recipe_signum.min_words:MinWords",
            config="recipe_signum.config:MinWordsConfig",
            summary="removes documents of few words",
        ),
    ]
