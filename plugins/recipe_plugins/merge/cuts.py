"""The exact magnitude at a rank of a task vector that is never in memory.

The bits of an fp32 magnitude, read as a whole number, have the order of the magnitudes. So two histograms find the
number at a rank exactly: one of the upper 16 bits, one of the lower 16 bits of those that share the upper ones.
Each is a pass over the changes; blocks may come in any size and order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch

Changes = Callable[[], Iterable[torch.Tensor]]
"""Yields the blocks of a task vector, fp32, each time it is called."""

LOW = 2**16


def magnitude_at(changes: Changes, rank: int) -> float:
    """The `rank`-th largest magnitude, counted from 1; infinity for rank 0."""
    if rank == 0:
        return float("inf")
    upper, above = _bin(_histogram(bits // LOW for bits in _bits(changes)), rank)
    lower, _ = _bin(_histogram(bits[bits // LOW == upper] % LOW for bits in _bits(changes)), rank - above)
    return float(torch.tensor([upper * LOW + lower], dtype=torch.int32).view(torch.float32))


def _bits(changes: Changes) -> Iterable[torch.Tensor]:
    return (block.abs().contiguous().reshape(-1).view(torch.int32) for block in changes())


def _histogram(numbers: Iterable[torch.Tensor]) -> torch.Tensor:
    counts = torch.zeros(LOW, dtype=torch.int64)
    for block in numbers:
        counts += torch.bincount(block, minlength=LOW)
    return counts


def _bin(counts: torch.Tensor, rank: int) -> tuple[int, int]:
    """The bin that holds the `rank`-th largest, and how many are in higher ones."""
    from_above = counts.flip(0).cumsum(0)
    place = int(torch.searchsorted(from_above, rank))
    above = int(from_above[place - 1]) if place else 0
    return LOW - 1 - place, above
