"""What is trained beside frozen weights: components of kind `adapter`, shared by `lora`, `merge` and `evaluate`."""

from __future__ import annotations

from recipe_runner import Component

COMPONENTS: list[Component] = [
    Component(
        kind="kind",
        name="adapter",
        target="recipe_plugins.adapters.config:AdapterMethod",
        summary="what is trained beside frozen weights",
    ),
    Component(
        kind="adapter",
        name="lora",
        target="recipe_plugins.adapters.lora:Lora",
        config="recipe_plugins.adapters.config:LoraAdapterConfig",
        summary="low-rank updates of linear layers",
    ),
    Component(
        kind="adapter",
        name="qlora",
        target="recipe_plugins.adapters.lora:Qlora",
        config="recipe_plugins.adapters.config:QloraAdapterConfig",
        summary="lora on a base in 4 bits (NF4)",
    ),
]
