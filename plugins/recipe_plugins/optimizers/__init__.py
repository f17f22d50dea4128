"""Optimizers: components of kind `optimizer`."""

from __future__ import annotations

from recipe_runner import Component

COMPONENTS: list[Component] = [
    Component(
        kind="optimizer",
        name="adamw",
        target="recipe_plugins.optimizers.adamw:AdamW",
        config="recipe_plugins.optimizers.config:AdamWConfig",
        summary="AdamW, fused (torch)",
    ),
    Component(
        kind="optimizer",
        name="paged-adamw-8bit",
        target="recipe_plugins.optimizers.adamw:PagedAdamW8bit",
        config="recipe_plugins.optimizers.config:PagedAdamW8bitConfig",
        summary="AdamW with 8-bit states in paged memory (bitsandbytes)",
    ),
]
