"""What holds of each rank alone, where a model is sharded over several; run by `test_processes.py` on two.

python in_shards.py NAME...    each the name of a function here, which asserts
"""

from __future__ import annotations

import copy
import gc
import os
import sys
import tempfile
import traceback
import weakref
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from torch import distributed
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from recipe_plugins.training import sharding
from recipe_plugins.training.checkpoints import complete, fresh, load
from recipe_plugins.training.generation import Reply, replies
from recipe_plugins.training.groups import param_groups
from recipe_plugins.training.resuming import Resumable
from recipe_runner import ExecutionConfig, RecipeError
from recipe_runner.testing import LocalContext, slot

CPU = torch.device("cpu")
SIZES = {"vocab_size": 131, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 16}
END = 5
WRAPPED = "__bnb_optimizer_quant_state__"


def mixture(experts: int):
    """A small one, where all experts take every token: a choice of some would follow the last bits of a step."""
    torch.manual_seed(0)
    sizes = {"moe_intermediate_size": 64, "num_experts": experts, "num_experts_per_tok": experts}
    model = Qwen3MoeForCausalLM(Qwen3MoeConfig(**SIZES, num_key_value_heads=2, **sizes))
    model.model.layers[0].mlp.gate.requires_grad_(False)
    return model


def stepped(model, optimizer, count: int = 2) -> None:
    """So many steps on text that is the same on every rank, so that the mean of the gradients is each one's."""
    for step in range(count):
        optimizer.zero_grad()
        ids = (torch.arange(32) * (step + 3) % 64)[None]
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        optimizer.step()


def goes_on(use: str, model, folder: Path, **settings):
    """The parameters of `model`, sharded, after four steps, whole; those after a save and a load are asserted equal."""

    def begun(shards):
        return slot("optimizer", {"use": use, **settings}).build().build(param_groups(shards))

    shards = sharding.sharded(model, CPU, 2, "all")
    optimizer = begun(shards)
    stepped(shards, optimizer)
    state, again = sharding.whole(optimizer.state_dict()), copy.deepcopy(model)
    with torch.no_grad():
        for one, other in zip(again.parameters(), shards.parameters(), strict=True):
            one.copy_(sharding.whole(other))
    again = sharding.sharded(again, CPU, 2, "all")
    torch.save(state, folder / f"{distributed.get_rank()}.pt")
    resumed = begun(again)
    resumed.load_state_dict(sharding.resharded(load(folder / f"{distributed.get_rank()}.pt"), resumed))
    stepped(shards, optimizer)
    stepped(again, resumed)
    found = [sharding.whole(parameter) for parameter in shards.parameters()]
    for one, other in zip(found, again.parameters(), strict=True):
        assert torch.equal(one, sharding.whole(other))
    return found, state


def furthest(found, alone, model) -> float:
    """By how much a parameter of `found` is not where it is in `alone`, as a share of its way from `model`."""
    pairs = zip(found, alone.parameters(), model.parameters(), strict=True)
    return max(((a - b).norm() / (b - start).norm()).item() for a, b, start in pairs if b.requires_grad)


def muon_steps_sharded_experts(folder: Path) -> None:
    """More of them on one rank than on the other, and none at all there."""
    for experts in (3, 1):
        model = mixture(experts)
        alone = copy.deepcopy(model)
        optimizer = slot("optimizer", "muon").build().build(param_groups(alone))
        stepped(alone, optimizer)
        stepped(alone, optimizer)
        found, state = goes_on("muon", model, folder)
        assert furthest(found, alone, model) < 0.15  # Newton-Schulz is in bf16
        moments = [entry["momentum_buffer"] for entry in state["state"].values() if "momentum_buffer" in entry]
        assert (experts, 128, 32) in [tuple(moment.shape) for moment in moments]


def moments_of_8_bits_are_those_of_one_process(folder: Path) -> None:
    """But of the two tables, whose shards begin within a block; and each goes on from what the other saved."""
    for use, experts in (("adamw-8bit", 3), ("paged-adamw-8bit", 1)):
        model = mixture(experts)
        alone = copy.deepcopy(model)

        def begun(over, use=use):
            return slot("optimizer", {"use": use, "lr": 0.01}).build().build(param_groups(over))

        optimizer = begun(alone)
        stepped(alone, optimizer)
        state, halfway = copy.deepcopy(optimizer.state_dict()), copy.deepcopy(alone)
        stepped(alone, optimizer)
        found, sharded_state = goes_on(use, model, folder, lr=0.01)
        assert furthest(found, alone, model) < 0.1  # 8 bits round

        kept, own = ([entry[WRAPPED] for entry in one["state"].values()] for one in (sharded_state, state))
        shapes = [tuple(entry["state1"].shape) for entry in kept]
        assert shapes == [tuple(entry["state1"].shape) for entry in own]
        unlike = [shape for shape, one, other in zip(shapes, kept, own, strict=True) if one.keys() != other.keys()]
        assert unlike == [(131, 32)] * 2
        assert sum(entry["state1"].dtype == torch.uint8 for entry in kept) == (2 if experts == 3 else 1)

        one, several = copy.deepcopy(halfway), sharding.sharded(halfway, CPU, 2, "all")
        for there, saved in ((one, sharded_state), (several, state)):
            optimizer = begun(there)
            optimizer.load_state_dict(sharding.resharded(saved, optimizer))
            stepped(there, optimizer)
            moved = [sharding.whole(parameter.detach()) for parameter in there.parameters()]
            assert furthest(moved, alone, halfway) < 0.1


def no_rank_holds_the_whole(folder: Path) -> None:
    """Neither of what is saved, but the one that saves, nor of what is gone on from."""
    model = sharding.sharded(mixture(3), CPU, 2, "all")
    for main in (True, False):
        saved = sharding.to_save({"weights": list(model.parameters())}, main)["weights"]
        assert [tensor is not None for tensor in saved] == [main] * len(saved)
    for parameter in model.parameters():
        part = sharding.like(torch.ones(parameter.shape), parameter).to_local()
        assert part.shape == parameter.to_local().shape
        assert part.untyped_storage().nbytes() == 4 * part.numel()


def ranks_that_round_differently_say_the_same(folder: Path) -> None:
    """Else one would come to an end sooner, and the others would wait for its shards for ever."""
    model = mixture(3).eval()
    rank, given = distributed.get_rank(), []

    def other(module, inputs, output):
        """Of each rank its own logits: rank 0 ends after three tokens, rank 1 would go on."""
        output.logits[:, -1] = 0
        output.logits[:, -1, 7 if rank or len(given) % 4 < 2 else END] = 1
        given.append(rank)
        return output

    shards = sharding.sharded(model, CPU, 2, "all")
    shards.register_forward_hook(other)
    renderer = SimpleNamespace(
        prompt=lambda messages: [1, 2, 3],
        end_of_turn=END,
        tokenizer=SimpleNamespace(eos_token_id=END, decode=lambda ids: " ".join(map(str, ids))),
    )
    assert replies(shards, renderer, [[]], limit=9) == [Reply("7 7", True)]
    assert len(given) == 3


def shards_that_are_done_are_let_go(folder: Path) -> None:
    """Before there are others, though they refer to themselves, and nobody else collects garbage."""
    gc.disable()
    execution = ExecutionConfig(device="cpu", processes=2, strategy="fsdp")
    ctx = LocalContext(folder, rank=distributed.get_rank(), world_size=2)
    model = mixture(3)
    with sharding.asked(ctx, execution, model) as there:
        held = weakref.ref(next(there.parameters()))
    del there
    assert held() is not None
    sharding.sharded(model, CPU, 2, "all")
    assert held() is None


def ranks_that_see_other_checkpoints_do_not_go_on(folder: Path) -> None:
    """As on a node that has another store, or is told late what is in it; the folder is this rank's own."""
    loop, rank = Resumable(), distributed.get_rank()
    loop.job = SimpleNamespace(ctx=LocalContext(folder, rank=rank, world_size=2))
    loop.accelerator = Accelerator(cpu=True)
    if rank:
        complete(fresh(loop.root, 3))
    with pytest.raises(RecipeError, match=r"\[0, 3\], by rank"):
        loop.restore()


def main(names: list[str]) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", timeout=timedelta(seconds=60))
    failed = []
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            try:
                globals()[name](Path(folder))
            except Exception:
                traceback.print_exc()
                failed.append(name)
    sys.stderr.flush()
    os._exit(bool(failed))  # the others' connections end with this process


if __name__ == "__main__":
    main(sys.argv[1:])
