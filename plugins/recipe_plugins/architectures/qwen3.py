"""Qwen3, built by transformers."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel, Qwen3ForCausalLM
from transformers import Qwen3Config as Qwen3Keys

from recipe_plugins.architectures.config import Qwen3Config


class Qwen3:
    """`Qwen3ForCausalLM` with fp32 weights, initialised by transformers (normal; norms 1)."""

    def __init__(self, config: Qwen3Config) -> None:
        self.config = config

    def build(self, vocab_size: int) -> PreTrainedModel:
        """See `recipe_runner.Architecture`."""
        keys = {key: value for key, value in self.config.keys(vocab_size).items() if key != "model_type"}
        made = Qwen3Keys(
            **keys, attention_bias=False, use_sliding_window=False, attention_dropout=0.0, dtype=torch.float32
        )
        return Qwen3ForCausalLM._from_config(made, attn_implementation="sdpa", dtype=torch.float32)

    def register(self) -> None:
        """Transformers knows the type already."""
