"""What preference training makes small: components of kind `objective`."""

from __future__ import annotations

from recipe_runner import Component


def _objective(name: str, target: str, summary: str) -> Component:
    home = "recipe_plugins.objectives"
    config = f"{home}.config:{target}Config"
    return Component(kind="objective", name=name, target=f"{home}.losses:{target}", config=config, summary=summary)


COMPONENTS: list[Component] = [
    Component(
        kind="kind",
        name="objective",
        target="recipe_plugins.objectives.config:Objective",
        summary="what preference training makes small",
    ),
    _objective("dpo", "Dpo", "better answers likelier than worse ones, by the ratio to a reference"),
    _objective("ipo", "Ipo", "the same, but to a set distance"),
    _objective(
        "kto", "Kto", "wanted answers likelier than what the reference gives, unwanted ones less; needs no pairs"
    ),
    _objective("orpo", "Orpo", "the chosen answer's likelihood, and its odds against the rejected; needs no reference"),
    _objective("simpo", "Simpo", "likelihood by token, better by a margin; needs no reference"),
]
