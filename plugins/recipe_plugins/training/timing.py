"""How long a step takes here, for a budget in minutes: measured once on a few real steps, which are then undone.

Forward, backward and optimizer are timed in the recipe's precision; evaluation, checkpoints and what ranks tell each
other are not, so a run can take longer than it was given. What is measured decides how long is trained: another run may
measure something else, which is why such a budget is outside the promise of equal results.
"""

from __future__ import annotations

import statistics
import time

import torch
from transformers import PreTrainedModel

from recipe_plugins.training import checkpoints
from recipe_plugins.training.config import LoopConfig, micro_batch
from recipe_plugins.training.groups import param_groups
from recipe_plugins.training.losses import summed_loss
from recipe_plugins.training.machine import device
from recipe_plugins.training.order import Rows, stack
from recipe_runner import Optimizer, Use

UNTIMED, TIMED = 2, 5
"""Steps before those that are timed, and those."""


def seconds_per_step(
    config: LoopConfig, model: PreTrainedModel, rows: Rows, optimizer: Use[Optimizer], world_size: int
) -> float:
    """The median time of a step of this rank. `model` is left as it was, on the device of the run."""
    place = device(config.execution)
    model.to(place)  # type: ignore[arg-type]
    generators = checkpoints.rng_state()
    before = {name: parameter.detach().cpu().clone() for name, parameter in checkpoints.trained(model).items()}
    made = optimizer.build().build(param_groups(model))
    times = []
    for number in range(UNTIMED + TIMED):
        begun = time.perf_counter()
        _step(config, model, rows, made, number, world_size)
        if place.type == "cuda":
            torch.cuda.synchronize(place)
        times.append(time.perf_counter() - begun)
    with torch.no_grad():
        for name, parameter in checkpoints.trained(model).items():
            parameter.copy_(before[name])
            parameter.grad = None
    checkpoints.set_rng_state(generators)
    return statistics.median(times[UNTIMED:])


def _step(
    config: LoopConfig, model: PreTrainedModel, rows: Rows, optimizer: torch.optim.Optimizer, number: int, ranks: int
) -> None:
    at_once, accumulation = micro_batch(config, ranks)
    model.train()
    for part in range(accumulation):
        first = (number * accumulation + part) * at_once
        batch = stack([rows[(first + row) % len(rows)] for row in range(at_once)])
        batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
        labels = batch.pop("labels")
        with torch.autocast(model.device.type, torch.bfloat16, enabled=config.precision != "fp32"):
            logits = model(**batch, use_cache=False).logits
        summed_loss(logits, labels).div(config.tokens_per_step).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm or float("inf"))
    optimizer.step()
    optimizer.zero_grad()
