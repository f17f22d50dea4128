"""The command line: facts on stdout and nothing else there, people on stderr, exit codes as documented."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml


@pytest.fixture
def built(recipe):
    """The command line where the toy recipe has been run, for tests that change that."""
    assert recipe("run", "toy.yaml").code == 0
    return recipe


@pytest.fixture
def reading(recipe, done, monkeypatch):
    """The command line where the toy recipe has been run, for tests that only look."""
    monkeypatch.chdir(done)
    return recipe


def run_folder(here: Path) -> Path:
    return max((here / ".recipe" / "runs" / "toy").iterdir())


JSON_COMMANDS = [
    ["check", "toy.yaml"],
    ["plan", "toy.yaml"],
    ["show", "toy.yaml"],
    ["show", "toy.yaml", "--origin"],
    ["show", "base"],
    ["report"],
    ["runs"],
    ["verify"],
    ["gc"],
    ["doctor"],
    ["x"],
    ["plugins", "list"],
    ["plugins", "show", "recipe-toy"],
]


@pytest.mark.parametrize("words", JSON_COMMANDS, ids=" ".join)
def test_facts_are_json_on_stdout_and_nothing_else(reading, words):
    said = reading(*words, "--json")
    assert said.code == 0
    assert said.json is not None


@pytest.mark.parametrize("words", JSON_COMMANDS, ids=" ".join)
def test_people_are_told_on_stderr(reading, words):
    said = reading(*words)
    assert said.code == 0
    assert said.out == ""
    assert said.err.strip()


def test_a_run_tells_events_as_json_lines(recipe):
    said = recipe("run", "toy.yaml", "--json")
    events = [json.loads(line) for line in said.out.splitlines()]
    assert events[0]["kind"] == "run-started"
    assert events[-1]["data"]["status"] == "finished"


def test_a_word_that_is_no_command_gets_a_suggestion(recipe):
    said = recipe("chekc", "toy.yaml")
    assert said.code == 2
    assert "Did you mean 'check'" in said.err


def test_a_word_that_is_no_recipe_gets_a_suggestion(recipe):
    said = recipe("plan", "tinny")
    assert said.code == 2
    assert "did you mean 'tiny'?" in said.err


def test_a_user_s_mistake_shows_no_traceback_unless_asked(recipe):
    assert "Traceback" not in recipe("run", "absent.yaml").err
    assert "Traceback" in recipe("--debug", "run", "absent.yaml").err


# ── show ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_resolved_recipe_is_a_recipe_with_the_same_keys(built, here):
    (here / "again.yaml").write_text(built("show", "toy.yaml", "--resolved").out, encoding="utf-8")
    stages = built("plan", "again.yaml", "--json").json["stages"]
    assert {stage["status"] for stage in stages} == {"cached"}


def test_overrides_are_in_the_resolved_recipe(recipe):
    said = recipe("show", "toy.yaml", "stages.tuned.rule.by=5", "vars.n=3", "--resolved")
    stages = yaml.safe_load(said.out)["stages"]
    assert stages["tuned"]["rule"] == {"use": "recipe-toy:plus", "by": 5.0, "note": ""}
    assert stages["base"]["steps"] == 3


def test_origins_name_the_file_the_command_line_or_the_default(recipe, here):
    (here / "child.yaml").write_text("schema: 1\nextends: [toy.yaml]\nstages:\n  tuned:\n    steps: 5\n")
    said = recipe("show", "child.yaml", "execution.threads=2", "--origin", "--json")
    origins = {entry["key"]: entry["from"] for entry in said.json}
    assert origins["stages.tuned.steps"] == "child.yaml:5:5"
    assert origins["stages.base.rule.by"] == "toy.yaml:11:24"
    assert origins["stages.tuned.execution.threads"] == "command line"
    assert origins["stages.tuned.label"] == "default"


def test_an_artifact_is_shown_by_path_and_by_stage(reading):
    by_stage = reading("show", "base", "--json").json
    assert reading("show", by_stage["path"], "--json").json == by_stage
    assert by_stage["type"] == "model"
    assert by_stage["facts"]["value"] > 0
    assert by_stage["digest"] in reading("show", "base").err


def test_showing_what_is_nothing_names_what_there_is(reading):
    said = reading("show", "bass")
    assert said.code == 2
    assert "did you mean 'base'?" in said.err


def test_a_stage_that_the_newest_run_did_not_build_is_shown_where_one_before_did(built):
    before = built("show", "tuned", "--json").json["path"]
    assert built("run", "toy.yaml", "stages.tuned.label=other", "stages.tuned.fail_at=3").code == 1
    said = built("show", "tuned")
    assert said.code == 2
    assert "'tuned' of the newest run failed" in said.err
    assert f"recipe show {before}" in said.err.replace("'", "")


# ── runs, report ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_runs_are_listed_oldest_first(built):
    built("run", "toy.yaml", "name=other")
    assert [run["recipe"] for run in built("runs", "--json").json] == ["toy", "other"]


def test_a_run_that_was_not_made_is_named(recipe):
    said = recipe("report", "nothing")
    assert said.code == 2
    assert "no run 'nothing'" in said.err


# ── verify, gc ───────────────────────────────────────────────────────────────────────────────────────────────────


def artifact(here: Path, stage: str) -> Path:
    return Path(json.loads((run_folder(here) / "run.json").read_text())["stages"][stage]["path"])


def edit(path: Path, change) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda folder: (folder / "payload" / "model.json").write_text("{}"), "model.json: changed"),
        (lambda folder: (folder / "payload" / "model.json").unlink(), "model.json: missing"),
        (lambda folder: (folder / "payload" / "more").touch(), "more: not listed in the manifest"),
        (lambda folder: (folder / "manifest.json").unlink(), "manifest.json is missing or torn"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "manifest.json is missing or torn"),
        (
            lambda folder: edit(folder / "manifest.json", lambda m: m["identity"].update(seed=8)),
            "manifest.json: changed",
        ),
        (lambda folder: edit(folder / "manifest.json", lambda m: m.update(digest="0")), "manifest.json: changed"),
    ],
)
def test_verify_finds_each_kind_of_damage(reading, done, here, damage, told):
    folder = here / "copied"
    shutil.copytree(artifact(done, "base"), folder)
    assert reading("verify", str(folder)).code == 0
    damage(folder)
    said = reading("verify", str(folder), "--json")
    assert said.code == 1
    assert said.json == [{"path": str(folder), "found": [told]}]


def test_verify_looks_at_every_artifact_of_the_store(reading, done):
    found = {entry["path"]: entry["found"] for entry in reading("verify", "--json").json}
    assert set(map(Path, found)) == {Path(".recipe", *p.parts[-3:]) for p in done.glob(".recipe/artifacts/*/*")}
    assert set(found.values()) == {"ok"}


def test_gc_without_yes_removes_nothing(built, here):
    built("run", "toy.yaml", "stages.tuned.steps=3")
    before = sorted((here / ".recipe" / "artifacts").glob("*/*"))
    said = built("gc", "--json")
    assert [entry["outcome"] for entry in said.json] == ["would be removed"]
    assert sorted((here / ".recipe" / "artifacts").glob("*/*")) == before


def test_gc_keeps_what_the_newest_finished_runs_name(built, here):
    first = artifact(here, "tuned")
    built("run", "toy.yaml", "stages.tuned.steps=3")
    second = artifact(here, "tuned")
    assert built("gc", "--keep-last", "2", "--json").json == []
    assert [entry["path"] for entry in built("gc", "--yes", "--json").json] == [str(first)]
    assert not first.exists()
    assert second.is_dir()
    assert {s["status"] for s in built("plan", "toy.yaml", "stages.tuned.steps=3", "--json").json["stages"]} == {
        "cached"
    }


def test_gc_of_another_recipe_s_run_leaves_this_one_s(built, here):
    built("run", "toy.yaml", "name=other", "stages.tuned.steps=3")
    assert built("gc", "--json").json == []


def test_gc_keeps_what_a_run_of_a_part_did_not_get_to(built):
    """Nobody who asked for one stage meant the others to go."""
    assert built("run", "toy.yaml", "--until", "data").code == 0
    assert built("gc", "--json").json == []


def test_gc_keeps_what_a_failed_run_goes_on_from(recipe, here):
    assert recipe("run", "toy.yaml", "stages.tuned.fail_at=7", "stages.tuned.execution.checkpoint_every=2").code == 1
    assert list(here.glob(".recipe/artifacts/*/*.partial"))
    assert recipe("gc", "--yes", "--json").json == []


def test_gc_removes_what_was_set_aside_and_what_no_run_will_go_on_from(built, here):
    built("run", "toy.yaml", "--force", "tuned")
    left = here / ".recipe" / "artifacts" / "toy-train" / "0123456789ab.partial"
    left.mkdir()
    found = {entry["why"] for entry in built("gc", "--yes", "--json").json}
    assert found == {"set aside", "left unfinished"}
    assert sorted(p.name for p in here.glob(".recipe/artifacts/*/*") if "." in p.name) == []


def test_gc_leaves_a_locked_artifact(built, here):
    from recipe_runner.store import Store

    old = artifact(here, "tuned")
    built("run", "toy.yaml", "stages.tuned.steps=3")
    with Store(here / ".recipe").lock(old.name, {"pid": 1, "recipe": "r", "stage": "s", "since": "now"}, None):
        assert [entry["outcome"] for entry in built("gc", "--yes", "--json").json] == ["kept: a run is at work on it"]
    assert old.is_dir()


# ── init, plugins, doctor, x, chat ───────────────────────────────────────────────────────────────────────────────


def test_init_writes_a_recipe_that_loads_and_never_overwrites(recipe, here):
    (here / "sub").mkdir()
    assert recipe("init", "sub/my first.yaml", "--from", "toy.yaml").code == 0
    assert recipe("check", "sub/my first.yaml").code == 0
    written = (here / "sub" / "my first.yaml").read_text()
    assert "name: my-first" in written
    assert recipe("init", "sub/my first.yaml", "--from", "toy.yaml").code == 2
    assert (here / "sub" / "my first.yaml").read_text() == written


def test_init_extends_a_shipped_recipe_by_name(recipe, here):
    recipe("init", "mine")
    assert yaml.safe_load((here / "mine.yaml").read_text())["extends"] == ["tiny"]


def test_plugins_are_listed_with_what_became_of_them(recipe):
    found = {record["name"]: record for record in recipe("-p", "no:recipe-toy", "plugins", "list", "--json").json}
    assert found["builtins"]["state"] == "active"
    assert found["recipe-toy"]["state"] == "disabled"
    assert found["recipe-toy"]["components"] == []


def test_a_component_is_shown_with_its_defaults(recipe):
    (found,) = recipe("plugins", "show", "toy-train", "--json").json
    assert found["fields"]["steps"] == 10
    assert found["fields"]["rule"] == "plus"
    shown = recipe("plugins", "show", "toy-train").err
    rows = {words[0]: words[1:] for line in shown.splitlines() if (words := line.split())}
    assert rows["steps"] == ["integer", "10"]
    assert rows["execution.processes"][:4] == ["integer", "≥", "1", "1"]
    assert rows["rule"][-2:] == ["toy-rule", "plus"]
    assert "execution.device" in rows
    said = recipe("plugins", "show", "toy-trian")
    assert said.code == 2
    assert "did you mean 'toy-train'?" in said.err


def test_a_sick_plugin_fails_doctor_and_every_other_line_is_shown(recipe, here, monkeypatch):
    hooks = here / "recipe_sick.py"
    hooks.write_text(
        "from recipe_runner import Check, hookimpl\n"
        "@hookimpl\ndef doctor():\n"
        "    yield Check('sick library', 'absent', ok=False)\n    raise OSError('no kernel')\n"
    )
    install(here, "recipe-sick", "recipe_sick", monkeypatch)
    said = recipe("doctor", "--json")
    assert said.code == 1
    found = {check["name"]: check for check in said.json}
    assert found["sick library"]["ok"] is False
    assert "no kernel" in found["plugin recipe-sick"]["value"]
    assert "store" in found
    assert "python" in found


def install(folder: Path, dist: str, module: str, monkeypatch) -> None:
    """A distribution in `folder`, as far as importlib.metadata sees."""
    from recipe_runner.plugins import installed

    info = folder / f"{module}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {dist}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[recipe_runner]\n{dist} = {module}\n")
    monkeypatch.syspath_prepend(str(folder))
    installed.cache_clear()


EXTRA = """
from pathlib import Path
from recipe_runner import Command, Component, hookimpl

@hookimpl
def register_commands():
    return [Command("echo", "recipe_extra:echo", "says its arguments")]

@hookimpl
def register_components():
    return [Component(kind="chat", name="echo", target="recipe_extra:Echo", config="recipe_toy.config:RuleConfig")]

def echo(arguments):
    print(*arguments)
    return len(arguments)

class Echo:
    def __init__(self, config):
        self.config = config
    def run(self, payload, prompt):
        print(payload, prompt, self.config.by)
"""


@pytest.fixture
def extra(recipe, here, monkeypatch):
    (here / "recipe_extra.py").write_text(EXTRA)
    install(here, "recipe-extra", "recipe_extra", monkeypatch)
    return recipe


def test_a_plugin_s_command_gets_its_arguments_and_gives_the_exit_code(extra):
    assert [command["name"] for command in extra("x", "--json").json] == ["echo"]
    said = extra("x", "echo", "a", "--json", "-h", "b=1")
    assert said.out == "a --json -h b=1\n"
    assert said.code == 4
    assert "did you mean 'echo'?" in extra("x", "ecco").err


def test_chat_talks_to_the_last_model_of_the_newest_run(extra, done, monkeypatch):
    monkeypatch.chdir(done)
    folder = run_folder(done)
    for words in ([], ["toy"], [folder.name], [str(folder)]):
        assert extra("chat", *words, "--use", "echo", "--prompt", "hi").out.startswith(
            f"{artifact(done, 'tuned')}/payload hi"
        )
    said = extra("chat", "--stage", "base", "--use", "{use: echo, by: 7}")
    assert said.out == f"{artifact(done, 'base')}/payload None 7.0\n"
    assert extra("chat", str(artifact(done, "base")), "--use", "echo").out.startswith(str(artifact(done, "base")))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--stage", "data"], "models of this run: base, tuned"),
        (["--use", "absent"], "no chat is called 'absent'"),
        (["--use", "{use: echo, bye: 7}"], "bye"),
        (["nothing"], "no run 'nothing'"),
    ],
)
def test_chat_says_what_is_wrong(extra, done, monkeypatch, words, told):
    monkeypatch.chdir(done)
    said = extra("chat", *([] if "--use" in words else ["--use", "echo"]), *words)
    assert said.code == 2
    assert told in said.err
