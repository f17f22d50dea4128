"""Any method of PEFT by its own keys, checked against PEFT's config class.

Guarantee: a key that the class lacks, a value that it refuses, and a method that needs what a packed row cannot give
are errors before anything trains. Limit: what its numbers mean is PEFT's to say, so `plan` knows no size of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import torch
from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PeftConfig, PeftModel, get_peft_model
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING

from recipe_plugins.adapters.config import PeftAdapterConfig
from recipe_plugins.adapters.targets import targets, task
from recipe_runner import RecipeError, suggest

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from recipe_plugins.training.quantised import Quantisation

OURS = {
    "peft_type": "method", "target_modules": "targets", "task_type": "", "base_model_name_or_path": "", "revision": "",
    "inference_mode": "", "auto_mapping": "", "peft_version": "",
}  # fmt: skip
"""Keys that are not given by a recipe, and the setting that has their place."""


class Peft:
    """See the module's text."""

    tolerance = 1e-4

    def __init__(self, config: PeftAdapterConfig) -> None:
        self.config = config

    def quantisation(self) -> Quantisation | None:
        """None."""
        return None

    def attach(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, seed: int, new_tokens: Sequence[int] = ()
    ) -> PeftModel:
        """See `AdapterMethod`. Raises `RecipeError` for a method, key or value that PEFT or a packed row refuses."""
        settings = self._settings(model)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            try:
                adapted = get_peft_model(model, settings, autocast_adapter_dtype=True)
            except (ValueError, TypeError, RuntimeError) as error:
                raise self._refused(error) from error
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
        return adapted  # type: ignore[return-value]

    def _settings(self, model: PreTrainedModel) -> PeftConfig:
        kind, keys = self._class(), dict(self.config.keys)
        known = {field.name for field in fields(kind) if field.init} - OURS.keys()
        for key in keys:
            if OURS.get(key):
                raise RecipeError(f"peft {self.config.method}: {key} is set by `{OURS[key]}`, not under `keys`")
            if key not in known:
                raise RecipeError(
                    f"peft {self.config.method}: {kind.__name__} has no key {key!r}",
                    next=suggest(key, known, noun="its keys"),
                )
        where: dict[str, Any] = {"target_modules": targets(model, self.config.targets)}
        if "feedforward_modules" in known - keys.keys():  # IA3 scales the inputs of these, of others the outputs
            where["feedforward_modules"] = [name for name in where["target_modules"] if name.endswith("down_proj")]
        try:
            return kind(task_type=task(model), **where, **keys)
        except (ValueError, TypeError) as error:
            raise self._refused(error) from error

    def _class(self) -> type[PeftConfig]:
        """PEFT's config class of the method."""
        usable = {}
        for name, kind in PEFT_TYPE_TO_CONFIG_MAPPING.items():
            has = {field.name for field in fields(kind)}
            if name in PEFT_TYPE_TO_TUNER_MAPPING and "target_modules" in has:
                usable[str(name.value).upper()] = kind
        wanted = self.config.method.upper()
        if wanted in usable:
            return usable[wanted]
        others = {str(name.value).upper() for name in PEFT_TYPE_TO_CONFIG_MAPPING}
        why = "adapts no layers, which training on packed rows needs" if wanted in others else "is none of PEFT's"
        raise RecipeError(f"method {self.config.method!r} {why}", next=suggest(wanted, usable, noun="methods"))

    def _refused(self, error: Exception) -> RecipeError:
        shown: Any = " ".join(str(error).split())
        return RecipeError(
            f"peft {self.config.method}: {shown}", next="see PEFT's documentation of the method for what its keys take"
        )
