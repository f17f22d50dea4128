"""Layers on top of each other: which tensors a stack of slices has, and its config.

A layer's number is the first number in the names of its tensors (`model.layers.3.mlp…`, `transformer.h.3.…`).
"""

from __future__ import annotations

import re
from typing import Any

from recipe_plugins.merge.config import PassthroughConfig
from recipe_plugins.merge.parts import Origin, Parts
from recipe_runner import RecipeError

NUMBERED = re.compile(r"^(?P<before>.*?\.)(?P<number>\d+)(?P<after>\..+)$")
COUNTS = ("num_hidden_layers", "n_layer")
"""What configs call the number of layers."""


class Layers:
    """The slices of a config, resolved against the models."""

    def __init__(self, config: PassthroughConfig, parts: Parts) -> None:
        self.settings, self.parts = config, parts
        self.origins = [(part.model, number) for part in config.slices for number in range(*part.layers)]

    def tensors(self) -> dict[str, Origin]:
        """The result's tensors: those of `rest` that are in no layer where they stand there, then the layers'."""
        rest = self.parts.models[self.settings.rest].weights.kinds
        found = {name: Origin(self.settings.rest, name) for name in rest if not NUMBERED.match(name)}
        for number, (model, layer) in enumerate(self.origins):
            found |= {name: Origin(model, tensor) for name, tensor in self._layer(model, layer, number)}
        self._one_shape(found)
        return found

    def _layer(self, model: str, layer: int, number: int) -> list[tuple[str, str]]:
        """The tensors of a layer, by the names that they have as layer `number`."""
        matches = [NUMBERED.match(name) for name in self.parts.models[model].weights.kinds]
        own = [match for match in matches if match and int(match["number"]) == layer]
        if not own:
            there = {int(match["number"]) for match in matches if match}
            raise RecipeError(f"{model} has no layer {layer}: it has {len(there)}, numbered from 0")
        return [(f"{match['before']}{number}{match['after']}", match[0]) for match in own]

    def _one_shape(self, found: dict[str, Origin]) -> None:
        """Raise `RecipeError` unless tensors of one name have one shape in all layers."""
        first: dict[str, tuple[str, tuple[int, ...]]] = {}
        for name, origin in found.items():
            match = NUMBERED.match(name)
            shape = self.parts.models[origin.model].weights.kinds[origin.tensor].shape
            model, wanted = first.setdefault(match["after"] if match else name, (origin.model, shape))
            if shape != wanted:
                raise RecipeError(
                    f"{origin.tensor} has the shape {list(shape)} in {origin.model}, not {list(wanted)} as in {model}",
                    next="layers that are put on top of each other have one width",
                )

    def config(self) -> dict[str, Any]:
        """That of `rest`, with the number of layers, and lists of one entry a layer (`layer_types`) in their order."""
        configs = {name: part.weights.config() for name, part in self.parts.models.items()}
        keys = dict(configs[self.settings.rest])
        count = next((key for key in COUNTS if key in keys), None)
        if count is None:
            raise RecipeError(f"config.json of {self.settings.rest} does not say how many layers there are")
        for key, value in keys.items():
            if isinstance(value, list) and len(value) == keys[count] and key.startswith("layer"):
                keys[key] = [configs[model][key][layer] for model, layer in self.origins]
        return keys | {count: len(self.origins)}
