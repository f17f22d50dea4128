"""Sharding a model over the ranks: torch's `fully_shard` (FSDP2), on any device that has collectives, CPU and gloo too.

What is sharded has a name: `optimizer-and-gradients` keeps whole weights between forward and backward (ZeRO-2 of
Rajbhandari et al. 2020, arXiv:1910.02054, section 5), `all` gathers each layer's weights when they are needed (ZeRO-3).
Each decoder layer is a unit; embeddings, head and norms are one more, so that tied weights stay tied. Frozen weights
are sharded too: those of an adapter's base, in bf16 or packed in 4 bits.

A checkpoint holds whole tensors, the same as one process writes; they are gathered one by one, for the rank that
writes, and each rank takes its part from the disk. What stages measure before and after training they ask of shards
too, so no device ever holds the whole. Guarantee: a model of which nothing was sharded is an error. Limit: every rank
holds the model in host memory, and a second time while it is cut.
"""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from recipe_plugins.training import quantised
from recipe_plugins.training.machine import device
from recipe_runner import ExecutionConfig, RecipeError, StageContext

PATIENCE = timedelta(minutes=30)
"""How long a rank waits for the others."""


def wanted(ctx: StageContext, execution: ExecutionConfig) -> bool:
    """Whether models are to be sharded over the ranks."""
    return execution.strategy == "fsdp" and ctx.world_size > 1


def home(ctx: StageContext, execution: ExecutionConfig) -> torch.device:
    """Where a stage keeps its model: on this rank's device, or in host memory if only shards of it go there."""
    return torch.device("cpu") if wanted(ctx, execution) else device(execution)


@contextmanager
def asked(ctx: StageContext, execution: ExecutionConfig, model: Any) -> Iterator[Any]:
    """`model` on this rank's device, to be asked, and put back; or a sharded copy, of which all ranks ask the same."""
    where, was = device(execution), next(model.parameters()).device
    if wanted(ctx, execution):
        yield sharded(model, where, ctx.world_size, "all")
    elif was.type == where.type:
        yield model
    else:
        model.to(where)
        try:
            yield model
        finally:
            model.to(was)


def sharded(model: PreTrainedModel, device: torch.device, world_size: int, shard: str) -> PreTrainedModel:
    """A copy of `model` on `device` whose parameters are sharded over all ranks; see `ExecutionConfig.shard`.

    Raises `RecipeError` for quantised weights that are not of 4 bits, and for a model without layers.
    """
    gc.collect()  # sharded models and trainers refer to themselves: those that are done would still hold their shards
    found = copy.deepcopy(model)
    if getattr(model, "is_loaded_in_4bit", False):
        quantised.make_plain(found, device)
    elif getattr(model, "is_quantized", False):
        raise RecipeError("strategy: fsdp shards no quantised weights but those of 4 bits", next="use strategy: ddp")
    _connect(device)
    names = set(getattr(model, "_no_split_modules", None) or ())
    layers = [module for module in found.modules() if type(module).__name__ in names]
    if not layers:
        raise RecipeError(f"{type(model).__name__} does not say what its layers are", next="use strategy: ddp")
    mesh = init_device_mesh(device.type, (world_size,))
    for layer in layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=shard == "all")
    fully_shard(found, mesh=mesh, reshard_after_forward=False)  # the head is needed at once in the backward pass
    found.reshards = frozenset(layers if shard == "all" else ())  # type: ignore[assignment]
    whole = [name for name, parameter in found.named_parameters() if not isinstance(parameter, DTensor)]
    if whole:
        raise RecipeError(f"{len(whole)} parameters were not sharded, {whole[0]} among them", next="use strategy: ddp")
    return found


def _connect(device: torch.device) -> None:
    """Let the ranks know each other; the trainers' library takes what it finds."""
    if not distributed.is_initialized():
        if device.type == "cuda":
            torch.cuda.set_device(device)
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)


class Sharded(nn.Module):
    """Around a sharded model: what the training loop calls, so that nothing else wraps it."""

    def __init__(self, module: PreTrainedModel) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the model's."""
        return self.module(*args, **kwargs)

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Gradients are reduced after every micro-batch, since whole ones would not be sharded."""
        yield


def is_sharded(model: nn.Module) -> bool:
    """Whether `model` came from `sharded`."""
    return isinstance(model, FSDPModule)


def after_forward(model: nn.Module) -> None:
    """Shard again what a forward pass without a backward one left whole: an optimizer must never see that."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Whole weights on every rank, so that each may ask `model` for as much as it likes; all ranks take part."""
    units = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for unit in units:
        unit.set_reshard_after_forward(False, recurse=False)
        unit.unshard()
    try:
        yield
    finally:
        for unit in units:
            unit.set_reshard_after_forward(unit in model.reshards, recurse=False)  # type: ignore[operator]
            unit.reshard()


def local(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's part of `tensor`, which is all of it unless it is sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def held(model: nn.Module) -> int:
    """Parameters of which this rank holds its shard, in elements."""
    return sum(p.to_local().numel() for p in model.parameters() if isinstance(p, DTensor))


def agreed(model: Any, chosen: torch.Tensor) -> torch.Tensor:
    """What rank 0 chose, where all ranks ask the same of the shards of `model`; `chosen` itself of a whole one.

    Ranks whose devices round differently could choose differently, and one that is done sooner than the others would
    leave them waiting for its shards.
    """
    if is_sharded(model):
        distributed.broadcast(chosen, 0)
    return chosen


def whole(value: Any, then: Callable[[torch.Tensor], Any] = lambda tensor: tensor) -> Any:
    """`value` with whole tensors in place of sharded ones, through mappings and sequences; all ranks must call it.

    Each whole tensor is given to `then`, before the next is gathered.
    """
    if isinstance(value, DTensor):
        return then(value.full_tensor())
    if isinstance(value, Mapping):
        return {key: whole(entry, then) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(whole(entry, then) for entry in value)
    return value


def to_save(value: Any, main: bool) -> Any:
    """As `whole`, for the rank that saves, in its host memory; elsewhere nothing is left of sharded tensors."""
    return whole(value, lambda tensor: tensor.cpu() if main else None)


def like(value: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """A whole tensor, sharded as `parameter` is, if it is; every rank has the same, so nothing is sent.

    Only this rank's part goes to its device, and it is a copy: a view would hold all of the whole.
    """
    if not isinstance(parameter, DTensor) or isinstance(value, DTensor) or value.shape != parameter.shape:
        return value
    mesh, placements = parameter.device_mesh, parameter.placements
    parts, rank = value.chunk(mesh.size()), mesh.get_local_rank()
    part = parts[rank] if rank < len(parts) else value[:0]
    part = part.to(parameter.device, copy=True, memory_format=torch.contiguous_format)
    return DTensor.from_local(part, mesh, placements, run_check=False, shape=value.shape, stride=value.stride())


def resharded(state: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """An optimizer's whole `state`, with each tensor of a parameter's shape sharded as that parameter."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    entries = {
        number: {name: like(v, parameters[number]) if torch.is_tensor(v) else v for name, v in entry.items()}
        for number, entry in state["state"].items()
    }
    return {**state, "state": entries}
