"""LoRA and its kin through PEFT, with every setting that matters passed explicitly.

Guarantee: the adapted model computes what the base does until it is trained, and nothing but the adapter trains, in
fp32. What is adapted is decided in `targets`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model

from recipe_plugins.adapters.config import LoraAdapterConfig, PissaAdapterConfig, QloraAdapterConfig
from recipe_plugins.adapters.targets import parameters as stacked
from recipe_plugins.adapters.targets import tables, targets, task, tied, whole_tables
from recipe_plugins.training.conversations import turn_tokens
from recipe_plugins.training.quantised import Quantisation
from recipe_runner import RecipeError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Lora:
    """Low-rank updates on a base in the stage's precision."""

    tolerance = 0.0

    def __init__(self, config: LoraAdapterConfig) -> None:
        self.config = config

    def quantisation(self) -> Quantisation | None:
        """None."""
        return None

    def variant(self) -> dict[str, Any]:
        """The settings of PEFT in which the kinds differ."""
        return {"use_rslora": False, "use_dora": False, "init_lora_weights": "gaussian"}

    def attach(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, seed: int, new_tokens: Sequence[int] = ()
    ) -> PeftModel:
        """See `AdapterMethod`.

        Raises `RecipeError` where `targets` names nothing, or the head of a tied model, where r is no less than the
        width of a layer, and where there are no new tokens for `rows`.
        """
        config, rows = self.config, self._rows(tokenizer, new_tokens)
        whole = whole_tables(model, config.modules)
        settings = LoraConfig(
            task_type=task(model),
            r=config.r,
            lora_alpha=config.alpha,  # type: ignore[arg-type]  # PEFT computes with it as a float
            lora_dropout=config.dropout,
            target_modules=targets(model, config.targets, below=config.r),
            target_parameters=stacked(model, config.target_parameters, below=config.r) or None,
            modules_to_save=whole or None,
            trainable_token_indices=dict.fromkeys(tables(model), rows) if rows else None,
            ensure_weight_tying=bool(whole) and tied(model),  # rows of a tied table stay tied without it
            bias="none",
            fan_in_fan_out=False,
            **self.variant(),
        )
        with torch.random.fork_rng():  # PEFT draws A from the global generator
            torch.manual_seed(seed)
            adapted = get_peft_model(model, settings, autocast_adapter_dtype=True)
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
        return adapted

    def _rows(self, tokenizer: PreTrainedTokenizerBase, new_tokens: Sequence[int]) -> list[int]:
        if self.config.rows == "none":
            return []
        if self.config.rows == "turn-tokens":
            return turn_tokens(tokenizer)
        if not new_tokens:
            raise RecipeError(
                "rows: new-tokens, but every token is the model's own",
                next="give the stage a `tokeniser` with added tokens, or leave `rows` out",
            )
        return sorted(new_tokens)


class Rslora(Lora):
    """Scaled by alpha / sqrt(r)."""

    def variant(self) -> dict[str, Any]:
        """See `Lora`."""
        return {**super().variant(), "use_rslora": True}


class Dora(Lora):
    """Direction and magnitude apart."""

    def variant(self) -> dict[str, Any]:
        """See `Lora`."""
        return {**super().variant(), "use_dora": True}

    def attach(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, seed: int, new_tokens: Sequence[int] = ()
    ) -> PeftModel:
        """See `Lora`."""
        return exact_magnitudes(super().attach(model, tokenizer, seed, new_tokens))


class Qlora(Lora):
    """One of them on a base in 4 bits."""

    config: QloraAdapterConfig

    def quantisation(self) -> Quantisation:
        """NF4."""
        config = self.config
        return Quantisation(double=config.double_quantisation, compute=config.compute, storage=config.storage)

    def variant(self) -> dict[str, Any]:
        """See `Lora`."""
        method = self.config.method
        return {**super().variant(), "use_rslora": method == "rslora", "use_dora": method == "dora"}

    def attach(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, seed: int, new_tokens: Sequence[int] = ()
    ) -> PeftModel:
        """See `Lora`."""
        return exact_magnitudes(super().attach(model, tokenizer, seed, new_tokens))


class Pissa(Lora):
    """Begins at the principal directions; `saving` makes LoRA on the original base of it."""

    config: PissaAdapterConfig
    tolerance = 1e-4

    def variant(self) -> dict[str, Any]:
        """See `Lora`."""
        rounds = self.config.iterations
        return {**super().variant(), "init_lora_weights": f"pissa_niter_{rounds}" if rounds else "pissa"}

    def attach(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, seed: int, new_tokens: Sequence[int] = ()
    ) -> PeftModel:
        """See `Lora`. The base's weights become what A and B leave of them."""
        adapted = super().attach(model, tokenizer, seed, new_tokens)
        adapted.pissa_start = {  # type: ignore[assignment]
            name: parameter.detach().cpu().clone()
            for name, parameter in adapted.named_parameters()
            if ".lora_A." in name or ".lora_B." in name
        }
        return adapted


@torch.no_grad()
def exact_magnitudes(model: PeftModel) -> PeftModel:
    """DoRA's magnitudes as they are computed in training: PEFT rounds them to the base's dtype, which moves logits."""
    layers: list[Any] = [layer for layer in model.modules() if hasattr(layer, "lora_magnitude_vector")]
    for layer in layers:
        for name, magnitude in layer.lora_magnitude_vector.items():
            a, b = layer.lora_A[name].weight, layer.lora_B[name].weight
            magnitude.update_layer(base_layer=layer.get_base_layer(), lora_A=a, lora_B=b, scaling=layer.scaling[name])
    return model
