"""The trainer mixin, data preparation, loading and saving: the second public API, imported on first use."""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "answers": "answer_losses",
    "bits": "bits_per_byte heldout_records",
    "config": "Budget LoopConfig TextConfig TrainingConfig",
    "conversations": "CHATML Renderer",
    "generation": "replies",
    "loading": "load_model load_tokenizer save_model",
    "machine": "device ready set_threads",
    "resizing": "resize_embeddings",
    "run": "TrainResult train",
    "supervised": "SupervisedTrainer",
    "trainer": "RecipeTrainerMixin TokenTrainer",
}
_HOME = {name: module for module, names in _HOMES.items() for name in names.split()}

__all__ = sorted(_HOME)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
