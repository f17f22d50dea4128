"""How long the command line takes to start, beside what it cannot do without, in the same run.

    python tests/benchmarks/startup.py

prints one line a measurement and the two ratios; exits 1 if a goal is missed. Goals: `recipe --help` at most 1.5 times
a bare typer app with one command; `recipe check` at most 2 times the bare imports of typer, pluggy, omegaconf and
pydantic (of the one class that each is for: pydantic imports itself on first use). The runs are taken in turns and the
medians compared, so that a busy machine slows both sides.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

RECIPE = "schema: 1\nname: s\nstages:\n  data: {use: toy-corpus}\n  base: {use: toy-train, corpus: data, rule: times}\n"
BARE_IMPORTS = """
from omegaconf import OmegaConf
from pluggy import PluginManager
from pydantic import BaseModel
from typer import Typer
"""
BARE_APP = """
import sys, typer
app = typer.Typer(rich_markup_mode=None)
@app.command()
def run(recipe: str): ...
@app.callback()
def options(): ...
app(args=["--help"])
"""
OURS = "import sys; from recipe_runner.cli import main; sys.exit(main(sys.argv[1:]))"
COMMANDS = {
    "bare typer app, --help": ("-c", BARE_APP),
    "recipe --help": ("-c", OURS, "--help"),
    "bare imports": ("-c", BARE_IMPORTS),
    "recipe check": ("-c", OURS, "check", "s.yaml"),
}
GOALS = [("recipe --help", "bare typer app, --help", 1.5), ("recipe check", "bare imports", 2.0)]


def measure(rounds: int) -> dict[str, float]:
    """The median wall time of each command in seconds."""
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1] / "toy")}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "s.yaml").write_text(RECIPE)
        for _ in range(rounds + 1):
            for name, words in COMMANDS.items():
                started = time.perf_counter()
                subprocess.run([sys.executable, *words], cwd=folder, env=environment, check=True, capture_output=True)
                times[name].append(time.perf_counter() - started)
    return {name: median(found[1:]) for name, found in times.items()}  # the first round fills the caches


def main(rounds: int = 15) -> int:
    """Print the measurements; 1 if a goal is missed."""
    found = measure(rounds)
    for name, seconds in found.items():
        print(f"{name:<24} {seconds * 1000:6.0f} ms")
    missed = 0
    for name, beside, goal in GOALS:
        ratio = found[name] / found[beside]
        missed += ratio > goal
        print(f"{name:<24} {ratio:6.2f} x {beside} (goal {goal})")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
