"""Which kernels compute attention. All of them keep packed documents apart by their positions; they differ in cost.

`sdpa` makes a dense mask of every row in which a document begins, rows × tokens², and with it leaves torch's fast
kernels; `flex` (a block mask) and `flash2` (lengths of documents) do not. transformers finds those lengths in a single
row only, so for `flash2` a micro-batch's rows are laid end to end. So on CUDA `auto` takes `flash2` where it is
installed, else `flex`, and never a dense mask for packed rows; elsewhere it takes `sdpa`, the only one with a backward
pass on a CPU.

`sdpa-fp32`, which nobody asks for, is what `sdpa` becomes on a CPU where the rest is in 16 bits: there torch's backward
pass of 16-bit attention takes twice as long as that of fp32.

Limit: `flex` and `flash2` train on CUDA only.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from recipe_plugins.training.config import LoopConfig, refuse_attention
from recipe_runner import RecipeError

IN_FP32 = "sdpa-fp32"

LIBRARY: Mapping[str, str] = {
    "sdpa": "sdpa", IN_FP32: "sdpa_fp32", "flex": "flex_attention", "flash2": "flash_attention_2",
}  # fmt: skip
"""What transformers calls them."""

IN_ONE_ROW = frozenset({"flash2"})
"""Those that keep documents apart in a single row only: of several rows they would see each as one document."""

SAME, ALIKE = 1e-6, 1e-3
"""Of the largest logit: what logits may differ by if the same kernels made them, and if others did or in 16 bits. At
random weights what a short convolution carries over is but 2e-5."""

_TOKENS = 8  # of each of the documents that isolation is tried with


def chosen(config: LoopConfig, device: torch.device, model: Any) -> str:
    """The attention that `model` trains with on `device`.

    Raises `RecipeError` where the one that is asked for does not train there.
    """
    if device.type == "cpu" and config.attention in ("auto", "sdpa"):
        return IN_FP32 if config.precision != "fp32" and model.is_backend_compatible() else "sdpa"
    if config.attention == "auto":
        if device.type != "cuda":
            return "sdpa"
        return "flash2" if _has_flash() and config.precision != "fp32" else "flex"
    refuse_attention(config.attention, config.precision, device.type)
    if config.attention == "flash2" and not _has_flash():
        raise RecipeError("attention: flash2 needs flash-attn, which is not installed", next="use attention: flex")
    return config.attention


def set_attention(model: Any, name: str) -> None:
    """Let `model` compute attention by `name`. Raises `RecipeError` where its architecture cannot."""
    if name == IN_FP32:
        AttentionInterface.register(LIBRARY[IN_FP32], _in_fp32)
        AttentionMaskInterface.register(LIBRARY[IN_FP32], sdpa_mask)
    try:
        model.set_attn_implementation(LIBRARY[name])
    except (ValueError, ImportError) as error:
        raise RecipeError(
            f"{type(model).__name__} does not compute attention by {name}: {error}", next="use attention: sdpa"
        ) from error


def _in_fp32(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **rest: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' `sdpa` in fp32, given and giving what the model computes in."""
    if attention_mask is not None and attention_mask.is_floating_point():
        attention_mask = attention_mask.float()
    with torch.autocast(query.device.type, enabled=False):
        out, _ = sdpa_attention_forward(module, query.float(), key.float(), value.float(), attention_mask, **rest)
    return out.to(value.dtype), None


@torch.no_grad()
def isolates(model: Any) -> bool:
    """Whether a document gives the same logits behind one document and behind another, its positions starting anew.

    In fp32, where other kernels differ little, it must give them alone too.
    """
    document = torch.arange(_TOKENS, 2 * _TOKENS, device=model.device)[None] % model.config.get_text_config().vocab_size
    positions = torch.arange(_TOKENS, device=model.device)[None]

    def logits(*documents: torch.Tensor) -> torch.Tensor:
        packed = {"input_ids": torch.cat(documents, 1), "position_ids": positions.repeat(1, len(documents))}
        found: torch.Tensor = model(**packed, use_cache=False).logits[:, -_TOKENS:].float()
        return found

    training = model.training
    model.eval()
    try:
        packed, other, alone = logits(document.flip(1), document), logits(document, document), logits(document)
    except TypeError:  # it takes no positions
        return False
    finally:
        model.train(training)
    exact, largest = model.dtype == torch.float32, alone.abs().max()
    same = bool((packed - other).abs().max() <= (SAME if exact else ALIKE) * largest)
    return same and (not exact or bool((packed - alone).abs().max() <= ALIKE * largest))


def _has_flash() -> bool:
    return importlib.util.find_spec("flash_attn") is not None
