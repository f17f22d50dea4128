"""Optimizers: components of kind `optimizer`."""

from __future__ import annotations

from recipe_runner import Component


def _optimizer(name: str, module: str, target: str, summary: str, version: int = 1) -> Component:
    home = "recipe_plugins.optimizers"
    names = {"target": f"{home}.{module}:{target}", "config": f"{home}.config:{target}Config"}
    return Component(kind="optimizer", name=name, **names, version=version, summary=summary)


COMPONENTS: list[Component] = [
    _optimizer("adamw", "adamw", "AdamW", "AdamW, fused (torch)"),
    _optimizer("adamw-8bit", "adamw", "AdamW8bit", "AdamW with 8-bit states (bitsandbytes)"),
    _optimizer("paged-adamw-8bit", "adamw", "PagedAdamW8bit", "AdamW with 8-bit states in paged memory (bitsandbytes)"),
    _optimizer("muon", "muon", "Muon", "Muon for matrices, AdamW for the rest (torch)", version=3),
    _optimizer("lion", "lion", "Lion", "the sign of an interpolated momentum, with decoupled decay"),
    _optimizer("adafactor", "others", "Adafactor", "second moments by rows and columns only (transformers)"),
    _optimizer("sgd", "others", "SGD", "gradient descent with momentum (torch)"),
]
