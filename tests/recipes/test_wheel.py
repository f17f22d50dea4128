"""What is shipped: the wheel's contents, and the wheels at work outside the checkout, in a clean environment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "plugin-minimal"

pytestmark = pytest.mark.slow


def build(project: Path, folder: Path) -> Path:
    """The wheel of a project."""
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(folder)]
    subprocess.run([*command, str(project)], check=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's wheel."""
    return build(ROOT, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def clean(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`clean("recipe", "plan", "tiny", cwd=…)`: a command of an environment that has both wheels.

    The libraries are those of this environment, by a path file, so that nothing is downloaded again.
    """
    folder = tmp_path_factory.mktemp("clean")
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    purelib = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        check=True, capture_output=True, text=True,
    ).stdout.strip()  # fmt: skip
    (Path(purelib) / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    wheels = [wheel, build(EXAMPLE, tmp_path_factory.mktemp("example-wheel"))]
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*command, "--force-reinstall", *map(str, wheels)], check=True)

    bare = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}  # which other tests set

    def call(name: str, *words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        done = subprocess.run([folder / "bin" / name, *words], cwd=cwd, env=bare, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done

    return call


def test_the_wheel_has_two_packages_and_nothing_else_at_its_top(wheel):
    names = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert names == {"recipe_runner", "recipe_plugins", f"{'-'.join(wheel.name.split('-')[:2])}.dist-info"}


def test_the_wheel_has_every_module_the_recipes_the_types_and_the_licence(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for room in ("runner/recipe_runner", "plugins/recipe_plugins"):
        sources = {str(file.relative_to(ROOT / room).parent / file.name) for file in (ROOT / room).rglob("*.py")}
        assert {f"{Path(room).name}/{source}" for source in sources} <= names
        assert f"{Path(room).name}/py.typed" in names
    assert {f"recipe_runner/_recipes/{file.name}" for file in (ROOT / "recipes").glob("*.yaml")} <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_wheel_asks_for_ranges_and_never_for_one_version(wheel):
    archive = zipfile.ZipFile(wheel)
    (metadata,) = [archive.read(name).decode() for name in archive.namelist() if name.endswith("METADATA")]
    requires = [line for line in metadata.splitlines() if line.startswith("Requires-Dist")]
    assert requires
    assert not [line for line in requires if "==" in line.partition(";")[0]]


def test_it_is_the_wheel_that_runs(clean, tmp_path):
    code = "import recipe_runner, recipe_plugins, recipe_signum; print(recipe_runner.__file__, recipe_plugins.__file__)"
    assert str(ROOT) not in clean("python", "-c", code, cwd=tmp_path).stdout
    found = {
        record["distribution"]: record
        for record in json.loads(clean("recipe", "plugins", "list", "--json", cwd=tmp_path).stdout)
    }
    assert {name: record["state"] for name, record in found.items()} == {
        "recipe-runner": "active",
        "recipe-signum": "active",
    }
    assert found["recipe-signum"]["components"] == ["optimizer/signum", "filter/min-words"]


def test_shipped_recipes_are_found_and_checked_from_anywhere(clean, tmp_path):
    for recipe in sorted(file.stem for file in (ROOT / "recipes").glob("*.yaml")):
        clean("recipe", "check", recipe, cwd=tmp_path)
        clean("recipe", "plan", recipe, cwd=tmp_path)


def test_the_example_s_own_tests_pass(clean, tmp_path):
    done = clean("python", "-m", "pytest", "-q", "-p", "no:cacheprovider", str(EXAMPLE / "tests"), cwd=tmp_path)
    assert "passed" in done.stdout


def test_the_example_s_recipe_runs_and_uses_both_components(clean, tmp_path):
    (tmp_path / "recipe.yaml").write_text((EXAMPLE / "recipe.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    clean("recipe", "run", "recipe.yaml", cwd=tmp_path)
    again = clean("recipe", "plan", "recipe.yaml", "--check", "--json", cwd=tmp_path)
    paths = {stage["stage"]: Path(stage["path"]) for stage in json.loads(again.stdout)["stages"]}
    base = json.loads((paths["base"] / "manifest.json").read_text(encoding="utf-8"))
    assert base["identity"]["stage"]["optimizer"]["use"] == "recipe-signum:signum@1"
    assert base["versions"]["recipe-signum"] == "0.1.0"
    ledger = (paths["corpus"] / "ledger.json").read_text(encoding="utf-8")
    assert "few-words" in ledger
