"""Qwen3 with experts, built by transformers."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel, Qwen3MoeForCausalLM
from transformers import Qwen3MoeConfig as Qwen3MoeKeys

from recipe_plugins.architectures.config import Qwen3MoEConfig


class Qwen3MoE:
    """`Qwen3MoeForCausalLM` with fp32 weights, initialised by transformers (normal; norms 1)."""

    def __init__(self, config: Qwen3MoEConfig) -> None:
        self.config = config

    def build(self, vocab_size: int) -> PreTrainedModel:
        """See `recipe_runner.Architecture`."""
        keys = {key: value for key, value in self.config.keys(vocab_size).items() if key != "model_type"}
        made = Qwen3MoeKeys(
            **keys,
            attention_bias=False,
            use_sliding_window=False,
            attention_dropout=0.0,
            output_router_logits=False,
            dtype=torch.float32,
        )
        return Qwen3MoeForCausalLM._from_config(made, attn_implementation="sdpa", dtype=torch.float32)

    def register(self) -> None:
        """Transformers knows the type already."""
