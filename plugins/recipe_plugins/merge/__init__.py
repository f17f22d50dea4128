"""The stage `merge`."""

from __future__ import annotations

from recipe_runner import Component

COMPONENTS: list[Component] = [
    Component(
        kind="stage",
        name="merge",
        target="recipe_plugins.merge.stage:MergeStage",
        config="recipe_plugins.merge.config:MergeConfig",
        summary="adds an adapter to the weights of its base, and proves that the result computes the same",
    ),
]
