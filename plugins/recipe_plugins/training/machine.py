"""Threads and device of this process. Imports torch and no trainer, so that whoever only answers starts fast."""

from __future__ import annotations

import torch

from recipe_runner import ExecutionConfig, RecipeError


def set_threads(execution: ExecutionConfig) -> None:
    """Use as many CPU threads as asked for; torch's own choice if that is `auto`."""
    if execution.threads != "auto":
        torch.set_num_threads(execution.threads)


def device(execution: ExecutionConfig) -> torch.device:
    """The device to run on. Raises `RecipeError` where the one that is asked for is not there."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if execution.device == "auto":
        return torch.device(next(name for name, found in there.items() if found))
    if not there[execution.device]:
        found = ", ".join(name for name, yes in there.items() if yes)
        raise RecipeError(f"there is no {execution.device} device here", next=f"set execution.device to one of {found}")
    return torch.device(execution.device)
