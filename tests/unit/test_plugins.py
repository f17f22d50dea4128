"""The loader: what becomes of each entry point, and that every hook is called."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

import pytest

from recipe_runner import hookspecs
from recipe_runner.errors import InvalidRecipe, PluginError, UsageError
from recipe_runner.plugins import Plugins, discover, installed, load
from recipe_runner.recipe import load as load_recipe
from recipe_runner.testing.local import slot

HOOKS = """
from recipe_runner import Component, hookimpl

@hookimpl
def register_components():
    return [Component(kind="toy-rule", name="{name}", target="{module}:make", config=None)]
"""


class Distributions:
    """Installed distributions: real `dist-info` folders on sys.path."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def add(self, dist: str, hooks: str, *, entry: str = "", version: str = "1.0") -> str:
        """A distribution with one entry point, and the module it points at; `hooks` is that module's text."""
        module = dist.replace("-", "_") + "_hooks"
        info = self.folder / f"{dist.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {dist}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(f"[recipe_runner]\n{entry or dist} = {module}\n")
        (self.folder / f"{module}.py").write_text(hooks.replace("{module}", module))
        sys.modules.pop(module, None)
        return module

    def load(self, **options) -> Plugins:
        """All that is installed here, built-ins and toy included."""
        return load(discover(), **options)


@pytest.fixture
def dists(tmp_path, monkeypatch) -> Distributions:
    made = Distributions(tmp_path / "site")
    made.folder.mkdir()
    for path in (Path(__file__).parents[1] / "toy", made.folder):
        monkeypatch.syspath_prepend(str(path))
    return made


def record(plugins: Plugins, dist: str):
    (found,) = [r for r in plugins.records if r.dist == dist]
    return found


def recipe(bench, plugins: Plugins, stages: str):
    return load_recipe(str(bench.write(stages).recipe), plugins=plugins)


# ── the six cases ────────────────────────────────────────────────────────────────────────────────────────────────


def test_active(dists):
    dists.add("recipe-one", HOOKS.replace("{name}", "one"), version="2.1")
    found = record(dists.load(), "recipe-one")
    assert (found.state, found.version, found.error) == ("active", "2.1", None)
    assert [(c.name, c.dist) for c in found.components] == [("one", "recipe-one")]
    assert dists.load().versions()["recipe-one"] == "2.1"


@pytest.mark.parametrize(
    ("hooks", "error"),
    [
        ("import recipe_absent", "No module named 'recipe_absent'"),
        ("raise RuntimeError('no CUDA')", "no CUDA"),
        ("import sys; sys.exit('bye')", "bye"),
        ("x = (", "was never closed"),
        ("def register_components(): return [3]", "replace"),
        (HOOKS.replace("{name}", "one").replace("return [", "return 2 * ["), "'one' is registered twice"),
        (HOOKS.replace("{name}", "Not A Name"), "lower-case"),
    ],
)
def test_import_error(dists, bench, hooks, error):
    """A broken plugin is a record; the others work, and it is an error only for a recipe that may need it."""
    dists.add("recipe-bad", hooks)
    plugins = dists.load()
    assert record(plugins, "recipe-bad").state == "failed"
    assert error in str(plugins.registry.failures["recipe-bad"])
    recipe(bench, plugins, "  a: {use: toy-corpus}\n")
    with pytest.raises(InvalidRecipe, match=f"plugin recipe-bad failed to load: .*{error[:12]}") as caught:
        recipe(bench, plugins, "  a: {use: of-the-bad-one}\n")
    assert caught.value.exit_code == 3
    assert caught.value.__cause__ is record(plugins, "recipe-bad").error
    with pytest.raises(PluginError, match="plugin recipe-bad 1") as caught:
        dists.load(strict=True)
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize(
    "hook", ["def on_evnet(event): ...", "def on_event(evnet): ...", "def run_stage(stage, used): ..."]
)
def test_unknown_hook(dists, hook):
    """An unknown name or argument: the plugin fails whole, and none of its other hooks stays behind."""
    text = "from recipe_runner import hookimpl\n@hookimpl\ndef doctor(): return []\n@hookimpl\n"
    dists.add("recipe-odd", text + hook)
    plugins = dists.load()
    assert record(plugins, "recipe-odd").state == "failed"
    assert "recipe-odd" not in {impl.plugin_name for impl in plugins.hook.doctor.get_hookimpls()}
    assert "recipe-odd" in plugins.registry.failures


@pytest.mark.parametrize("name", ["the-entry", "recipe-off"])
def test_disabled_by_either_name_and_never_imported(dists, name):
    module = dists.add("recipe-off", HOOKS.replace("{name}", "one"), entry="the-entry")
    plugins = dists.load(disabled=(name,))
    assert record(plugins, "recipe-off").state == "disabled"
    assert module not in sys.modules
    assert "recipe-off" not in plugins.versions()
    assert plugins.disabled == (name,)


def test_a_disabled_name_that_nothing_has_is_an_error(dists):
    with pytest.raises(UsageError, match="no plugin has that name") as caught:
        dists.load(disabled=("recipe-toi",))
    assert caught.value.next == "did you mean 'recipe-toy'?"


def test_one_entry_point_name_in_two_distributions(dists):
    dists.add("recipe-one", HOOKS.replace("{name}", "one"), entry="same")
    dists.add("recipe-two", HOOKS.replace("{name}", "two"), entry="same", version="3.0")
    plugins = dists.load()
    assert (record(plugins, "recipe-one").state, record(plugins, "recipe-two").state) == ("active", "conflict")
    assert "recipe-one 1.0 and recipe-two 3.0" in str(plugins.registry.failures["recipe-two"])
    only = dists.load(disabled=("recipe-one",))
    assert record(only, "recipe-two").state == "active", "disabling one settles it"


def test_one_component_from_two_distributions(dists, bench):
    for dist in ("recipe-one", "recipe-two"):
        dists.add(dist, HOOKS.replace("{name}", "same") + f"\ndef make(config): return {dist!r}\n")
    plugins = dists.load()
    with pytest.raises(InvalidRecipe, match="recipe-one:same or recipe-two:same"):
        recipe(bench, plugins, "  a: {use: toy-train, rule: same}\n")
    found = recipe(bench, plugins, "  a: {use: toy-train, rule: recipe-two:same}\n").config("a").rule
    assert (found.component.dist, found.build()) == ("recipe-two", "recipe-two")


def test_built_ins_are_never_shadowed(dists, bench):
    dists.add("recipe-mine", HOOKS.replace("toy-rule", "launcher").replace("{name}", "local"))
    with pytest.raises(InvalidRecipe, match="recipe-mine:local or recipe-runner:local"):
        recipe(bench, dists.load(), "  a: {use: toy-corpus}\n")


def test_entry_points_come_in_sorted_order(dists):
    for dist in ("recipe-z", "recipe-a", "recipe-m"):
        dists.add(dist, HOOKS.replace("{name}", "n"))
    found = [r.dist for r in dists.load().records]
    assert found == sorted(found)
    assert list(dists.load().versions()) == found


# ── built-ins ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_built_ins_come_through_the_same_group(dists):
    entry = next(e for e in distribution("recipe-runner").entry_points if e.group == "recipe_runner")
    found = record(dists.load(), "recipe-runner")
    assert (found.name, found.value, found.state) == (entry.name, entry.value, "active")


@pytest.mark.parametrize("name", ["builtins", "recipe-runner"])
def test_built_ins_can_be_blocked(dists, bench, name):
    plugins = dists.load(disabled=(name,))
    assert plugins.registry.names("launcher") == ["far"], "which is the toy's"
    with pytest.raises(InvalidRecipe, match="no launcher is called 'local'"):
        recipe(bench, plugins, "  a: {use: toy-corpus}\n")


def test_loading_is_done_once_a_process():
    assert installed() is installed()


# ── hooks ────────────────────────────────────────────────────────────────────────────────────────────────────────

WITNESS = """
import json
from recipe_runner import Check, Command, Problem, hookimpl
from recipe_runner import Component

def saw(hook, *what):
    with open("saw.jsonl", "a") as file: file.write(json.dumps([hook, *what]) + "\\n")

@hookimpl
def register_components(): saw("register_components"); return []
@hookimpl
def register_commands(): saw("register_commands"); return [Command("greet", "{module}:greet", "says hello")]
@hookimpl
def check_recipe(recipe):
    saw("check_recipe", recipe.name)
    if recipe.config("data").repeat == 5:
        yield recipe.problem("stages.data.repeat", "five is too many", "write four")
@hookimpl(wrapper=True)
def run_stage(stage, use):
    saw("run_stage", "before", stage, use); result = yield; saw("run_stage", "after", result); return result
@hookimpl
def on_event(event): saw("on_event", event.kind)
@hookimpl
def doctor(): saw("doctor"); return [Check("witness", "well", ok=True)]
@hookimpl
def device_memory(execution): saw("device_memory", execution.device); return 1

def greet(words): print("hello", *words); return 0
"""
DEAF = "from recipe_runner import hookimpl\n@hookimpl\ndef on_event(event): raise OSError('no line')\n"


COMMANDS = {
    "check": ["check", "r.yaml"],
    "wrong": ["check", "r.yaml", "stages.data.repeat=5"],
    "run": ["run", "r.yaml", "--store", "st"],
    "plan": ["plan", "sized.yaml", "--fits", "--store", "st2"],
    "x": ["x", "greet", "you"],
    "doctor": ["doctor"],
    "list": ["plugins", "list", "--json"],
    "strict": ["--strict-plugins", "check", "r.yaml"],
}
GIVE = """
import contextlib, io, json, sys
from recipe_runner.cli import main
done = {}
for name, words in json.load(sys.stdin).items():
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        try: code = main(words)
        except SystemExit as leaving: code = leaving.code
    done[name] = [code, out.getvalue(), err.getvalue()]
print(json.dumps(done))
"""


@pytest.fixture(scope="module")
def witnessed(tmp_path_factory) -> tuple[Path, dict[str, tuple[int, str, str]]]:
    """Commands where a plugin sees every hook, one is deaf, and one is broken: code, stdout, stderr of each."""
    folder = tmp_path_factory.mktemp("witness")
    for dist, hooks in {"recipe-witness": WITNESS, "recipe-deaf": DEAF, "recipe-bad": "import recipe_absent"}.items():
        Distributions(folder).add(dist, hooks)
    (folder / "r.yaml").write_text("schema: 1\nname: t\nstages: {data: {use: toy-corpus}}\n")
    (folder / "sized.yaml").write_text(
        "schema: 1\nname: sized\nstages: {data: {use: toy-corpus, repeat: 1}, m: toy-train}\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), os.environ["PYTHONPATH"]])}
    done = subprocess.run(
        [sys.executable, "-c", GIVE], cwd=folder, env=environment, input=json.dumps(COMMANDS),
        stdout=subprocess.PIPE, check=True, text=True,
    )  # fmt: skip
    return folder, {name: tuple(result) for name, result in json.loads(done.stdout).items()}


def test_every_declared_hook_is_called(witnessed):
    declared = {name for name, value in vars(hookspecs).items() if hasattr(value, "recipe_runner_spec")}
    saw = [json.loads(line) for line in (witnessed[0] / "saw.jsonl").read_text().splitlines()]
    assert {entry[0] for entry in saw} == declared
    assert ["run_stage", "before", "data", "recipe-toy:toy-corpus@1"] in saw
    assert ["run_stage", "after", [True]] in saw
    assert ["check_recipe", "t"] in saw
    assert ["device_memory", "auto"] in saw


def test_a_hook_s_answer_is_used(witnessed):
    done = witnessed[1]
    assert done["x"][:2] == (0, "hello you\n")
    assert done["wrong"][0] == 2
    assert "stages.data.repeat: five is too many" in done["wrong"][2]
    assert "witness" in done["doctor"][1] + done["doctor"][2]


def test_a_broken_plugin_is_one_line_on_stderr(witnessed):
    code, _, stderr = witnessed[1]["check"]
    assert code == 0
    assert stderr.count("recipe-bad") == 1
    assert "plugin recipe-bad 1.0 is off: No module named 'recipe_absent'" in stderr.splitlines()
    states = {fact["distribution"]: fact["state"] for fact in json.loads(witnessed[1]["list"][1])}
    assert (states["recipe-bad"], states["recipe-witness"]) == ("failed", "active")
    assert witnessed[1]["strict"][0] == 3


def test_a_listener_that_raises_is_dropped_and_silences_no_other(witnessed):
    code, _, stderr = witnessed[1]["run"]
    assert code == 0
    assert stderr.count("listener recipe_deaf_hooks.on_event failed and is off for this run") == 1
    saw = [json.loads(line) for line in (witnessed[0] / "saw.jsonl").read_text().splitlines()]
    heard = [entry[1] for entry in saw if entry[0] == "on_event"]
    assert heard == ["run-started", "stage-started", "note", "stage-finished", "run-finished"]


def test_the_worker_has_the_same_plugins_disabled(dists, bench, monkeypatch):
    """A component of a disabled plugin must not come back in the worker; the manifest says which were active."""
    dists.add("recipe-one", HOOKS.replace("{name}", "one"))
    monkeypatch.setenv("PYTHONPATH", str(dists.folder), prepend=os.pathsep)
    bench.plugins = dists.load(disabled=("recipe-one",))
    bench.write("  a: {use: toy-corpus}\n").run()
    assert "recipe-one" not in json.loads((bench.artifact("a") / "manifest.json").read_text())["versions"]
    assert slot("toy-rule", "plus", plugins=bench.plugins).build()(1) == 3.0
