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
    Component(
        kind="architecture",
        name="qwen3",
        target="recipe_plugins.architectures.qwen3:Qwen3",
        config="recipe_plugins.architectures.config:Qwen3Config",
        summary="llama with normed queries and keys, and heads of any size",
    ),
    Component(
        kind="architecture",
        name="qwen3-moe",
        target="recipe_plugins.architectures.qwen3_moe:Qwen3MoE",
        config="recipe_plugins.architectures.config:Qwen3MoEConfig",
        summary="qwen3 with a mixture of experts in every layer, and their balancing loss",
    ),
    Component(
        kind="architecture",
        name="gpt2",
        target="recipe_plugins.architectures.gpt2:GPT2",
        config="recipe_plugins.architectures.config:GPT2Config",
        summary="a decoder with learned positions, LayerNorm and GELU",
    ),
    Component(
        kind="architecture",
        name="transformers",
        target="recipe_plugins.architectures.library:Library",
        config="recipe_plugins.architectures.config:TransformersConfig",
        summary="any decoder of transformers, by the keys of its config.json",
    ),
]
