"""Fine-tuning resumes exactly, with all that a 7 B recipe sets too, and on several ranks it is fine-tuning on one."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from recipe_runner.identity import folder_files

pytestmark = pytest.mark.slow
KILLABLE = Path(__file__).with_name("killable.py")
CONFIG = {
    "model": "base", "corpus": "corpus", "batch_size": 4, "sequence_length": 64, "budget": {"steps": 8},
    "optimizer": {"use": "adamw", "lr": 1e-2}, "schedule": "cosine", "max_dropped": 0.02,
    "execution": {"device": "cpu", "threads": 1, "checkpoint_every": 3},
}  # fmt: skip
QLORA = {
    "adapter": {"use": "qlora", "r": 4, "dropout": 0.05, "rows": "turn-tokens"},
    "optimizer": {"use": "paged-adamw-8bit", "lr": 1e-2, "betas": [0.9, 0.999], "weight_decay": 0.0},
    "precision": "bf16", "gradient_checkpointing": True, "max_grad_norm": 0.3,
}  # fmt: skip
STAGES = {
    "sft": {"use": "sft"},
    "lora": {"use": "lora", "adapter": {"use": "lora", "r": 4, "dropout": 0.1}},
    "qlora": {"use": "lora", **QLORA},
    "dpo": {"use": "preference", "adapter": {"use": "lora", "r": 4, "dropout": 0.1}},
    "kto": {"use": "preference", "objective": "kto", "optimizer": {"use": "adamw", "lr": 1e-3}},
}


@pytest.fixture(scope="session")
def talk(tmp_path_factory) -> Path:
    """Forty short conversations, none held out."""
    folder = tmp_path_factory.mktemp("talk")
    rows = [{"id": str(n), "text": None, "messages": [
        {"role": "user", "content": f"What comes after {n}?"}, {"role": "assistant", "content": f"{n + 1}."},
    ], "meta": {"preference": {"prompt": 1, "rejected": [{"role": "assistant", "content": f"{n}."}]}}}
        for n in range(40)]  # fmt: skip
    (folder / "payload/train/talk").mkdir(parents=True)
    (folder / "payload/train/talk/0.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shard = {"file": "train/talk/0.jsonl", "documents": 40, "bytes": 1}
    index = {"domains": {"talk": {"train": {"documents": 40, "bytes": 1, "shards": [shard]}}}}
    (folder / "payload/corpus.json").write_text(json.dumps(index))
    (folder / "manifest.json").write_text(json.dumps({"type": "corpus", "facts": {}}))
    return folder


@pytest.fixture
def spec(tmp_path, tiny_base, talk):
    """Makes specs of one stage in different folders."""

    def make(name: str, stage: str, **changes) -> dict:
        if stage == "qlora":
            pytest.importorskip("bitsandbytes")
        (tmp_path / name).mkdir()
        settings = {**CONFIG, **STAGES[stage], **changes}
        use = settings.pop("use")
        inputs = {"base": str(tiny_base.path), "corpus": str(talk)}
        return {"use": use, "config": settings, "inputs": inputs, "folder": str(tmp_path / name)}

    return make


def run(spec: dict, **kill) -> int:
    command = [sys.executable, KILLABLE, json.dumps({**spec, "kill": kill})]
    done = subprocess.run(command, capture_output=True, text=True)
    print(done.stderr[-3000:])
    return done.returncode


def rows_of(spec: dict) -> list[dict]:
    rows = [json.loads(line) for line in (Path(spec["folder"]) / "rows.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "tokens_per_second"} for row in rows]


@pytest.mark.parametrize("stage", ["sft", "lora", "qlora", "dpo"])
def test_killed_and_resumed_equals_straight(spec, stage):
    straight, killed = spec("straight", stage), spec("killed", stage)
    assert run(straight) == 0
    assert run(killed, step=5) == -signal.SIGKILL
    assert run(killed) == 0
    assert rows_of(killed) == rows_of(straight)
    assert len(rows_of(straight)) == 8
    assert folder_files(Path(killed["folder"]) / "payload") == folder_files(Path(straight["folder"]) / "payload")


@pytest.mark.parametrize("stage", ["sft", "lora", "kto"])
def test_two_processes_train_as_one(spec, stage):
    changes = {"adapter": {"use": "lora", "r": 4}} if stage == "lora" else {}  # dropout is drawn on each rank
    one, two = spec("one", stage, **changes), spec("two", stage, **changes)
    assert run(one) == 0
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = {**os.environ, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    command = [sys.executable, KILLABLE, json.dumps(two)]
    ranks = [subprocess.Popen(command, env={**shared, "RANK": rank, "LOCAL_RANK": rank}) for rank in "01"]
    assert [rank.wait(timeout=300) for rank in ranks] == [0, 0]
    for single, double in zip(rows_of(one), rows_of(two), strict=True):
        assert double == pytest.approx(single, rel=1e-4)
