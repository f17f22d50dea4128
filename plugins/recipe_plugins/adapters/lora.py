"""LoRA and QLoRA through PEFT, with every setting that matters passed explicitly.

Guarantee: the adapted model computes what the base does until it is trained, and nothing but the adapter trains, in
fp32. Layers are found by what they are: a linear layer of the model, and never the head unless it is named.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from recipe_plugins.adapters.config import ATTENTION, LoraAdapterConfig, QloraAdapterConfig
from recipe_plugins.training.conversations import turn_tokens
from recipe_plugins.training.quantised import Quantisation
from recipe_runner import RecipeError, suggest

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Lora:
    """Low-rank updates on a base in the stage's precision."""

    def __init__(self, config: LoraAdapterConfig) -> None:
        self.config = config

    def quantisation(self) -> Quantisation | None:
        """None."""
        return None

    def attach(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, seed: int) -> PeftModel:
        """See `AdapterMethod`. Raises `RecipeError` where `targets` names nothing, or the head of a tied model."""
        rows = turn_tokens(tokenizer) if self.config.rows == "turn-tokens" else []
        settings = LoraConfig(
            task_type="CAUSAL_LM",
            r=self.config.r,
            lora_alpha=self.config.alpha,  # type: ignore[arg-type]  # PEFT computes with it as a float
            lora_dropout=self.config.dropout,
            target_modules=targets(model, self.config.targets),
            trainable_token_indices=dict.fromkeys(tables(model), rows) if rows else None,
            ensure_weight_tying=False,  # about whole modules; rows of a tied table stay tied without it
            init_lora_weights="gaussian",
            bias="none",
            use_rslora=False,
            use_dora=False,
            fan_in_fan_out=False,
        )
        with torch.random.fork_rng():  # PEFT draws A from the global generator
            torch.manual_seed(seed)
            adapted = get_peft_model(model, settings, autocast_adapter_dtype=True)
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
        return adapted


class Qlora(Lora):
    """The same on a base in 4 bits."""

    config: QloraAdapterConfig

    def quantisation(self) -> Quantisation:
        """NF4."""
        config = self.config
        return Quantisation(double=config.double_quantisation, compute=config.compute, storage=config.storage)


def tied(model: PreTrainedModel) -> bool:
    """Whether the head is the embedding."""
    head = model.get_output_embeddings()
    return head is not None and head.weight is model.get_input_embeddings().weight


def tables(model: PreTrainedModel) -> list[str]:
    """The names of the modules that have a row for each token: the embedding, and the head unless it is the same."""
    wanted = [model.get_input_embeddings(), *([] if tied(model) else [model.get_output_embeddings()])]
    return [name for name, module in model.named_modules() if any(module is table for table in wanted)]


def targets(model: PreTrainedModel, wanted: str | Sequence[str]) -> list[str]:
    """The full names of the layers that are adapted, in the model's order."""
    head = model.get_output_embeddings()
    linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    inner = [name for name, module in linear.items() if module is not head]
    if wanted == "all-linear":
        return inner
    if wanted == "attention":
        wanted = ATTENTION
    found = {name: _some([n for n in linear if n == name or n.endswith(f".{name}")], name, linear) for name in wanted}
    chosen = [name for name in linear if any(name in names for names in found.values())]
    if tied(model) and any(linear[name] is head for name in chosen):
        raise RecipeError(
            "the model's head is its embedding, and an update of the one would untie them",
            next="leave the head out of `targets`, or train rows of both with `rows`",
        )
    return chosen


def _some(found: list[str], wanted: str, linear: Sequence[str] | dict[str, nn.Linear]) -> list[str]:
    if not found:
        ends = {name.rpartition(".")[2] for name in linear}
        raise RecipeError(
            f"targets: the model has no linear layer {wanted!r}", next=suggest(wanted, ends, noun="its linear layers")
        )
    return found
