"""Schedules of the learning rate: components of kind `schedule`."""

from __future__ import annotations

from recipe_runner import Component


def _component(name: str, target: str, summary: str) -> Component:
    return Component(
        kind="schedule",
        name=name,
        target=f"recipe_plugins.schedules.schedules:{target}",
        config=f"recipe_plugins.schedules.config:{target}Config",
        summary=summary,
    )


COMPONENTS: list[Component] = [
    _component("wsd", "WSD", "warm-up, stable, decay; with decay: 0 left stable, for anneal to go on from"),
    _component("cosine", "Cosine", "half a cosine, to a share of the peak"),
    _component("linear", "Linear", "a straight line, to a share of the peak"),
    _component("sqrt", "Sqrt", "1 - sqrt, to a share of the peak"),
    _component("inverse-sqrt", "InverseSqrt", "falls with 1 / sqrt(step), after a warm-up"),
    _component("constant", "Constant", "the peak, after a warm-up"),
]
