"""A killed run that is resumed is the run that was never killed, bit for bit (fp32 and bf16, CPU, equal threads)."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from recipe_runner.identity import folder_files

KILLABLE = Path(__file__).with_name("killable.py")


def run(spec: dict, **kill) -> tuple[int, list[dict]]:
    """Run the stage of `spec` in a process; its exit status and metrics, without the ones that time."""
    command = [sys.executable, KILLABLE, json.dumps({**spec, "kill": kill})]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode not in (0, -signal.SIGKILL):
        print(done.stderr[-3000:])
    return done.returncode, rows_of(spec)


def rows_of(spec: dict) -> list[dict]:
    rows = [json.loads(line) for line in (Path(spec["folder"]) / "rows.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "tokens_per_second"} for row in rows]


@pytest.fixture
def pretrain(tmp_path, tiny_corpus, tiny_tokeniser, pretraining):
    """Makes specs of one pretraining in different folders."""

    def spec(name: str, **changes) -> dict:
        inputs = {"corpus": str(tiny_corpus.path), "tokeniser": str(tiny_tokeniser.path)}
        (tmp_path / name).mkdir()
        return {"use": "pretrain", "config": pretraining(**changes), "inputs": inputs, "folder": str(tmp_path / name)}

    return spec


def payload(spec: dict) -> list:
    return folder_files(Path(spec["folder"]) / "payload") + folder_files(Path(spec["folder"]) / "branch")


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_killed_and_resumed_equals_straight(pretrain, precision):
    settings = {"precision": precision, "execution": {"device": "cpu", "threads": 2, "checkpoint_every": 4}}
    straight, killed = pretrain("straight", **settings), pretrain("killed", **settings)
    assert run(straight)[0] == 0
    assert run(killed, step=7)[0] == -signal.SIGKILL  # three steps after the checkpoint of step 4
    status, rows = run(killed, flush=2)  # resumes, dies in the checkpoint of step 12 (its second)
    assert status == -signal.SIGKILL
    assert [row["step"] for row in rows] == list(range(1, 13))
    torn = Path(killed["folder"]) / "work" / "checkpoints" / "step-12"
    assert torn.is_dir()
    assert not (torn / "complete.json").exists()
    status, rows = run(killed)
    assert status == 0
    assert rows == rows_of(straight)
    assert payload(killed) == payload(straight)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_ten_kills_at_random_steps_change_nothing(pretrain, precision):
    steps = 40
    moments = sorted(random.Random(precision).sample(range(2, steps), 10))
    execution = {"device": "cpu", "threads": 2, "checkpoint_every": 3}
    settings = {"budget": {"steps": steps}, "precision": precision, "execution": execution}
    straight, killed = pretrain("straight", **settings), pretrain("killed", **settings)
    attempts = [{**killed, "kill": {"step": step}} for step in moments]
    command = [sys.executable, KILLABLE, *map(json.dumps, [straight, *attempts, killed])]
    done = subprocess.run(command, capture_output=True, text=True)
    assert json.loads(done.stdout.splitlines()[-1]) == [0, *[-signal.SIGKILL] * 10, 0], done.stderr[-3000:]
    assert rows_of(killed) == rows_of(straight)
    assert len(rows_of(straight)) == steps
    assert payload(killed) == payload(straight)


@pytest.mark.slow
def test_killed_annealing_equals_straight(tmp_path, tiny_corpus, tiny_base, annealing):
    config = annealing()
    inputs = {"corpus": str(tiny_corpus.path), "base": str(tiny_base.path)}
    specs = []
    for name in ("straight", "killed"):
        (tmp_path / name).mkdir()
        specs.append({"use": "anneal", "config": config, "inputs": inputs, "folder": str(tmp_path / name)})
    straight, killed = specs
    assert run(straight)[0] == 0
    assert run(killed, step=6)[0] == -signal.SIGKILL
    status, rows = run(killed)
    assert status == 0
    assert rows == rows_of(straight)
    assert folder_files(tmp_path / "killed" / "payload") == folder_files(tmp_path / "straight" / "payload")


@pytest.mark.slow
def test_asked_to_stop_saves_at_once(pretrain):
    straight, stopped = pretrain("straight"), pretrain("stopped")
    run(straight)
    status, rows = run(stopped, stop=6)
    assert status == 1  # Interrupted, which the worker turns into its own exit status
    assert rows[-1]["step"] in (6, 7)
    saved = Path(stopped["folder"]) / "work" / "checkpoints" / f"step-{rows[-1]['step']}"
    assert (saved / "complete.json").exists()
    assert run(stopped) == (0, rows_of(straight))
    assert payload(stopped) == payload(straight)
