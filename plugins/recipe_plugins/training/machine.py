"""Threads and device of this process. Imports torch and no trainer, so that whoever only answers starts fast."""

from __future__ import annotations

import torch

from recipe_plugins.training import float8
from recipe_plugins.training.config import LoopConfig
from recipe_runner import ExecutionConfig, RecipeError


def ready(config: LoopConfig) -> None:
    """Settle threads. Raises `RecipeError` for what cannot be trained on this machine, before anything is prepared."""
    set_threads(config.execution)
    if config.precision == "fp8":
        float8.refuse_without(device(config.execution))


def set_threads(execution: ExecutionConfig) -> None:
    """Use as many CPU threads as asked for, torch's own choice if that is `auto`, and settle what they compute.

    MKL's vector functions (behind `torch.cos`, which rotary embeddings take) choose their kernels at the first call.
    Two threads that make it at once race, and in 2 % of processes (torch 2.13; 12 of 598, against none of 1163) one of
    them computed that call with an error of 1e-4: equal runs differed. One call from one thread ends the choice.
    """
    if execution.threads != "auto":
        torch.set_num_threads(execution.threads)
    torch.cos(torch.zeros(1))


def device(execution: ExecutionConfig) -> torch.device:
    """The device to run on. Raises `RecipeError` where the one that is asked for is not there."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if execution.device == "auto":
        return torch.device(next(name for name, found in there.items() if found))
    if not there[execution.device]:
        found = ", ".join(name for name, yes in there.items() if yes)
        raise RecipeError(f"there is no {execution.device} device here", next=f"set execution.device to one of {found}")
    return torch.device(execution.device)
