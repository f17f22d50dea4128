"""Fine-tuning resumes exactly, with all that a 7 B recipe sets too."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from recipe_runner.identity import folder_files

pytestmark = pytest.mark.slow
KILLABLE = Path(__file__).with_name("killable.py")
CONFIG = {
    "model": "base", "corpus": "talk", "batch_size": 4, "sequence_length": 64, "budget": {"steps": 8},
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
}


@pytest.fixture
def spec(tmp_path, tiny_base, talk):
    """Makes specs of one stage in different folders."""

    def make(name: str, stage: str, **changes) -> dict:
        if stage == "qlora":
            pytest.importorskip("bitsandbytes")
        (tmp_path / name).mkdir()
        settings = {**CONFIG, **STAGES[stage], **changes}
        use = settings.pop("use")
        inputs = {"base": str(tiny_base.path), "talk": str(talk)}
        return {"use": use, "config": settings, "inputs": inputs, "folder": str(tmp_path / name)}

    return make


def run(*specs: dict) -> list[int]:
    """Run one after another; their exit statuses."""
    done = subprocess.run([sys.executable, KILLABLE, *map(json.dumps, specs)], capture_output=True, text=True)
    print(done.stderr[-3000:])
    return json.loads(done.stdout.splitlines()[-1])


def rows_of(spec: dict) -> list[dict]:
    rows = [json.loads(line) for line in (Path(spec["folder"]) / "rows.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "tokens_per_second"} for row in rows]


@pytest.mark.parametrize("stage", ["sft", "lora", "qlora", "dpo"])
def test_killed_and_resumed_equals_straight(spec, stage):
    straight, killed = spec("straight", stage), spec("killed", stage)
    assert run(straight, {**killed, "kill": {"step": 5}}, killed) == [0, -signal.SIGKILL, 0]
    assert rows_of(killed) == rows_of(straight)
    assert len(rows_of(straight)) == 8
    assert folder_files(Path(killed["folder"]) / "payload") == folder_files(Path(straight["folder"]) / "payload")
