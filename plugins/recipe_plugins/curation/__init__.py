"""Raw text in, a corpus out: read, judged step by step, split, written; with an account of every document."""

from __future__ import annotations

from recipe_runner import Component

COMPONENTS: list[Component] = [
    Component(
        kind="stage",
        name="curation",
        target="recipe_plugins.curation.stage:CurationStage",
        config="recipe_plugins.curation.config:CurationConfig",
        version=2,
        summary="reads sources, filters and deduplicates, splits off held-out groups",
    )
]
