"""bitsandbytes' optimizers over sharded parameters: each rank steps what it holds, and nothing is sent.

The one idea: what the library steps are plain parameters that lie in the memory of this rank's shards. Their moments
are saved as whole ones, in the very form that one process saves, so that any number of processes goes on from them.
Limit: a parameter of which a shard begins within a block of 256 elements keeps fp32 moments, as small ones do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from bitsandbytes.functional import dequantize_blockwise
from torch.distributed.tensor import DTensor, Partial

from recipe_plugins.training.sharding import like, local

BLOCK = 256
"""Elements that share a scale, in the library."""

LEAST = 4096
"""Elements of a parameter that has 8-bit moments, at least."""

MOMENTS = ("state1", "state2")
SCALES = ("absmax1", "absmax2")
TABLES = ("qmap1", "qmap2")


class OfShards(torch.optim.Optimizer):
    """What `make` makes of groups, over this rank's shards of those of `groups`, all of which are DTensors."""

    def __init__(self, groups: list[dict[str, Any]], make: Callable[[list[dict[str, Any]]], Any]) -> None:
        shards = [[torch.nn.Parameter(local(p.detach())) for p in group["params"]] for group in groups]
        self.inner = make([{**group, "params": own} for group, own in zip(groups, shards, strict=True)])
        super().__init__(groups, self.inner.defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step; what has no gradient is passed over. `closure` is refused, since the gradients are taken first."""
        if closure is not None:
            raise ValueError("sharded parameters take no closure")
        for group, own in zip(self.param_groups, self.inner.param_groups, strict=True):
            own.update({name: value for name, value in group.items() if name != "params"})
        for whole, shard, place in self._pairs():
            shard.data = local(whole.detach())
            if whole.grad is None:
                continue
            self._begin(whole, shard, place)
            if shard.numel():
                shard.grad = local(whole.grad)
            else:
                self.inner.state[shard]["step"] += 1  # nothing to step, yet all ranks count alike
        self.inner.step()
        for _, shard, _ in self._pairs():
            shard.grad = None
        return None

    def _pairs(self) -> Iterator[tuple[DTensor, torch.nn.Parameter, tuple[int, int]]]:
        """Each parameter, this rank's shard of it, and its place: the group, and in it."""
        for number, (group, own) in enumerate(zip(self.param_groups, self.inner.param_groups, strict=True)):
            for place, (whole, shard) in enumerate(zip(group["params"], own["params"], strict=True)):
                yield whole, shard, (number, place)

    def _begin(self, whole: DTensor, shard: torch.nn.Parameter, place: tuple[int, int]) -> None:
        """Make the moments, which are the same in kind on every rank, also on one that holds nothing."""
        if not self.inner.state[shard]:
            self.inner.args.min_8bit_size = 0 if whole.numel() >= LEAST and _in_blocks(whole) else math.inf
            self.inner.init_state(self.inner.param_groups[place[0]], shard, *place)

    def state_dict(self) -> dict[str, Any]:
        """As the library's; tensors are sharded, so that gathering them gives what one process saves."""
        wholes = [whole for whole, _, _ in self._pairs()]
        state = {number: _shared(entry, wholes[number]) for number, entry in self.inner.state_dict()["state"].items()}
        return {"state": state, "param_groups": super().state_dict()["param_groups"]}

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take this rank's part of whole moments, whoever saved them."""
        wholes = [whole for whole, _, _ in self._pairs()]
        state = {number: _own(entry, wholes[number]) for number, entry in state_dict["state"].items()}
        self.inner.load_state_dict({**state_dict, "state": state})
        for group, own in zip(self.param_groups, self.inner.param_groups, strict=True):
            group.update({name: value for name, value in own.items() if name != "params"})


def _first(whole: DTensor) -> int:
    """Elements of each shard but the last ones, which may have fewer, or none."""
    rows = -(-whole.shape[0] // whole.device_mesh.size())
    return rows * math.prod(whole.shape[1:])


def _in_blocks(whole: DTensor) -> bool:
    return _first(whole) % BLOCK == 0 or _first(whole) == whole.numel()


def _blocks(whole: DTensor) -> slice:
    """Those of this rank, of all of the parameter."""
    begun = min(whole.device_mesh.get_local_rank() * _first(whole), whole.numel())
    return slice(-(-begun // BLOCK), -(-(begun + whole.to_local().numel()) // BLOCK))


def _shared(entry: Mapping[str, Any], whole: DTensor) -> dict[str, Any]:
    """What this rank keeps of a parameter, as parts of tensors of all ranks."""
    mesh = whole.device_mesh
    found: dict[str, Any] = {}
    for name, value in entry.items():
        if isinstance(value, Mapping):
            found[name] = _shared(value, whole)
        elif name in MOMENTS:
            found[name] = DTensor.from_local(
                value, mesh, whole.placements, run_check=False, shape=whole.shape, stride=whole.stride()
            )
        elif name in SCALES:
            scales = value.new_zeros(-(-whole.numel() // BLOCK))
            scales[_blocks(whole)] = value
            found[name] = DTensor.from_local(scales, mesh, [Partial()], run_check=False)
        else:
            found[name] = value
    return found


def _own(entry: Mapping[str, Any], whole: DTensor) -> dict[str, Any]:
    """This rank's part of what was kept of a parameter; in fp32 where blocks do not fit shards."""
    found: dict[str, Any] = {
        name: _own(value, whole) if isinstance(value, Mapping) else value for name, value in entry.items()
    }
    if MOMENTS[0] not in found:
        return found
    in_8_bits = found[MOMENTS[0]].dtype == torch.uint8
    for moment, scale, table in zip(MOMENTS, SCALES, TABLES, strict=True):
        if in_8_bits and not _in_blocks(whole):
            found[moment] = dequantize_blockwise(
                found[moment], absmax=found.pop(scale), code=found.pop(table), blocksize=BLOCK
            )
        elif in_8_bits:
            found[scale] = found[scale][_blocks(whole)].clone()
        part = like(found[moment], whole)
        assert isinstance(part, DTensor)
        found[moment] = part.to_local()
    return found
