"""The weight files of a saved model: those that its index names, whatever else lies beside them."""

from __future__ import annotations

import json
from pathlib import Path

from recipe_runner import RecipeError

INDEX = "model.safetensors.index.json"


def shards(folder: Path) -> list[Path]:
    """The weight files of the model in `folder`. Raises `RecipeError` where one is missing, or is not safetensors."""
    index = folder / INDEX
    if index.is_file():
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    else:
        names = {"model.safetensors"}
    missing = sorted(name for name in names if not (folder / name).is_file())
    if missing:
        raise RecipeError(f"{folder} has no {missing[0]}: only whole models in safetensors can be read")
    return [folder / name for name in sorted(names)]
