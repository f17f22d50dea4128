"""Any decoder of transformers: keys are checked against its config class, and packing against the model itself.

Guarantee: a key that the type does not have is an error, as is a type whose packed documents see each other where their
positions start anew, which no library tells. Nothing is read from the hub or from files, and no code but the library's.
"""

from __future__ import annotations

import inspect
from difflib import get_close_matches
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from recipe_plugins.architectures.config import TransformersConfig
from recipe_plugins.training.attention import isolates
from recipe_runner import RecipeError


class Library:
    """A model of `model_type` with fp32 weights, initialised by transformers."""

    def __init__(self, config: TransformersConfig) -> None:
        self.config = config

    def build(self, vocab_size: int) -> PreTrainedModel:
        """See `recipe_runner.Architecture`. Raises `RecipeError` for an unknown type or key, or one that leaks."""
        kind = self.config.model_type
        made = self._keys(vocab_size)
        chosen: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(made)]
        attention = "sdpa" if chosen._supports_sdpa else "eager"
        try:
            model = AutoModelForCausalLM.from_config(
                made, trust_remote_code=False, attn_implementation=attention, dtype=torch.float32
            )
            parted = isolates(model)
        except (ValueError, TypeError, RuntimeError) as error:
            raise RecipeError(f"transformers cannot build a {kind} of these keys: {error}") from error
        if not parted:
            raise RecipeError(
                f"a model of type {kind!r} lets packed documents see each other, since positions do not part them",
                next="choose a type with full attention over `position_ids`, such as llama, qwen3 or olmo2",
            )
        return model

    def _keys(self, vocab_size: int) -> Any:
        kind, keys = self.config.model_type, self.config.keys
        known = kind in CONFIG_MAPPING and CONFIG_MAPPING[kind] in MODEL_FOR_CAUSAL_LM_MAPPING
        if not known:
            near = get_close_matches(kind, [name for name in CONFIG_MAPPING if isinstance(name, str)])
            raise RecipeError(
                f"transformers has no causal language model of type {kind!r}",
                next=f"did you mean {' or '.join(near)}?" if near else "see `model_type` in the config.json of a model",
            )
        kept = CONFIG_MAPPING[kind]
        allowed = {*inspect.signature(kept.__init__).parameters, *kept.attribute_map} - {"self", "kwargs"}
        for unknown in sorted(set(keys) - allowed):
            near = get_close_matches(unknown, allowed)
            raise RecipeError(
                f"{kind} has no key {unknown!r} in its config.json",
                next=f"did you mean {' or '.join(near)}?" if near else f"its keys: {', '.join(sorted(allowed))}",
            )
        return kept(**{**keys, "vocab_size": vocab_size, "dtype": torch.float32})

    def register(self) -> None:
        """Transformers knows the type already."""
