"""What this machine has, for `recipe doctor`: torch and its devices are looked at only when somebody asks."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator

from recipe_runner import Check


def checks() -> Iterator[Check]:
    """The system, its memory, and the devices that torch sees."""
    yield Check("system", f"{platform.platform()}, {os.cpu_count()} cores, {sys.executable}")
    if hasattr(os, "sysconf"):
        yield Check("memory", f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 1e9:.1f} GB")
    yield from _devices()


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
