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


@pytest.fixture(scope="module")
def done(tmp_path_factory, tiny_base, talk) -> dict[tuple[str, str], Path]:
    """The folders of each stage run at one go, and killed after step 5 and gone on with; forks of one process."""
    pytest.importorskip("bitsandbytes")
    root = tmp_path_factory.mktemp("tuning")
    inputs = {"base": str(tiny_base.path), "talk": str(talk)}

    def spec(stage: str, name: str) -> dict:
        settings, folder = {**CONFIG, **STAGES[stage]}, root / f"{stage}-{name}"
        folder.mkdir(exist_ok=True)
        return {"use": settings.pop("use"), "config": settings, "inputs": inputs, "folder": str(folder)}

    specs = []
    for stage in STAGES:
        killed = spec(stage, "killed")
        specs += [spec(stage, "straight"), {**killed, "kill": {"step": 5}}, killed]
    ran = subprocess.run([sys.executable, KILLABLE, *map(json.dumps, specs)], capture_output=True, text=True)
    assert json.loads(ran.stdout.splitlines()[-1]) == [0, -signal.SIGKILL, 0] * len(STAGES), ran.stderr[-6000:]
    return {(stage, name): root / f"{stage}-{name}" for stage in STAGES for name in ("straight", "killed")}


def rows_of(folder: Path) -> list[dict]:
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "tokens_per_second"} for row in rows]


@pytest.mark.parametrize("stage", STAGES)
def test_killed_and_resumed_equals_straight(done, stage):
    straight, killed = done[stage, "straight"], done[stage, "killed"]
    assert rows_of(killed) == rows_of(straight)
    assert len(rows_of(straight)) == 8
    assert folder_files(killed / "payload") == folder_files(straight / "payload")
