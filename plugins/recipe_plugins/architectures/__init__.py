"""Architectures: components of kind `architecture`, which build a model from scratch."""

from __future__ import annotations

from recipe_runner import Component

COMPONENTS: list[Component] = [
    Component(
        kind="architecture",
        name="llama",
        target="recipe_plugins.architectures.llama:Llama",
        config="recipe_plugins.architectures.config:LlamaConfig",
        summary="a decoder with rotary positions, RMSNorm, SwiGLU and grouped queries",
    ),
]
