"""Slots: a name becomes one component with one config, and a mistake in it stays in it."""

from __future__ import annotations

import subprocess
import sys
from typing import Annotated, Any

import pytest
from pydantic import ValidationError

from recipe_runner import Component, Config, Registry, Slot, Use
from recipe_runner.components import Count, Located, Ref, Share, Size, Validation, exact, written
from recipe_runner.errors import InvalidRecipe, PluginError


class WithUse(Config):
    before: int = 0


class Options(Config):
    by: int = 0


def problems(bench, *overrides):
    with pytest.raises(InvalidRecipe) as caught:
        bench.load(*overrides)
    return caught.value.problems


def test_shorthand_and_mapping_are_the_same(toy):
    assert toy(rule="times") == toy(rule={"use": "times"}) == toy(rule={"use": "recipe-toy:times"})


def test_a_slot_without_use_keeps_the_default_component(toy):
    assert toy(rule={"by": 3}).config.rule.component.name == "plus"
    assert toy(rule={"by": 3}).config.rule.config.by == 3


def test_build_calls_the_target_with_the_config_alone(toy):
    assert toy("toy-rule", "times", by=3).build()(5) == 15


def test_options_of_a_slot_are_split_from_the_component_s_config(toy):
    use = toy(rules={"x": {"use": "plus", "by": 4, "every": 2}}).config.rules["x"]
    assert (use.config.by, use.options.every) == (4, 2)


def test_what_is_written_is_what_was_validated(toy, plugins):
    """The worker gets the config as JSON; it must be the same config, options and nested slots included."""
    stage = toy(rules={"x": {"use": "times", "every": 2}}, rule={"by": 3}, more={}, corpus="data", size="1GiB")
    assert Slot("stage").resolve(written(stage), Validation(plugins.registry)) == stage


def test_a_null_entry_of_a_mapping_is_taken_out(toy):
    assert list(toy(rules={"x": "plus", "y": None}).config.rules) == ["x"]


def test_every_wrong_field_of_every_slot_is_one_problem_where_it_stands(bench):
    stages = """
  a:
    use: toy-train
    rule: {use: plus, bye: 3}
    rules:
      one: {use: times, by: much}
      two: {use: plus, evry: 2}
    details: {amont: 3}
    execution: {micro_batch: few, launcher: {nods: 2}}
"""
    found = {p.path: (p.origin.line, p.what, p.next) for p in problems(bench.write(stages))}
    assert {path: line for path, (line, _, _) in found.items()} == {
        "stages.a.rule.bye": 7, "stages.a.rules.one.by": 9, "stages.a.rules.two.evry": 10,
        "stages.a.details.amont": 11, "stages.a.execution.micro_batch": 12, "stages.a.execution.launcher.nods": 12,
    }  # fmt: skip
    assert found["stages.a.rule.bye"][2] == "did you mean 'by'?"
    assert found["stages.a.rules.two.evry"][2] == "did you mean 'every'?", "the slot's own keys are suggested too"
    assert found["stages.a.details.amont"][2] == "did you mean 'amount'?"


def test_only_the_config_of_the_component_in_use_is_imported(bench):
    """`broken` has a config that cannot be imported: a recipe that does not name it never learns of it."""
    bench.write("  a: {use: toy-train, rule: {use: plus, by: x}}\n")
    code = f"""
import sys
from recipe_runner.recipe import load
try: load({str(bench.recipe)!r})
except ValueError as error: assert len(error.problems) == 1, error
else: raise SystemExit("valid?")
assert "recipe_toy.stages" not in sys.modules and "recipe_plugins.curation.config" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_component_that_cannot_be_imported_is_a_located_problem_of_the_plugin(bench):
    (problem,) = problems(bench.write("  a: {use: toy-train, rule: broken}\n"))
    assert problem.plugin
    assert "No module named 'recipe_toy.absent'" in problem.what
    assert problem.next == "pip install --upgrade recipe-toy"
    assert problem.origin.column == 23


@pytest.mark.parametrize("error", [RuntimeError("no CUDA"), SyntaxError("bad"), AttributeError("X")], ids=repr)
def test_whatever_a_plugin_s_module_raises_is_the_plugin_s_error(monkeypatch, error):
    def fail(_):
        raise error

    monkeypatch.setattr("importlib.import_module", fail)
    with pytest.raises(PluginError, match="cannot be loaded") as caught:
        Component(kind="x", name="y", target="a:b", config="a:B", dist="d").config_class()
    assert caught.value.__cause__ is error


def test_two_distributions_with_one_name_must_be_told_apart(toy):
    both = Registry([Component(kind="k", name="n", target="a:b", dist=d) for d in ("one", "two")])
    with pytest.raises(LookupError, match="one:n or two:n"):
        both.find("k", "n")
    assert both.find("k", "two:n").dist == "two"


def test_a_name_of_another_kind_says_so(plugins):
    with pytest.raises(LookupError, match="'plus' is a toy-rule, which does not go here"):
        plugins.registry.find("stage", "plus")


def test_a_missing_component_names_the_plugins_that_failed():
    registry = Registry([], {"recipe-x": ImportError("no module y")})
    with pytest.raises(LookupError, match="plugin recipe-x failed to load: no module y"):
        registry.find("stage", "x")


@pytest.mark.parametrize(("config", "options"), [(WithUse, None), (Options, Options)])
def test_a_config_cannot_have_a_field_that_the_slot_takes(config, options):
    component = Component(kind="k", name="n", target="a:b", config=f"{__name__}:{config.__name__}", dist="d")
    sys.modules.setdefault(__name__, sys.modules[config.__module__])
    with pytest.raises(PluginError, match="cannot be in a config"):
        Slot("k", options).resolve("n", Validation(Registry([component])))


class Sizes(Config):
    count: Count = 0
    share: Share = 0.0
    size: Size = 0
    use: Annotated[Use[Any], Slot("launcher")] | None = None


@pytest.mark.parametrize(
    ("written", "value"),
    [("1_600_000", 1_600_000), ("2.5B", 2_500_000_000), ("1.001M", 1_001_000), ("9007199254740993", 2**53 + 1), (3, 3)],
)
def test_counts_are_exact(written, value):
    assert Sizes(count=written).count == value


@pytest.mark.parametrize(("written", "value"), [("6MB", 6_000_000), ("1GiB", 2**30), ("1.5KiB", 1536), ("12", 12)])
def test_sizes_are_exact(written, value):
    assert Sizes(size=written).size == value


@pytest.mark.parametrize(("written", "value"), [("7%", 0.07), ("0.07%", 0.0007), ("28.5 %", 0.285), (0.285, 0.285)])
def test_shares_are_the_numbers_that_are_written(written, value):
    """The float 0.07 by 100 is 0.0007000000000000001."""
    assert Sizes(share=written).share == value


def test_a_number_is_exactly_what_is_written():
    assert exact(0.07) * 100 == 7
    assert exact(1e-9) * 10**9 == 1


@pytest.mark.parametrize("written", ["1.5", "0.0001k", "1.2.3M", "", "many", "-3", "1e6", "nan"])
def test_what_is_no_whole_number_is_refused(written):
    with pytest.raises(ValidationError, match="a whole number"):
        Sizes(count=written)


@pytest.mark.parametrize(
    ("text", "where"),
    [("base", "stage"), ("org/name", "hub"), ("org/name@v1", "hub"), ("./base", "path"), ("../x", "path"),
     ("/x", "path"), ("~/x", "path"), ("s3://x/y", "path")],
)  # fmt: skip
def test_what_a_ref_stands_for(text, where):
    assert Ref(text).where == where


def test_a_path_is_relative_to_the_file_that_wrote_it(toy):
    assert toy(cache=Located("x", "/there")).config.cache == "/there/x"
    assert toy(model=Located("../m", "/there/deep")).config.model.text == "/there/m"
    assert toy(cache=Located("s3://x", "/there")).config.cache == "s3://x"
