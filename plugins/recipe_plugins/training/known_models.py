"""The shapes of some models on the hub, so that `plan` knows them before anything is fetched. Imports no torch.

Facts of their `config.json`; the parameters that follow are those of their safetensors indexes (a test). A run reads
the real config, and warns where it says something else. Limit: a name stands for all its revisions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def _of(
    kind: str,
    hidden: int,
    layers: int,
    heads: int,
    pairs: int,
    inner: int,
    vocab: int,
    *,
    tied: bool,
    **more: int,
) -> dict[str, Any]:
    return {
        "model_type": kind, "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": pairs, "intermediate_size": inner, "vocab_size": vocab, "tie_word_embeddings": tied,
        **more,
    }  # fmt: skip


_SMOLLM2_135M = _of("llama", 576, 30, 9, 3, 1536, 49152, tied=True)
_SMOLLM2_1_7B = _of("llama", 2048, 24, 32, 32, 8192, 49152, tied=True)
_QWEN2_5_0_5B = _of("qwen2", 896, 24, 14, 2, 4864, 151936, tied=True)
_QWEN2_5_1_5B = _of("qwen2", 1536, 28, 12, 2, 8960, 151936, tied=True)
_QWEN2_5_7B = _of("qwen2", 3584, 28, 28, 4, 18944, 152064, tied=False)
_QWEN3_0_6B = _of("qwen3", 1024, 28, 16, 8, 3072, 151936, tied=True, head_dim=128)
_QWEN3_8B = _of("qwen3", 4096, 36, 32, 8, 12288, 151936, tied=False, head_dim=128)
_LLAMA3_8B = _of("llama", 4096, 32, 32, 8, 14336, 128256, tied=False)

KNOWN: Mapping[str, Mapping[str, Any]] = {
    "HuggingFaceTB/SmolLM2-135M": _SMOLLM2_135M,
    "HuggingFaceTB/SmolLM2-135M-Instruct": _SMOLLM2_135M,
    "HuggingFaceTB/SmolLM2-1.7B": _SMOLLM2_1_7B,
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": _SMOLLM2_1_7B,
    "Qwen/Qwen2.5-0.5B": _QWEN2_5_0_5B,
    "Qwen/Qwen2.5-0.5B-Instruct": _QWEN2_5_0_5B,
    "Qwen/Qwen2.5-1.5B": _QWEN2_5_1_5B,
    "Qwen/Qwen2.5-1.5B-Instruct": _QWEN2_5_1_5B,
    "Qwen/Qwen2.5-7B": _QWEN2_5_7B,
    "Qwen/Qwen2.5-7B-Instruct": _QWEN2_5_7B,
    "Qwen/Qwen3-0.6B": _QWEN3_0_6B,
    "Qwen/Qwen3-0.6B-Base": _QWEN3_0_6B,
    "Qwen/Qwen3-8B": _QWEN3_8B,
    "Qwen/Qwen3-8B-Base": _QWEN3_8B,
    "meta-llama/Llama-3.1-8B": _LLAMA3_8B,
    "meta-llama/Llama-3.1-8B-Instruct": _LLAMA3_8B,
}
"""By name, without the revision: the keys of `config.json` that its size follows from."""


def known_keys(ref: str) -> Mapping[str, Any] | None:
    """The keys of `org/name[@revision]`, if they are known."""
    return KNOWN.get(ref.partition("@")[0])


def unlike(ref: str, keys: Mapping[str, Any]) -> str:
    """How the `config.json` of a model that is there differs from what `plan` took it for; nothing where it does not.

    Its vocabulary may have been changed by the stage, and is not looked at.
    """
    planned = known_keys(ref) or {}
    wrong = [f"{key} {keys[key]}, planned {value}" for key, value in planned.items()
             if key != "vocab_size" and keys.get(key) not in (None, value)]  # fmt: skip
    return f"the plan of {ref} was made for another shape: {'; '.join(wrong)}" if wrong else ""
