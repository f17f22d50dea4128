"""A recipe that is killed in every stage and run again ends as if nothing had happened.

Parent, worker and both are killed with SIGKILL, at set steps and at one random moment; `recipe run` again gives
payloads
of the same digest and the same logged losses, bit for bit, as a run that was left alone.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
SMALL = [
    "vars.scale=0.03",
    "stages.corpus.sources.docstrings.limit=300kB",
    "stages.corpus.sources.code.limit=300kB",
    "stages.questions.sources.python.limit=60kB",
    "stages.tokeniser.vocab_size=512",
    "execution.checkpoint_every=2",
    "execution.threads=1",
]
STAGES = {"corpus": 0, "base": 5, "annealed": 1, "chat": 3, "adapter": 2}
"""The stages to kill, and the step after which (0: at a random moment)."""


def start(store: Path, until: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "recipe_runner.cli", "run", "recipes/tiny.yaml", *SMALL]
    log = open(store.with_suffix(".log"), "ab")  # noqa: SIM115  (the process's own)
    return subprocess.Popen([*command, "--store", str(store), "--until", until], cwd=ROOT, stdout=log, stderr=log)


def finish(store: Path, until: str) -> None:
    assert start(store, until).wait() == 0, store.with_suffix(".log").read_text()[-4000:]


def steps(store: Path) -> int:
    """The last step that any unfinished stage has logged."""
    rows = [path.read_text().count("\n") for path in store.glob("artifacts/*/*.partial/metrics.jsonl")]
    return max(rows, default=0)


def kill(store: Path, stage: str, after: int, victims: str) -> None:
    """Start the run, wait for its moment, and kill `victims`: parent, worker or both. None of them may live on."""
    parent = start(store, stage)
    deadline = time.monotonic() + 180
    if after:
        while steps(store) < after and parent.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
    else:
        time.sleep(random.uniform(0.5, 3))
    workers = psutil.Process(parent.pid).children(recursive=True) if parent.poll() is None else []
    targets = {"parent": [parent], "worker": workers[:1], "both": [parent, *workers[:1]]}[victims]
    for process in targets:
        process.kill()
    parent.wait()
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert not alive, f"{stage}: orphans live on after the {victims} died"


def outcome(store: Path, use: str) -> list[tuple[str, list[dict]]]:
    """Digests of a stage's artifacts, and what each logged step says but for its speed."""
    found = []
    for folder in sorted((store / "artifacts" / use).iterdir()):
        assert not folder.name.endswith(".partial"), folder
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        kept = [{key: row[key] for key in row if key != "tokens_per_second"} for row in rows]
        found.append((json.loads((folder / "manifest.json").read_text())["digest"], kept))
    return found


def test_a_run_that_was_killed_everywhere_ends_as_one_that_was_left_alone(tmp_path):
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    finish(straight, "adapter")
    for (stage, after), victims in zip(STAGES.items(), ("both", "parent", "worker", "both", "parent"), strict=True):
        kill(killed, stage, after, victims)
        finish(killed, stage)
    for use in ("curation", "tokeniser", "pretrain", "anneal", "sft", "lora"):
        assert outcome(killed, use) == outcome(straight, use), use
