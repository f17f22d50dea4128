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
    Component(
        kind="adapter",
        name="rslora",
        target="recipe_plugins.adapters.lora:Rslora",
        config="recipe_plugins.adapters.config:RsloraAdapterConfig",
        summary="lora scaled by alpha / sqrt(r), for high ranks",
    ),
    Component(
        kind="adapter",
        name="dora",
        target="recipe_plugins.adapters.lora:Dora",
        config="recipe_plugins.adapters.config:DoraAdapterConfig",
        summary="lora of the direction, and a magnitude for each output",
    ),
    Component(
        kind="adapter",
        name="pissa",
        target="recipe_plugins.adapters.lora:Pissa",
        config="recipe_plugins.adapters.config:PissaAdapterConfig",
        summary="lora that begins at the principal directions of the weights",
    ),
    Component(
        kind="adapter",
        name="peft",
        target="recipe_plugins.adapters.library:Peft",
        config="recipe_plugins.adapters.config:PeftAdapterConfig",
        summary="any other method of PEFT, by its own keys",
    ),
]
