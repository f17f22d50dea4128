"""Llama, built by transformers."""

from __future__ import annotations

import torch
from transformers import LlamaConfig as LlamaKeys
from transformers import LlamaForCausalLM, PreTrainedModel

from recipe_plugins.architectures.config import LlamaConfig


class Llama:
    """`LlamaForCausalLM` with fp32 weights, initialised by transformers (normal; norms 1)."""

    def __init__(self, config: LlamaConfig) -> None:
        self.config = config

    def build(self, vocab_size: int) -> PreTrainedModel:
        """See `recipe_runner.Architecture`."""
        keys = {key: value for key, value in self.config.keys(vocab_size).items() if key != "model_type"}
        made = LlamaKeys(**keys, attention_bias=False, mlp_bias=False, attention_dropout=0.0, dtype=torch.float32)
        return LlamaForCausalLM._from_config(made, attn_implementation="sdpa", dtype=torch.float32)

    def register(self) -> None:
        """Transformers knows the type already."""
