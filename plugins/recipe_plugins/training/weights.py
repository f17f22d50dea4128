"""The weight files of a saved model: those that its index names, whatever else lies beside them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from recipe_runner import RecipeError

INDEX = "model.safetensors.index.json"

EMBEDDINGS, HEAD, ROWS = ("embed_tokens.weight", "wte.weight"), "lm_head.weight", 4096


def shards(folder: Path) -> list[Path]:
    """The weight files of the model in `folder`.

    Raises `RecipeError` where one is missing or is not safetensors, and where numbers in them are no weights but wait
    for scales that stand elsewhere, as those of a model that was saved quantised.
    """
    stored = quantised_by(folder)
    if stored:
        raise RecipeError(
            f"the weights in {folder} were saved quantised ({stored}): what stands in its files are not the weights",
            next="name the model in 16 or 32 bits that it was made of",
        )
    index = folder / INDEX
    if index.is_file():
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    else:
        names = {"model.safetensors"}
    missing = sorted(name for name in names if not (folder / name).is_file())
    if missing:
        raise RecipeError(f"{folder} has no {missing[0]}: only whole models in safetensors can be read")
    return [folder / name for name in sorted(names)]


def quantised_by(folder: Path) -> str:
    """The method that the weights in `folder` were quantised by before they were saved; empty for plain ones."""
    path = folder / "config.json"
    found = json.loads(path.read_text(encoding="utf-8")).get("quantization_config") if path.is_file() else None
    return str(found.get("quant_method", "by a method without a name")) if found else ""


def tied_copy(tensors: Mapping[str, Any], keys: Mapping[str, Any]) -> frozenset[str]:
    """The name of a head that is stored beside the embedding that it is tied to and equal to it, if there is one.

    `tensors` are slices of safetensors, `keys` those of `config.json`. Some of the hub's tied models store both, and
    what was fine-tuned from them only one; weights that differ are loaded as two.
    """
    head = tensors.get(HEAD)
    if head is None or not keys.get("tie_word_embeddings"):
        return frozenset()
    for name, other in tensors.items():
        if name.endswith(EMBEDDINGS) and other.get_shape() == head.get_shape():
            return frozenset({HEAD}) if equal(head, other) else frozenset()
    return frozenset()


def equal(one: Any, other: Any) -> bool:
    """Whether two slices of safetensors hold the same; `ROWS` of each are read at once."""
    shape = one.get_shape()
    spans = (slice(start, start + ROWS) for start in range(0, shape[0], ROWS))
    return shape == other.get_shape() and all(torch.equal(one[span], other[span]) for span in spans)
