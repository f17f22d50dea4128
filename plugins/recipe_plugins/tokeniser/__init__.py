"""The stage `tokeniser`, and its algorithms: components of kind `algorithm`."""

from __future__ import annotations

from recipe_runner import Component

COMPONENTS: list[Component] = [
    Component(
        kind="stage",
        name="tokeniser",
        target="recipe_plugins.tokeniser.stage:TokeniserStage",
        config="recipe_plugins.tokeniser.config:TokeniserConfig",
        summary="trains a tokeniser on a corpus, and gives it a chat template",
    ),
    Component(
        kind="kind",
        name="algorithm",
        target="recipe_plugins.tokeniser.config:Algorithm",
        summary="how a vocabulary is made from text",
    ),
    Component(
        kind="algorithm",
        name="byte-bpe",
        target="recipe_plugins.tokeniser.algorithms:ByteBPE",
        config="recipe_plugins.tokeniser.config:ByteBPEConfig",
        summary="byte-pair encoding over bytes: no text is unknown",
    ),
]
