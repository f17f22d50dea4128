"""Two processes fine-tune, align and judge as one does, whatever is sharded; gloo on the CPU.

All runs are forks of one process that has the libraries imported: what takes time is the imports.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from recipe_runner.identity import folder_files

pytestmark = pytest.mark.slow

KILLABLE = Path(__file__).with_name("killable.py")
COMMON = {
    "model": "base", "corpus": "talk", "batch_size": 4, "sequence_length": 64, "budget": {"steps": 8},
    "optimizer": {"use": "adamw", "lr": 1e-3}, "schedule": "cosine", "max_dropped": 0.02,
}  # fmt: skip
EXECUTION = {"device": "cpu", "threads": 1, "checkpoint_every": 4, "micro_batch": 2}
TUNED = {"evaluation": {"every": 4, "samples": 1, "sample_tokens": 3}, "forgetting": {"text": "none", "samples": 0}}
QLORA = {"use": "qlora", "r": 4, "method": "dora"}
GRPO = {
    "use": "grpo", "rewards": {"ended": {"use": "length", "at_most": 1000}}, "max_new_tokens": 24, "group": 8,
    "temperature": 5.0, "samples": 0, "beta": 0.5, "optimizer": {"use": "adamw", "lr": 1e-3}, "budget": {"steps": 4},
}  # fmt: skip
LONG = {**TUNED, "budget": {"steps": 20}}
STAGES = {
    "sft": {"use": "sft", **LONG},
    "lora": {"use": "lora", "adapter": {"use": "lora", "r": 4, "rows": "turn-tokens"}, **LONG},
    "qlora": {
        "use": "lora", "adapter": QLORA, "precision": "bf16", "gradient_checkpointing": True, **TUNED,
        "optimizer": {"use": "paged-adamw-8bit", "lr": 1e-3},
    },
    "dpo": {"use": "preference", "adapter": {"use": "lora", "r": 4}, "samples": 0},
    "kto": {"use": "preference", "objective": "kto", "precision": "bf16", "samples": 0},
    "reward": {"use": "reward"},
    "reward-lora": {"use": "reward", "adapter": {"use": "lora", "r": 4}, "precision": "bf16"},
    "grpo": {**GRPO, "adapter": {"use": "lora", "r": 4}},
    "grpo-full": GRPO,
    "continued": {"use": "pretrain", "corpus": "text", "adapter": {"use": "lora", "r": 4}},
}  # fmt: skip
MEASURED = ("answers", "forgetting", "preference", "reward", "grpo", "bits_per_byte")
ONE, DDP, ZERO3 = {}, {"processes": 2}, {"processes": 2, "strategy": "fsdp", "shard": "all"}
ZERO2 = {"processes": 2, "strategy": "fsdp", "shard": "optimizer-and-gradients"}
WAYS = {
    "sft": {"one": ONE, "ddp": DDP, "zero2": ZERO2, "zero3": ZERO3},
    "lora": {"one": ONE, "ddp": DDP, "zero3": ZERO3},
    "qlora": {"one": ONE, "zero3": ZERO3},
    "dpo": {"one": ONE, "zero3": ZERO3},
    "kto": {"one": ONE, "ddp": DDP, "zero3": ZERO3},
    "reward": {"one": ONE, "ddp": DDP, "zero3": ZERO3},
    "reward-lora": {"one": ONE, "zero3": ZERO3},
    "grpo": {"one": ONE, "ddp": DDP, "zero2": ZERO2},
    "grpo-full": {"one": ONE, "zero3": ZERO3},
    "continued": {"one": ONE, "zero3": ZERO3},
}
KILLED = [("sft", "zero2"), ("qlora", "zero3")]
RUNS = [(stage, way) for stage, ways in WAYS.items() for way in ways]


@pytest.fixture(scope="module")
def done(tmp_path_factory, tiny_base, talk, tiny_corpus) -> dict[tuple[str, str, str], Path]:
    """The folders of all runs, and of those that are killed after step 6 and gone on with."""
    pytest.importorskip("bitsandbytes")
    root = tmp_path_factory.mktemp("runs")
    inputs = {"base": str(tiny_base.path), "talk": str(talk), "text": str(tiny_corpus.path)}

    def spec(stage: str, way: str, name: str) -> dict:
        execution = WAYS[stage][way]
        settings = {**COMMON, **STAGES[stage], "execution": {**EXECUTION, **execution}}
        if stage == "sft" and way == "zero2":
            settings["chunked_loss"] = "on"
        if settings["use"] == "pretrain":
            del settings["max_dropped"]  # of text nothing is
        use, folder = settings.pop("use"), root / f"{stage}-{way}-{name}"
        folder.mkdir(exist_ok=True)
        processes = execution.get("processes", 1)
        return {"use": use, "config": settings, "inputs": inputs, "folder": str(folder), "processes": processes}

    specs = [spec(*run, "straight") for run in RUNS]
    for run in KILLED:
        specs += [{**spec(*run, "killed"), "kill": {"step": 6}}, spec(*run, "killed")]
    ran = subprocess.run([sys.executable, KILLABLE, *map(json.dumps, specs)], capture_output=True, text=True)
    expected = [0] * len(RUNS) + [-signal.SIGKILL, 0] * len(KILLED)
    assert json.loads(ran.stdout.splitlines()[-1]) == expected, ran.stderr[-6000:]
    folders = {(*run, "straight"): root / "-".join((*run, "straight")) for run in RUNS}
    return folders | {(*run, "killed"): root / "-".join((*run, "killed")) for run in KILLED}


def rows(folder: Path) -> list[dict]:
    found = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "tokens_per_second"} for row in found]


def facts(folder: Path) -> dict[str, float]:
    """All numbers that were measured on held-out data."""
    noted = json.loads((folder / "facts-0.json").read_text())
    return dict(numbers({key: noted[key] for key in MEASURED if key in noted}))


def numbers(value: dict, before: str = "") -> Iterator[tuple[str, float]]:
    for key, entry in value.items():
        yield from numbers(entry, f"{before}{key}.") if isinstance(entry, dict) else [(before + key, entry)]


def weights(folder: Path) -> dict:
    from safetensors.torch import load_file

    return load_file(next((folder / "payload").glob("*model.safetensors")))


@pytest.mark.parametrize(("stage", "way"), [run for run in RUNS if run[1] != "one"])
def test_two_processes_train_as_one(done, stage, way):
    one, two = done[stage, "one", "straight"], done[stage, way, "straight"]
    for single, double in zip(rows(one), rows(two), strict=True):
        assert double["loss"] == pytest.approx(single["loss"], rel=1e-5, abs=1e-6)
        assert double == pytest.approx(single, rel=1e-4, abs=1e-6)
    measured, again = facts(one), facts(two)
    assert again == pytest.approx(measured, rel=1e-4, abs=1e-5)
    assert len(measured) > 1
    single, double = weights(one), weights(two)
    assert single.keys() == double.keys()
    assert all((double[name] - tensor).abs().max() < 1e-5 for name, tensor in single.items())


@pytest.mark.parametrize(("stage", "way"), [run for run in RUNS if run[1].startswith("zero")])
def test_what_is_sharded_is_really_held_in_parts(done, stage, way):
    """Frozen and packed weights too; an optimizer's state is that of a shard."""
    shares = [json.loads((done[stage, way, "straight"] / f"facts-{rank}.json").read_text()) for rank in (0, 1)]
    held = [share["sharded"]["parameters_here"] for share in shares]
    assert max(held) < 0.6 * sum(held)
    if stage != "qlora":  # whose packed weights are fewer than they stand for
        assert sum(held) == shares[0]["parameters"]


@pytest.mark.parametrize(("stage", "way"), KILLED)
def test_sharded_and_killed_goes_on_exactly(done, stage, way):
    straight, killed = done[stage, way, "straight"], done[stage, way, "killed"]
    assert rows(killed) == rows(straight)
    assert folder_files(killed / "payload") == folder_files(straight / "payload")
