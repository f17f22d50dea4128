"""How the architectures that we ship are said in GGUF: hyper-parameters, and what is done to tensors.

After the specification (github.com/ggml-org/ggml, docs/gguf.md) and what llama.cpp computes with them. Names of tensors
are the `gguf` package's own map. llama's rotary positions turn neighbouring numbers there, halves in transformers, so
the rows of its queries and keys are put in another order; gpt2's matrices are stored the other way round.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from recipe_plugins.training.estimate import experts_of
from recipe_runner import RecipeError

Keys = Mapping[str, Any]
"""A model's `config.json`."""

TURNED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
"""gpt2's matrices, (inputs, outputs) in transformers."""


@dataclass(frozen=True, slots=True)
class Family:
    """`settings` are GGUF's keys after the architecture's name; `changed` is a tensor as GGUF has it, by its name.

    `fixed` are the keys of a config that GGUF has no place for: what they are where a config leaves them out, and what
    they must be, as it is what llama.cpp computes.
    """

    name: str
    layers: Callable[[Keys], int]
    settings: Callable[[Keys], dict[str, int | float]]
    changed: Callable[[Keys, str, torch.Tensor], torch.Tensor]
    fixed: Mapping[str, tuple[Any, Any]]

    def check(self, keys: Keys) -> None:
        """Raise `RecipeError` for a model that computes what GGUF cannot say."""
        for key, (usual, wanted) in self.fixed.items():
            found = usual if keys.get(key) is None else keys[key]
            if found != wanted:
                raise RecipeError(
                    f"a {self.name} with {key}: {found} cannot be exported: GGUF has no place for it, and llama.cpp "
                    f"computes with {wanted}"
                )


def _llama(keys: Keys) -> dict[str, int | float]:
    heads, rope = keys["num_attention_heads"], _rope(keys)
    size = keys.get("head_dim") or keys["hidden_size"] // heads
    return {
        "context_length": keys["max_position_embeddings"],
        "embedding_length": keys["hidden_size"],
        "block_count": keys["num_hidden_layers"],
        "feed_forward_length": keys["intermediate_size"],
        "attention.head_count": heads,
        "attention.head_count_kv": keys.get("num_key_value_heads") or heads,
        "attention.key_length": size,
        "attention.value_length": size,
        "attention.layer_norm_rms_epsilon": float(keys["rms_norm_eps"]),
        "rope.dimension_count": size,
        "rope.freq_base": rope,
        "vocab_size": keys["vocab_size"],
    }


def _rope(keys: Keys) -> float:
    """The base of rotary positions. Raises `RecipeError` where they are scaled."""
    rope = keys.get("rope_parameters") or keys.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise RecipeError(f"rotary positions of type {kind!r} cannot be exported yet", next="only `default` ones can")
    return float(rope.get("rope_theta") or keys.get("rope_theta") or 10_000.0)


def _with_experts(keys: Keys) -> dict[str, int | float]:
    return {
        **_llama(keys),
        "expert_count": experts_of(keys),
        "expert_used_count": keys["num_experts_per_tok"],
        "expert_feed_forward_length": keys["moe_intermediate_size"],
    }


def _gpt2(keys: Keys) -> dict[str, int | float]:
    return {
        "context_length": keys["n_positions"],
        "embedding_length": keys["n_embd"],
        "block_count": keys["n_layer"],
        "feed_forward_length": keys.get("n_inner") or 4 * keys["n_embd"],
        "attention.head_count": keys["n_head"],
        "attention.layer_norm_epsilon": float(keys["layer_norm_epsilon"]),
        "vocab_size": keys["vocab_size"],
    }


def _as_it_is(keys: Keys, name: str, tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def _neighbours(keys: Keys, name: str, tensor: torch.Tensor) -> torch.Tensor:
    """The rows of queries and keys: from a half after the other to pairs of neighbours, head by head."""
    part = name.rpartition(".")[0].rpartition(".")[2]
    if part not in ("q_proj", "k_proj"):
        return tensor
    heads = keys["num_attention_heads"]
    if part == "k_proj":
        heads = keys.get("num_key_value_heads") or heads
    return tensor.reshape(heads, 2, len(tensor) // heads // 2, -1).transpose(1, 2).reshape(tensor.shape)


def _turned(keys: Keys, name: str, tensor: torch.Tensor) -> torch.Tensor:
    return tensor.T if name.endswith(TURNED) else tensor


SILU = {"hidden_act": ("silu", "silu")}
QWEN3 = {**SILU, "use_sliding_window": (False, False), "attention_bias": (False, False)}
EXPERTS = {**QWEN3, "norm_topk_prob": (False, True), "decoder_sparse_step": (1, 1), "mlp_only_layers": ([], [])}
GPT2 = {
    "activation_function": ("gelu_new", "gelu_new"), "scale_attn_weights": (True, True),
    "scale_attn_by_inverse_layer_idx": (False, False),
}  # fmt: skip

FAMILIES = {
    "llama": Family("llama", lambda keys: int(keys["num_hidden_layers"]), _llama, _neighbours, SILU),
    "qwen3": Family("qwen3", lambda keys: int(keys["num_hidden_layers"]), _llama, _as_it_is, QWEN3),
    "qwen3_moe": Family("qwen3moe", lambda keys: int(keys["num_hidden_layers"]), _with_experts, _as_it_is, EXPERTS),
    "gpt2": Family("gpt2", lambda keys: int(keys["n_layer"]), _gpt2, _turned, GPT2),
}


def family_of(keys: Keys) -> Family:
    """By model type. Raises `RecipeError` for a model that cannot be exported."""
    found = FAMILIES.get(str(keys.get("model_type")))
    if found is None:
        raise RecipeError(
            f"a model of type {keys.get('model_type')!r} cannot be exported",
            next=f"types that can: {', '.join(FAMILIES)}",
        )
    found.check(keys)
    return found
