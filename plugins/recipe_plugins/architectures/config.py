"""Settings of the architectures, by the keys of their `config.json`, and their size without torch."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, model_validator

from recipe_plugins.training.estimate import Shape, shape_of_config
from recipe_runner import Config

Positive = Annotated[int, Field(ge=1)]


class LlamaConfig(Config):
    """The llama family (Touvron et al. 2023, arXiv:2302.13971, section 2.2; grouped queries: arXiv:2305.13245)."""

    hidden_size: Positive
    num_hidden_layers: Positive
    num_attention_heads: Positive
    num_key_value_heads: Annotated[int, Field(ge=1, description="as many as heads, unless given")] | None = None
    intermediate_size: Annotated[int, Field(ge=1, description="of the SwiGLU layer")]
    max_position_embeddings: Positive = 2048
    tie_word_embeddings: bool = True
    rope_theta: Annotated[float, Field(gt=0)] = 10000.0
    rms_norm_eps: Annotated[float, Field(gt=0)] = 1e-5
    initializer_range: Annotated[float, Field(gt=0, description="standard deviation of initial matrices")] = 0.02

    @model_validator(mode="after")
    def _divisible(self) -> LlamaConfig:
        heads, groups = self.num_attention_heads, self.key_value_heads
        if self.hidden_size % (2 * heads):
            raise ValueError(f"hidden_size {self.hidden_size} must be num_attention_heads {heads} times an even number")
        if heads % groups:
            raise ValueError(f"num_attention_heads {heads} must be a multiple of num_key_value_heads {groups}")
        return self

    @property
    def key_value_heads(self) -> int:
        """Heads of keys and values."""
        return self.num_key_value_heads or self.num_attention_heads

    def keys(self, vocab_size: int) -> dict[str, Any]:
        """What stands in `config.json`."""
        own = self.model_dump(exclude={"num_key_value_heads", "rope_theta"})
        rope = {"rope_type": "default", "rope_theta": self.rope_theta}
        return {
            **own,
            "model_type": "llama",
            "vocab_size": vocab_size,
            "num_key_value_heads": self.key_value_heads,
            "rope_parameters": rope,
        }

    def shape(self, vocab_size: int) -> Shape:
        """Its sizes, for estimates."""
        return shape_of_config(self.keys(vocab_size))

    def parameters(self, vocab_size: int) -> int:
        """Exactly as many as the model has, tied ones once."""
        return self.shape(vocab_size).parameters


class Qwen3Config(LlamaConfig):
    """Qwen3 without experts (Yang et al. 2025, arXiv:2505.09388, section 2): llama with normed queries and keys."""

    head_dim: Annotated[int, Field(ge=2, multiple_of=2, description="of queries, keys and values")]
    rope_theta: Annotated[float, Field(gt=0)] = 1000000.0
    rms_norm_eps: Annotated[float, Field(gt=0)] = 1e-6

    def keys(self, vocab_size: int) -> dict[str, Any]:
        """What stands in `config.json`."""
        return {**super().keys(vocab_size), "model_type": "qwen3"}


class GPT2Config(Config):
    """GPT-2 (Radford et al. 2019, the GPT-2 report, section 2.3): learned positions, LayerNorm and GELU; no dropout.

    `plan` knows its parameters, and not its FLOPs.
    """

    hidden_size: Positive
    num_hidden_layers: Positive
    num_attention_heads: Positive
    intermediate_size: Positive
    max_position_embeddings: Positive = 1024
    tie_word_embeddings: bool = True
    layer_norm_epsilon: Annotated[float, Field(gt=0)] = 1e-5
    initializer_range: Annotated[float, Field(gt=0, description="standard deviation of initial matrices")] = 0.02

    @model_validator(mode="after")
    def _divisible(self) -> GPT2Config:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} must be a multiple of num_attention_heads {self.num_attention_heads}"
            )
        return self

    def parameters(self, vocab_size: int) -> int:
        """Exactly as many as the model has, tied ones once."""
        hidden, wide = self.hidden_size, self.intermediate_size
        attention = 4 * hidden * hidden + 4 * hidden
        block = attention + 2 * hidden * wide + wide + hidden + 4 * hidden  # two norms of weight and bias each
        tables = (1 if self.tie_word_embeddings else 2) * vocab_size * hidden + self.max_position_embeddings * hidden
        return self.num_hidden_layers * block + tables + 2 * hidden
