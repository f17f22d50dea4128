"""GPT-2, built by transformers."""

from __future__ import annotations

from typing import Any

import torch
from transformers import GPT2Config as GPT2Keys
from transformers import GPT2LMHeadModel, PreTrainedModel

from recipe_plugins.architectures.config import GPT2Config


class GPT2:
    """`GPT2LMHeadModel` with fp32 weights, initialised by transformers (normal, scaled by depth where residual)."""

    def __init__(self, config: GPT2Config) -> None:
        self.config = config

    def build(self, vocab_size: int) -> PreTrainedModel:
        """See `recipe_runner.Architecture`."""
        config: Any = self.config.sized(vocab_size)
        made = GPT2Keys(
            vocab_size=vocab_size,
            n_positions=config.max_position_embeddings,
            n_embd=config.hidden_size,
            n_layer=config.num_hidden_layers,
            n_head=config.num_attention_heads,
            n_inner=config.intermediate_size,
            activation_function="gelu_new",
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            layer_norm_epsilon=config.layer_norm_epsilon,
            initializer_range=config.initializer_range,
            tie_word_embeddings=config.tie_word_embeddings,
            bos_token_id=None,
            eos_token_id=None,
            dtype=torch.float32,
        )
        return GPT2LMHeadModel._from_config(made, attn_implementation="sdpa", dtype=torch.float32)

    def register(self) -> None:
        """Transformers knows the type already."""
