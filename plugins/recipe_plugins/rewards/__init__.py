"""What an answer that a model gave is worth: components of kind `reward`."""

from __future__ import annotations

from recipe_runner import Component


def _reward(name: str, target: str, summary: str) -> Component:
    home = "recipe_plugins.rewards"
    config = f"{home}.config:{target}Config"
    return Component(kind="reward", name=name, target=f"{home}.rewards:{target}", config=config, summary=summary)


COMPONENTS: list[Component] = [
    Component(
        kind="kind",
        name="reward",
        target="recipe_plugins.rewards.config:Reward",
        summary="what an answer that a model gave is worth",
    ),
    _reward("exact-match", "ExactMatch", "1 for the answer that the data has"),
    _reward("format", "Format", "1 for an answer in the shape of a pattern"),
    _reward("length", "Length", "1 for an answer that is no longer than it may be, less for a longer one"),
]
