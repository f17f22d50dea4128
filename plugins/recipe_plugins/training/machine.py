"""Threads and device of this process. Imports torch and no trainer, so that whoever only answers starts fast."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from recipe_plugins.machine import ram
from recipe_plugins.training import float8, liger
from recipe_plugins.training.config import LoopConfig
from recipe_runner import ExecutionConfig, RecipeError

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Of `mallopt(3)`."""


def ready(config: LoopConfig) -> None:
    """Settle threads, memory and the GPU that libraries take unless told otherwise: this rank's.

    Raises `RecipeError` for what cannot be trained on this machine, before anything is prepared.
    """
    set_threads(config.execution)
    _keep_freed_memory()
    where = device(config.execution)
    if where.type == "cuda":
        torch.cuda.set_device(where)
    if config.precision == "fp8":
        float8.refuse_without(device(config.execution))
    if config.liger:
        liger.refuse_without(device(config.execution))


@contextmanager
def told_memory(config: LoopConfig, rows_at_once: int) -> Iterator[None]:
    """Raise `RecipeError`, which says what takes less, where training that many rows at once takes too much memory."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "allocate memory" not in str(error):
            raise
        less = [] if rows_at_once == 1 else [f"execution.micro_batch: {rows_at_once // 2} (the batch stays as it is)"]
        less += [] if config.gradient_checkpointing else ["gradient_checkpointing: true"]
        less += [] if config.execution.strategy == "fsdp" else ["several processes with execution.strategy: fsdp"]
        said = str(error).strip().splitlines()[0]
        raise RecipeError(
            f"out of memory with {rows_at_once} x {config.sequence_length} tokens at once: {said}",
            next=f"set {', or '.join([*less, 'a shorter sequence_length'])}; `recipe plan` says what the memory is for",
        ) from error


def _keep_freed_memory() -> None:
    """Let this process keep what a step frees for the next one, where the C library is glibc.

    It would give the system back what is free at the end of its heap, and take it again page by page: 5,500 page faults
    in a step of a model of 1 M in fp32, 12,800 in compiled bf16, where they took a sixth of the time. Blocks from 32 MB
    on, the most that it lets be set, are given back all the same.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        set_option(M_MMAP_THRESHOLD, 2**25)
        set_option(M_TRIM_THRESHOLD, 2**30)


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
    """The device to run on, of several GPUs this rank's. Raises `RecipeError` where what is asked for is not there."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    name: str = execution.device
    if name == "auto":
        name = next(name for name, found in there.items() if found)
    if not there[name]:
        found = ", ".join(name for name, yes in there.items() if yes)
        raise RecipeError(f"there is no {name} device here", next=f"set execution.device to one of {found}")
    return torch.device(name, _own_gpu()) if name == "cuda" else torch.device(name)


def _own_gpu() -> int:
    """The number of this rank's GPU; launchers tell a rank its number on its machine as torch.distributed reads it."""
    own, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if own >= count:
        raise RecipeError(
            f"rank {own} of this machine has no GPU: there {'is' if count == 1 else 'are'} {count}",
            next=f"set execution.processes to {count}",
        )
    return own


def free_memory(where: torch.device) -> int:
    """Bytes that this process can still take: of the host, or of the device `where` if that has less of its own.

    The host's are what Linux calls available, within the limit of this process's control group (version 2); of another
    system half of what it has.
    """
    host = min([_available(), *_left_in_groups()])
    return min(host, torch.cuda.mem_get_info(where)[0]) if where.type == "cuda" else host


def _available() -> int:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return (ram() or 0) // 2
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))


def _left_in_groups(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> Iterator[int]:
    """Of each limit on this process: what is left below it, cached files not counted, which give way."""
    lines = own.read_text(encoding="utf-8").splitlines() if own.is_file() else []
    path = next((line[3:].strip("/") for line in lines if line.startswith("0::")), "")
    for group in (root / path, *(root / path).parents):
        limit = group / "memory.max"
        if limit.is_file() and limit.read_text(encoding="ascii").strip() != "max":
            cached = dict(line.split() for line in (group / "memory.stat").read_text(encoding="ascii").splitlines())
            used = int((group / "memory.current").read_text(encoding="ascii")) - int(cached["inactive_file"])
            yield max(0, int(limit.read_text(encoding="ascii")) - used)
