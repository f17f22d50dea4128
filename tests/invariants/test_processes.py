"""Two processes train what one does, whatever is sharded; gloo on the CPU."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

KILLABLE = Path(__file__).with_name("killable.py")
IN_SHARDS = Path(__file__).with_name("in_shards.py")
STEPS = 20


ASKED = """
import os, sys, torch
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM
from recipe_plugins.training import sharding
from recipe_runner import ExecutionConfig
from recipe_runner.testing import LocalContext

torch.set_num_threads(1)
torch.manual_seed(0)
sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
model = LlamaForCausalLM(LlamaConfig(vocab_size=64, **sizes)).eval()
ids = torch.arange(8)[None]
ctx = LocalContext(Path(sys.argv[1]), rank=int(os.environ["RANK"]), world_size=2)
execution = ExecutionConfig(device="cpu", processes=2, strategy="fsdp")
with torch.no_grad(), sharding.asked(ctx, execution, model) as there:
    assert there is not model and sharding.is_sharded(there)
    assert sharding.held(there) < 0.6 * model.num_parameters()
    torch.testing.assert_close(there(ids).logits, model(ids).logits)
assert not sharding.is_sharded(model)
assert sharding.home(ctx, execution) == torch.device("cpu")
one = ExecutionConfig(device="cpu")
with sharding.asked(ctx, one, model) as there:
    assert there is model
"""
"""Asserts in each of two ranks that a model that is to be sharded is never asked whole."""


def ranks(spec: dict, count: int, **kill) -> list[int]:
    """Run the stage of `spec` on so many ranks; their exit statuses."""
    return started([sys.executable, KILLABLE, json.dumps({**spec, "kill": kill})], count)


def started(command: list, count: int) -> list[int]:
    """Run a command as so many ranks; their exit statuses."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = {**os.environ, "WORLD_SIZE": str(count)}
    if count > 1:
        shared |= {"LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    processes = []
    for rank in map(str, range(count)):
        own = {"RANK": rank, **({"LOCAL_RANK": rank} if count > 1 else {})}
        processes.append(subprocess.Popen(command, env={**shared, **own}))
    return [process.wait(timeout=300) for process in processes]


def rows(folder: Path) -> list[dict]:
    found = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "tokens_per_second"} for row in found]


def facts(folder: Path, rank: int) -> dict:
    return json.loads((folder / f"facts-{rank}.json").read_text())


def weights(folder: Path) -> dict:
    from safetensors.torch import load_file

    return load_file(folder / "payload" / "model.safetensors")


@pytest.fixture(scope="module")
def training(tmp_path_factory, tiny_corpus, tiny_tokeniser, pretraining):
    """Makes specs of one pretraining, by how it is executed."""

    def spec(name: str, chunked_loss: str = "off", **execution) -> dict:
        inputs = {"corpus": str(tiny_corpus.path), "tokeniser": str(tiny_tokeniser.path)}
        threads = {"device": "cpu", "threads": 1, "checkpoint_every": 8, "micro_batch": 2, **execution}
        evaluation = {"every": 10, "samples": 1, "sample_tokens": 3}
        config = pretraining(
            budget={"steps": STEPS}, execution=threads, chunked_loss=chunked_loss, evaluation=evaluation
        )
        folder = tmp_path_factory.mktemp(name)
        return {"use": "pretrain", "config": config, "inputs": inputs, "folder": str(folder)}

    return spec


@pytest.fixture(scope="module")
def trained(training):
    """The folder of a run in one of `WAYS`, run once."""
    done: dict[str, Path] = {}

    def run(way: str) -> Path:
        if way not in done:
            spec, count = training(way, **WAYS[way]), 1 if way == "alone" else 2
            assert ranks(spec, count) == [0] * count
            done[way] = Path(spec["folder"])
        return done[way]

    return run


WAYS = {
    "alone": {},
    "ddp": {"strategy": "ddp", "chunked_loss": "on"},
    "zero2": {"strategy": "fsdp", "shard": "optimizer-and-gradients"},
    "zero3": {"strategy": "fsdp", "shard": "all", "chunked_loss": "on"},
}


@pytest.mark.parametrize("way", [way for way in WAYS if way != "alone"])
def test_two_processes_train_as_one(trained, way):
    alone, folder = trained("alone"), trained(way)
    for single, double in zip(rows(alone), rows(folder), strict=True):
        assert double == pytest.approx(single, rel=1e-5)
    single, double = weights(alone), weights(folder)
    assert all((double[name] - tensor).abs().max() < 1e-4 for name, tensor in single.items())
    if way != "ddp":
        parameters = facts(folder, 0)["parameters"]
        shares = [facts(folder, rank)["sharded"]["parameters_here"] for rank in (0, 1)]
        assert sum(shares) == parameters
        assert max(shares) < 0.6 * parameters
    assert facts(folder, 0)["bits_per_byte"] == pytest.approx(facts(alone, 0)["bits_per_byte"], rel=1e-4)


def test_a_model_that_is_to_be_sharded_is_asked_in_shards(tmp_path):
    assert started([sys.executable, "-c", ASKED, str(tmp_path)], 2) == [0, 0]


def test_what_each_rank_holds_is_stepped_saved_and_let_go(tmp_path):
    held = [
        "muon_steps_sharded_experts",
        "moments_of_8_bits_are_those_of_one_process",
        "no_rank_holds_the_whole",
        "ranks_that_round_differently_say_the_same",
        "shards_that_are_done_are_let_go",
        "ranks_that_see_other_checkpoints_do_not_go_on",
    ]
    assert started([sys.executable, IN_SHARDS, *held], 2) == [0, 0]


def test_sharded_and_killed_goes_on_exactly_and_its_state_is_whole(training, trained):
    alone, straight = trained("alone"), trained("zero3")
    killed = training("killed", **WAYS["zero3"])
    assert ranks(killed, 2, step=11)[0] != 0
    assert ranks(killed, 2) == [0, 0]
    assert rows(Path(killed["folder"])) == rows(straight)
    one, other = weights(Path(killed["folder"])), weights(straight)
    assert all((other[name] == tensor).all() for name, tensor in one.items())
    state = Path(killed["folder"]) / "work" / "checkpoints" / "step-16"
    whole = alone / "work" / "checkpoints" / "step-16"
    import torch
    from safetensors.torch import load_file

    shapes = [{name: t.shape for name, t in load_file(p / "trained.safetensors").items()} for p in (state, whole)]
    assert shapes[0] == shapes[1]
    saved, single = (torch.load(p / "optimizer.pt", weights_only=True)["optimizer"]["state"] for p in (state, whole))
    for number, entry in single.items():
        torch.testing.assert_close(saved[number]["exp_avg"], entry["exp_avg"], rtol=1e-3, atol=1e-5)
