"""The shipped recipes, run once for all tests: `tiny` and what extends it share one store, as a user's would."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def call(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command `recipe`, in a process of its own."""
    command = [sys.executable, "-m", "recipe_runner.cli", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.fixture(scope="session")
def recipe() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Calls the command `recipe`."""
    return call


@dataclass
class Ran:
    """A recipe after its run: the artifact's folder, and the manifest, of each stage."""

    name: str
    store: Path

    def run(self, number: int = -1) -> dict:
        """`run.json` of one of its runs; the newest, unless told otherwise."""
        folder = sorted((self.store / "runs" / self.name).iterdir())[number]
        return json.loads((folder / "run.json").read_text(encoding="utf-8"))

    def folder(self, stage: str) -> Path:
        return Path(self.run()["stages"][stage]["path"])

    def manifest(self, stage: str) -> dict:
        return json.loads((self.folder(stage) / "manifest.json").read_text(encoding="utf-8"))

    def results(self) -> dict:
        return json.loads((self.folder("evaluation") / "payload" / "results.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One store for all tiny recipes, so that the base is paid for once: only `test_shipped.py` may use it, since
    `pytest -n 2 --dist loadfile` gives each file to one process."""
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="session")
def ran(store: Path) -> Callable[[str], Ran]:
    """Runs a shipped recipe in the common store; its own `expect:` is part of what must hold.

    On one thread, so that what runs beside it in the other process does not slow both down.
    """

    def run(name: str) -> Ran:
        done = call("run", f"recipes/{name}.yaml", "execution.threads=1", "--store", str(store))
        assert done.returncode == 0, done.stderr[-4000:]
        return Ran(name, store)

    return run


@pytest.fixture(scope="session")
def tiny(ran: Callable[[str], Ran]) -> Ran:
    """`recipes/tiny.yaml`, run from raw text to the evaluation."""
    return ran("tiny")
