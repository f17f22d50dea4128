"""The stage `evaluate`, and the component behind `recipe chat`."""

from __future__ import annotations

from recipe_runner import Component

COMPONENTS: list[Component] = [
    Component(
        kind="stage",
        name="evaluate",
        target="recipe_plugins.evaluate.stage:EvaluateStage",
        config="recipe_plugins.evaluate.config:EvaluateConfig",
        summary="compares models on held-out text and conversations, and checks what is expected of them",
    ),
    Component(
        kind="kind",
        name="chat",
        target="recipe_plugins.evaluate.config:ChatProtocol",
        summary="how one talks to a model from the command line",
    ),
    Component(
        kind="chat",
        name="default",
        target="recipe_plugins.evaluate.chat:Chat",
        config="recipe_plugins.evaluate.config:ChatConfig",
        summary="prints the answers to a prompt, or to the lines of stdin",
    ),
]
