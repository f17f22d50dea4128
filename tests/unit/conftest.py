"""The toy plugin, a recipe in a folder, and runs of it: in this process, or as the command that a test can kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from recipe_runner.cli import main
from recipe_runner.components import Use
from recipe_runner.contract import Event
from recipe_runner.plugins import Plugins, discover, installed, load
from recipe_runner.recipe import Recipe
from recipe_runner.recipe import load as load_recipe
from recipe_runner.run import Options, Run
from recipe_runner.store import Store
from recipe_runner.testing.local import slot

TOY = str(Path(__file__).parents[1] / "toy")
TOY_RECIPE = """\
schema: 1
name: toy
seed: 7
vars: {n: 20}
stages:
  data: {use: toy-corpus, words: [a, b]}
  base:
    use: toy-train
    corpus: data
    steps: ${vars.n}
    rule: {use: times, by: 1.5}
  tuned: {use: toy-train, model: base}
"""
HEAD = "schema: 1\nname: t\nstages:\n"


@pytest.fixture(scope="session", autouse=True)
def toy_path() -> Iterator[None]:
    """Child processes see the toy plugin; this one, where it asks for `plugins`."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([TOY, *([before] if before else [])])
    yield
    os.environ.pop("PYTHONPATH") if before is None else os.environ.update(PYTHONPATH=before)


@pytest.fixture(scope="session")
def plugins() -> Plugins:
    """The installed plugins and the toy."""
    sys.path.insert(0, TOY)
    try:
        return load(discover())
    finally:
        sys.path.remove(TOY)


@pytest.fixture
def toy(plugins: Plugins) -> Callable[..., Use]:
    """`toy(steps=3)`: a configured toy stage; `kind` and `use` may be others."""

    def make(kind: str = "stage", use: str = "toy-train", **config: object) -> Use:
        return slot(kind, {"use": use, **config}, plugins=plugins)

    return make


class Bench:
    """A folder with a recipe and a store."""

    def __init__(self, folder: Path, plugins: Plugins) -> None:
        self.folder, self.plugins = folder, plugins
        self.recipe, self.store = folder / "recipe.yaml", Store(folder / "store")
        self.events: list[Event] = []

    def write(self, stages: str, head: str = HEAD) -> Bench:
        """The recipe's stages, as YAML lines."""
        self.recipe.write_text(head + stages, encoding="utf-8")
        return self

    def load(self, *overrides: str) -> Recipe:
        """The recipe, validated."""
        return load_recipe(str(self.recipe), overrides, plugins=self.plugins)

    def run(self, *overrides: str, **options: object) -> Run:
        """Run it in this process; `events` are those of the last run."""
        self.events = []
        self.last = Run(self.load(*overrides), self.store, self.plugins, Options(**options), [self.events.append])
        self.last.execute()
        return self.last

    def statuses(self, *overrides: str, **options: object) -> dict[str, str]:
        """What became of each stage."""
        return {name: result.status for name, result in self.run(*overrides, **options).results.items()}

    def told(self, kind: str) -> list[Event]:
        """The events of a kind in the last run."""
        return [event for event in self.events if event.kind == kind]

    def artifact(self, stage: str) -> Path:
        """Where the last run's artifact lies."""
        return self.last.made[stage].path

    def manifest(self, stage: str) -> dict[str, Any]:
        """The manifest of the last run's artifact."""
        return json.loads((self.artifact(stage) / "manifest.json").read_text())

    def steps(self, folder: Path) -> list[int]:
        """The steps that a folder's metrics have."""
        return [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]

    def partial(self) -> Path:
        """The one partial folder there is."""
        (found,) = self.store.root.glob("artifacts/*/*.partial")
        return found

    @staticmethod
    def alive(pid: int) -> bool:
        """Whether a process is there and is no zombie."""
        return alive(pid)

    @staticmethod
    def wait_for(condition: Callable[[], object], process: subprocess.Popen[str] | None = None) -> Any:
        """The first truthy answer; fails after 20 s, or when the process ends before."""
        return wait_for(condition, process)

    def start(self, *arguments: str, before: tuple[str, ...] = (), **settings: object) -> subprocess.Popen[str]:
        """The command `recipe run` in a process of its own; `arguments` are overrides and options."""
        command = [sys.executable, "-m", "recipe_runner.cli", *before, "run", str(self.recipe)]
        return subprocess.Popen(
            [*command, *arguments, "--store", str(self.store.root)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=self.folder, **settings,
        )  # fmt: skip

    def held(self, *arguments: str, step: int = 7, **settings: object) -> Held:
        """The command, once its worker holds still at a step."""
        parent = self.start(*arguments, f"stages.train.hold_at={step}", **settings)
        found = wait_for(lambda: next(self.store.root.glob("artifacts/*/*.partial/holding"), None), parent)
        return Held(parent, found, int(wait_for(lambda: found.read_text(), parent)))


class Held:
    """A run that holds still: the command, the file whose removal lets it go on, the worker's process id."""

    def __init__(self, parent: subprocess.Popen[str], file: Path, worker: int) -> None:
        self.parent, self.file, self.worker = parent, file, worker

    def kill(self, *who: str) -> None:
        """SIGKILL the parent, the worker or both, and wait until neither is there."""
        for name in who:
            os.kill(self.parent.pid if name == "parent" else self.worker, signal.SIGKILL)
        self.parent.communicate(timeout=20)
        wait_for(lambda: not alive(self.worker))
        self.file.unlink(missing_ok=True)


def alive(pid: int) -> bool:
    """Whether a process is there and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        if sys.platform == "linux":
            return False
    return subprocess.run(["ps", "-p", str(pid)], capture_output=True).returncode == 0


def wait_for(condition: Callable[[], object], process: subprocess.Popen[str] | None = None, seconds: float = 20):
    """The first truthy answer; fails after some seconds, or when the process ends before."""
    until = time.monotonic() + seconds
    while not (found := condition()):
        if process is not None and process.poll() is not None:
            raise AssertionError(f"ended with {process.returncode}: {process.communicate()}")
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.01)
    return found


@pytest.fixture(scope="session")
def benches(tmp_path_factory: pytest.TempPathFactory, plugins: Plugins) -> Callable[[], Bench]:
    """`benches()`: a bench in a fresh folder, for fixtures that tests share."""
    return lambda: Bench(tmp_path_factory.mktemp("bench"), plugins)


@pytest.fixture
def bench(tmp_path: Path, plugins: Plugins) -> Bench:
    """A bench in a fresh folder."""
    return Bench(tmp_path, plugins)


@dataclass(frozen=True)
class Said:
    """What a command answered."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The facts on stdout, which hold nothing else."""
        return json.loads(self.out)


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A folder with `toy.yaml`, a recipe of three stages, to give commands in."""
    (tmp_path / "toy.yaml").write_text(TOY_RECIPE, encoding="utf-8")
    return tmp_path


@pytest.fixture(scope="session")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the recipe of `here` has been run, for tests that only look."""
    folder = tmp_path_factory.mktemp("done")
    (folder / "toy.yaml").write_text(TOY_RECIPE, encoding="utf-8")
    subprocess.run([sys.executable, "-m", "recipe_runner.cli", "run", "toy.yaml"], cwd=folder, check=True)
    return folder


@pytest.fixture
def recipe(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., Said]]:
    """`recipe("run", "toy.yaml")`: the command line, given `here` in this process, with the toy plugin installed."""
    monkeypatch.chdir(here)
    monkeypatch.syspath_prepend(TOY)

    def call(*words: str) -> Said:
        capsys.readouterr()
        try:
            code = main(list(words))
        except SystemExit as leaving:
            code = int(leaving.code or 0)
        return Said(code, *capsys.readouterr())

    installed.cache_clear()
    yield call
    installed.cache_clear()
