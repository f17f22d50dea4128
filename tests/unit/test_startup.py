"""Nobody pays for what they do not use: what each command imports, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TOY = Path(__file__).resolve().parents[1] / "toy"
HEAVY = ("torch", "transformers", "datasets", "peft", "trl", "numpy")
PLUGINS = ("recipe_plugins", "recipe_toy", "pluggy")


def imported(folder: Path, *words: str) -> set[str]:
    """The modules that `recipe WORDS` has loaded when it is done."""
    code = (
        "import sys\nfrom recipe_runner.cli import main\n"
        "try: code = main(sys.argv[1:])\nexcept SystemExit as leaving: code = leaving.code\n"
        "open('modules', 'w').write(' '.join(sys.modules)); sys.exit(code)"
    )
    environment = {**os.environ, "PYTHONPATH": str(TOY)}
    done = subprocess.run([sys.executable, "-c", code, *words], cwd=folder, env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    return set((folder / "modules").read_text().split())


@pytest.mark.parametrize("words", [["--help"], ["--version"]], ids=" ".join)
def test_help_loads_no_plugin_and_no_library(tmp_path: Path, words: list[str]):
    assert not imported(tmp_path, *words) & {*HEAVY, *PLUGINS, "pydantic", "omegaconf", "yaml"}


@pytest.mark.parametrize("words", [["run", "--help"], ["plugins", "--help"]], ids=" ".join)
def test_help_of_a_command_loads_no_plugin(tmp_path: Path, words: list[str]):
    """typer itself may import pydantic once a command has options."""
    assert not imported(tmp_path, *words) & {*HEAVY, *PLUGINS, "omegaconf", "yaml"}


@pytest.mark.parametrize(
    "words",
    [["check", "toy.yaml"], ["plan", "toy.yaml"], ["show", "toy.yaml", "--resolved"], ["schema"], ["plugins", "list"],
     ["runs"], ["init", "mine", "--from", "toy.yaml"]],
    ids=" ".join,
)  # fmt: skip
def test_what_only_reads_imports_nothing_heavy(here: Path, words: list[str]):
    assert not imported(here, *words) & set(HEAVY)


def test_a_run_s_parent_imports_nothing_heavy(here: Path):
    assert not imported(here, "run", "toy.yaml") & set(HEAVY)


def test_the_public_api_is_lazy(tmp_path: Path):
    code = "import recipe_runner, sys; assert not {'pydantic', 'pluggy'} & set(sys.modules); recipe_runner.Config"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_check_of_what_the_built_ins_have_no_part_in_imports_nothing_of_theirs(here: Path):
    """But the launcher's settings, which every stage has."""
    loaded = {name for name in imported(here, "check", "toy.yaml") if name.startswith("recipe_plugins.")}
    assert not loaded & {"recipe_plugins.hints", "recipe_plugins.missing", "recipe_plugins.training"}


def test_check_of_the_shipped_recipe_imports_nothing_heavy(tmp_path: Path):
    """Nor what filters do: their settings alone are looked at."""
    assert not imported(tmp_path, "check", "tiny") & {*HEAVY, "recipe_plugins.filters.text"}
