"""The stage `export`."""

from __future__ import annotations

from recipe_runner import Component

COMPONENTS: list[Component] = [
    Component(
        kind="stage",
        name="export",
        target="recipe_plugins.export.stage:ExportStage",
        config="recipe_plugins.export.config:ExportConfig",
        version=2,
        summary="writes a model as one GGUF file, tokeniser included, and reads it back",
    ),
]
