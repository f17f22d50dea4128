"""What this machine has, for `recipe doctor` and `recipe plan`.

torch and its devices are looked at only when the doctor asks; a plan asks the driver of CUDA devices, without torch.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache

from recipe_runner import Check, ExecutionConfig


def checks() -> Iterator[Check]:
    """The system, its memory, and the devices that torch sees."""
    yield Check("system", f"{platform.platform()}, {os.cpu_count()} cores, {sys.executable}")
    if memory := ram():
        yield Check("memory", f"{memory / 1e9:.1f} GB")
    yield from _devices()


def device_memory(execution: ExecutionConfig) -> int | None:
    """Bytes that a process may take: of the smallest CUDA device, else its share of this machine's memory.

    `None` where `device: cuda` is asked for and no driver answers.
    """
    cuda = _cuda() if execution.device in ("auto", "cuda") else []
    if cuda or execution.device == "cuda":
        return min(cuda, default=None)
    memory = ram()
    return memory and memory // execution.processes


def ram() -> int | None:
    """Bytes of this machine's memory; `None` where the system does not say."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else None


@cache
def _cuda() -> list[int]:
    """Bytes of each CUDA device, as its driver's own tool says; asked once, not for each stage of a plan."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    asked = [tool, "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        told = subprocess.run(asked, capture_output=True, text=True, timeout=20, check=True).stdout.split()
    except (OSError, subprocess.SubprocessError):
        return []
    return [int(mebibytes) * 2**20 for mebibytes in told if mebibytes.isdigit()]


def _devices() -> Iterator[Check]:
    try:
        import torch
    except ImportError as error:
        yield Check("torch", f"cannot be imported: {error}", ok=False)
        return
    for number in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(number)
        yield Check(f"cuda:{number}", f"{found.name}, {found.total_memory / 1e9:.1f} GB", ok=True)
    if not torch.cuda.device_count():
        yield Check("device", "mps" if torch.backends.mps.is_available() else "cpu only")
