"""What people read when something is wrong, as golden files: where, what, and what next; all at once."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field, ValidationError

from recipe_runner.cli import main
from recipe_runner.components import Config, Validation
from recipe_runner.contract import ExecutionConfig
from recipe_runner.errors import Origin, Problem, RecipeError, suggest
from recipe_runner.recipe import load
from recipe_runner.wording import worded_problems

FOLDER = Path(__file__).parent / "golden" / "errors"


@pytest.mark.parametrize("case", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_problems_read_as_written_down(case: Path, plugins, monkeypatch, tmp_path):
    """After a change that is meant, copy the file that the failure names over the golden one."""
    monkeypatch.chdir(FOLDER)
    with pytest.raises(RecipeError) as caught:
        load(case.name, plugins=plugins)
    golden, here = case.with_suffix(".txt"), str(FOLDER)
    text = f"exit {int(caught.value.exit_code)}\n{caught.value.render()}\n"
    text = text.replace(here, "HERE").replace(version("pluggy"), "VERSION")
    (tmp_path / golden.name).write_text(text)
    assert text == (golden.read_text() if golden.exists() else ""), f"cp {tmp_path / golden.name} {golden}"


def test_nothing_was_run_by_a_tag():
    assert not Path("/tmp/recipe-was-here").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["check", "tinny"], "did you mean 'tiny'?"),
        (["check", "nowhere/tiny.yaml"], "no recipe 'nowhere/tiny.yaml'"),
        (["chekc", "tiny"], "id you mean 'check'?"),
        (["plan", "{}", "--force", "dta"], "did you mean 'data'?"),
        (["run", "{}", "--until", "dta"], "did you mean 'data'?"),
        (["run", "{}", "--only", "data", "--until", "data"], "--only and --until"),
        (["run", "{}", "--until", "data", "--force", "train"], "this run does not get to that"),
        (["run", "{}", "stages.data.wrods=[a]"], "did you mean 'words'?"),
        (["run", "{}", "data"], "'data' is not an override"),
        (["run", "{}", "a..b=3"], "is not an override"),
        (["run", "{}", "extends=[tiny]"], "is not an override"),
        (["run", "{}", "stages.data.words=[a"], "cannot be read"),
        (["run", "{}", "stages.data.words=!!set {a}"], "a tag, !!set"),
        (["run", "{}", "stages.data.words=[a]\nvars: 3"], "more than a value"),
        (["-p", "no:builtin", "check", "{}"], "did you mean 'builtins'?"),
        (["check", "-p", "no:builtin", "{}"], "did you mean 'builtins'?"),
        (["check", "{}", "-p", "no:builtin"], "did you mean 'builtins'?"),
        (["check", "{}", "-pno:builtin"], "did you mean 'builtins'?"),
        (["check", "{}", "-p"], "No such option: -p"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_command_line_that_cannot_be_carried_out_exits_2(bench, plugins, monkeypatch, capfd, words, said):
    for command in ("check", "plan", "run"):
        if not any(word.startswith("-p") for word in words):
            monkeypatch.setattr(f"recipe_runner.commands.{command}.load_plugins", lambda _: plugins)
    bench.write("  data: {use: toy-corpus}\n  train: {use: toy-train, corpus: data}\n")
    monkeypatch.chdir(bench.folder)
    assert main([word.replace("{}", str(bench.recipe)) for word in words]) == 2
    out, err = capfd.readouterr()
    assert said in err
    assert out == "" or words[0] == "chekc"
    assert not (bench.folder / ".recipe").exists()


def test_a_recipe_that_is_not_there_is_only_likened_to_one_that_is_near(bench, monkeypatch, capfd):
    monkeypatch.chdir(bench.folder)
    (bench.folder / "mine.yaml").write_text("")
    for word, said in {
        "nothere.yaml": "  -> recipes in .: mine.yaml\n  -> shipped recipes: anneal-tiny, ",
        "mien2.yaml": "  -> did you mean 'mine.yaml'?\n",
        "moe1b": "  -> did you mean 'moe-1b'?\n",
    }.items():
        assert main(["check", word]) == 2
        assert said in capfd.readouterr().err


@pytest.mark.parametrize("command", ["check", "plan", "run"])
def test_each_command_shows_the_hints(bench, plugins, monkeypatch, capfd, command):
    """A variable that no layer reads is one: misspelt, it changes nothing."""
    monkeypatch.setattr(f"recipe_runner.commands.{command}.load_plugins", lambda _: plugins)
    bench.recipe.write_text(
        "schema: 1\nname: t\nvars: {widht: 3, width: 2, own: 1}\nstages:\n"
        "  data: {use: toy-corpus, repeat: '${vars.width}'}\n"
    )
    monkeypatch.chdir(bench.folder)
    assert main([command, "recipe.yaml", "vars.own=2"]) == 0
    told = [line for line in capfd.readouterr().err.splitlines() if line.startswith(("hint", "  ->"))]
    assert told == [
        "hint: recipe.yaml:3:8: vars.widht: nothing reads this variable", "  -> did you mean 'width'?",
        "hint: command line: vars.own: nothing reads this variable", "  -> variables that are read: width",
    ]  # fmt: skip


def test_a_variable_of_a_stage_that_a_fork_takes_out_is_no_hint(bench):
    bench.recipe.with_name("parent.yaml").write_text(
        "schema: 1\nname: p\nvars: {n: 3}\nstages:\n  a: toy-corpus\n  b: {use: toy-corpus, repeat: '${vars.n}'}\n"
    )
    bench.recipe.write_text("extends: parent.yaml\nname: t\nvars: {n: 4}\nstages: {b: null}\n")
    assert bench.load().hints == []


class Words(Config):
    """A field of every form that pydantic has words of its own for."""

    count: Annotated[int, Field(ge=1, le=9, multiple_of=3)] = 3
    rate: Annotated[float, Field(gt=0, lt=1)] = 0.5
    on: bool = True
    way: Literal["left", "right"] | int = "left"
    name: Annotated[str, Field(min_length=2, max_length=9, pattern=r"^[a-z-]+$")] = "ab"
    many: Annotated[list[str], Field(min_length=1, max_length=2)] = ["a"]
    pair: tuple[int, int] = (1, 2)
    table: dict[str, int] = {}
    block: ExecutionConfig | None = None


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"count": "few"}, "a whole number is expected; got 'few'"),
        ({"count": 1.5}, "a whole number is expected; got 1.5"),
        ({"count": None}, "a whole number is expected; got null"),
        ({"count": 0}, "at least 1 is expected; got 0"),
        ({"count": 12}, "at most 9 is expected; got 12"),
        ({"count": 4}, "a multiple of 3 is expected; got 4"),
        ({"rate": "fast"}, "a number is expected; got 'fast'"),
        ({"rate": 0}, "more than 0.0 is expected; got 0"),
        ({"rate": 1}, "less than 1.0 is expected; got 1"),
        ({"rate": float("inf")}, "a finite number is expected; got inf"),
        ({"on": "maybe"}, "true or false is expected; got 'maybe'"),
        ({"on": []}, "true or false is expected; got []"),
        ({"way": "lefd"}, "'left' or 'right' or a whole number is expected; got 'lefd'\ndid you mean 'left'?"),
        ({"name": True}, 'text is expected; got true\nwrite "true"'),
        ({"name": "a"}, "a length of at least 2 is expected; got 'a'"),
        ({"name": "a" * 10}, "a length of at most 9 is expected; got 'aaaaaaaaaa'"),
        ({"name": "a b"}, "text of the form ^[a-z-]+$ is expected; got 'a b'\nwrite a-b"),
        ({"name": "A"}, "a length of at least 2 is expected; got 'A'"),
        ({"many": "one"}, "a list, `[one, two]`, is expected; got 'one'\nwrite [one]"),
        ({"many": []}, "a length of at least 1 is expected; got []"),
        ({"many": ["a", "b", "c"]}, "a length of at most 2 is expected; got ['a', 'b', 'c']"),
        ({"pair": 3}, "a list, `[one, two]`, is expected; got 3\nwrite [3]"),
        ({"pair": [1]}, "one more entry is expected after [1]"),
        ({"table": 3}, "a mapping, `name: value`, is expected; got 3"),
        ({"block": 3}, "a mapping, `name: value`, is expected; got 3"),
    ],
    ids=str,
)
def test_what_pydantic_says_is_said_in_our_words(plugins, given, said):
    context = Validation(plugins.registry)
    with pytest.raises(ValidationError) as caught:
        Words.model_validate(given, context=context)
    (problem,) = worded_problems(caught.value, given, {}, context)
    assert "\n".join([problem.what, *([problem.next] if problem.next else [])]) == said


def test_debug_shows_the_traceback(bench, capfd):
    assert main(["--debug", "check", str(bench.folder / "no.yaml")]) == 2
    assert "Traceback" in capfd.readouterr().err
    assert main(["check", str(bench.folder / "no.yaml"), "--debug"]) == 2
    assert "Traceback" in capfd.readouterr().err
    assert main(["check", str(bench.folder / "no.yaml")]) == 2
    assert "Traceback" not in capfd.readouterr().err


def test_a_problem_shows_the_line_and_what_next():
    problem = Problem("is wrong", "a.b", Origin("f.yaml", 12, 3, "  b: 1\r"), "do this\nor that")
    assert problem.render() == "f.yaml:12:3: a.b: is wrong\n    12 |   b: 1\n  -> do this\n  -> or that"


def test_a_suggestion_is_close_or_a_list():
    assert suggest("adamv", ["lion", "adamw"]) == "did you mean 'adamw'?"
    assert suggest("xyz", ["lion", "adamw"], noun="optimizers") == "optimizers: adamw, lion"
    assert suggest("xyz", map(str, range(20)), noun="n").endswith(", …")
    assert suggest("xyz", [], noun="runs") == "there are no runs at all"
