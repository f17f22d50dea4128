"""The plan: what would run and why, before anything does, and the same words when it does."""

from __future__ import annotations

import json
import shutil
import sys

import pytest

from recipe_runner.cli import main
from recipe_runner.components import Component
from recipe_runner.contract import Estimate
from recipe_runner.errors import StageFailed, UsageError
from recipe_runner.plan import REASONS, make_plan

STAGES = """
  data: {use: toy-corpus}
  base: {use: toy-train, corpus: data, rule: {use: times, by: 1.5}, rules: {one: plus, two: times}}
  tuned: {use: toy-train, model: base}
  apart: {use: toy-corpus, words: [z]}
"""
ALL_CACHED = {"data": "cached", "base": "cached", "tuned": "cached", "apart": "cached"}


@pytest.fixture(scope="module")
def built(benches):
    bench = benches().write(STAGES)
    bench.run()
    return bench


@pytest.fixture
def copy(built, bench):
    """A bench with the store of `built`, whose runs name the artifacts of this one."""
    shutil.copytree(built.store.root, bench.store.root)
    for path in bench.store.root.glob("runs/*/*/run.json"):
        path.write_text(path.read_text().replace(str(built.store.root), str(bench.store.root)))
    return bench.write(STAGES)


def planned(bench, *overrides: str, force: tuple[str, ...] = ()) -> dict[str, str]:
    """Status and reasons of each stage that is not cached."""
    plans = make_plan(bench.load(*overrides), bench.store, force)
    assert {reason.kind for plan in plans for reason in plan.reasons} <= set(REASONS)
    return {p.stage: " ".join([p.status, *map(str, p.reasons)]) for p in plans if p.status != "cached"}


def test_a_first_plan_has_no_artifact_and_writes_nothing(bench):
    assert planned(bench.write(STAGES)) == {
        "data": "run no-artifact", "base": "pending pending (data)", "tuned": "pending pending (base)",
        "apart": "run no-artifact",
    }  # fmt: skip
    assert not bench.store.root.exists()


def test_after_a_run_all_is_cached(built):
    assert planned(built) == {}


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("stages.base.rule.by=2.5", "config-changed (stages.base.rule.by 1.5 → 2.5)"),
        ("stages.base.steps=11", "config-changed (stages.base.steps 10 → 11)"),
        ("stages.base.ceiling=null", "config-changed (stages.base.ceiling 1000000.0 → null)"),
        ("stages.base.details.amount=3", "config-changed (stages.base.details.amount 1 → 3)"),
        ("stages.base.rules.two.every=2", "config-changed (stages.base.rules.two.every 1 → 2)"),
        ("stages.base.rule.use=plus", "config-changed (stages.base.rule.use times → plus)"),
        ("stages.base.rules.three=plus", "config-changed (stages.base.rules.three.use none → plus)"),
        ("stages.base.rules.two=null", "config-changed (stages.base.rules.two.use times → none)"),
        ("stages.base.seed=3", "config-changed (seed 0 → 3)"),
        ("stages.base.corpus=apart", "input-changed (corpus)"),
        ("stages.base.corpus=null", "input-changed (corpus)"),
    ],
)
def test_a_change_is_named_with_the_field_and_both_values(built, override, reason):
    found = planned(built, override)
    assert reason in found["base"]
    assert found["base"].startswith("run ")
    assert found == {"base": found["base"], "tuned": "pending pending (base)"}, "and reruns what follows, no more"


def test_the_order_of_entries_is_a_change(built, bench):
    bench.store = built.store
    bench.write(STAGES.replace("{one: plus, two: times}", "{two: times, one: plus}"))
    assert planned(bench)["base"] == "run config-changed (stages.base: the order of entries)"


def test_what_stays_out_of_a_key_changes_nothing(built):
    assert planned(built, "execution.threads=1", "stages.base.pause=0.1", "stages.apart.beside=/x") == {}


def test_a_raised_version_is_named(built, monkeypatch):
    raised = Component(
        kind="toy-rule", name="times", target="recipe_toy.stages:Times", config="recipe_toy.config:RuleConfig",
        version=2, dist="recipe-toy",
    )  # fmt: skip
    monkeypatch.setitem(built.plugins.registry._by_kind["toy-rule"], "times", [raised])
    assert planned(built)["base"].startswith("run component-changed (times 1 → 2)")


def test_a_pending_stage_tells_its_own_changes_and_whether_it_is_forced(built):
    found = planned(built, "stages.base.steps=11", "stages.tuned.label=x", force=("tuned",))
    assert found["tuned"] == "pending forced config-changed (stages.tuned.label  → x) pending (base)"


def test_force_is_a_reason_and_what_follows_is_pending(built):
    assert planned(built, force=("data",)) == {
        "data": "run forced", "base": "pending pending (data)", "tuned": "pending pending (base)",
    }  # fmt: skip
    with pytest.raises(UsageError, match="there is no stage 'dta'"):
        planned(built, force=("dta",))


def test_lost_files_and_partial_results(copy):
    (folder,) = (path for path in copy.store.artifacts() if path.parent.name == "toy-corpus" and _is(path, "z"))
    (folder / "payload" / "corpus.json").unlink()
    assert planned(copy) == {"apart": "run missing-files"}
    with pytest.raises(StageFailed):
        copy.run("stages.base.label=new", "stages.base.fail_at=7", "stages.base.execution.checkpoint_every=2")
    assert planned(copy, "stages.base.label=new")["base"] == "resume incomplete (step 7)"
    (copy.partial() / "metrics.jsonl").write_text("5\n")
    assert planned(copy, "stages.base.label=new")["base"] == "resume incomplete", "a damaged file breaks no plan"


def _is(path, word: str) -> bool:
    return word in (path / "payload" / "train" / "all" / "0.jsonl").read_text()


def test_an_upstream_rebuilt_identically_reruns_nothing(copy):
    """Its key is new, its bytes are not: early cutoff."""
    assert planned(copy, "stages.base.rules.one.note=why")["tuned"] == "pending pending (base)"
    assert copy.statuses("stages.base.rules.one.note=why") == {**ALL_CACHED, "base": "built"}
    assert planned(copy, "stages.base.rules.one.note=why") == {}


def test_a_run_gives_the_reason_that_its_plan_gave(copy):
    plan = planned(copy, "stages.base.rule.by=2.5")
    run = copy.run("stages.base.rule.by=2.5")
    assert ["run", *run.results["base"].reasons] == plan["base"].split(" ", 1)
    assert run.results["tuned"].reasons == ["input-changed (model)"]
    assert {name: run.results[name].status for name in ("data", "apart")} == {"data": "cached", "apart": "cached"}


def test_reasons_compare_with_the_last_run_of_this_recipe(copy):
    copy.run("stages.base.steps=11")
    copy.run("stages.base.steps=12")
    assert planned(copy, "stages.base.steps=13")["base"] == "run config-changed (stages.base.steps 12 → 13)"
    assert planned(copy, "stages.base.steps=11") == {}, "what was built stays built"


def test_no_stray_file_of_the_working_directory_is_compared_with(bench, monkeypatch):
    """A failed stage has no path in its run: that must not be read as the folder one stands in."""
    with pytest.raises(StageFailed):
        bench.write("  a: {use: toy-train, fail_at: 1}\n").run()
    shutil.rmtree(bench.partial())
    (bench.folder / "manifest.json").write_text('{"schema": 1, "identity": {"seed": 9, "stage": {}}, "config": {}}')
    monkeypatch.chdir(bench.folder)
    assert planned(bench) == {"a": "run no-artifact"}


def test_plan_answers_as_json_and_check_exits_5(built, monkeypatch, capsys):
    monkeypatch.setattr("recipe_runner.commands.plan.load_plugins", lambda _: built.plugins)
    command = ["plan", str(built.recipe), "--store", str(built.store.root), "--check", "--json"]
    assert main(command) == 0
    assert [stage["status"] for stage in json.loads(capsys.readouterr().out)["stages"]] == ["cached"] * 4
    with pytest.raises(SystemExit) as leaving:
        main([*command, "stages.base.steps=11"])
    out = capsys.readouterr()
    stages = {stage["stage"]: stage for stage in json.loads(out.out)["stages"]}
    assert (leaving.value.code, out.err) == (5, "")
    assert stages["base"]["reasons"] == ["config-changed (stages.base.steps 10 → 11)"]
    assert (stages["tuned"]["status"], stages["tuned"]["key"]) == ("pending", None)


def test_columns_are_as_wide_as_their_widest_entry_and_disk_is_told(bench, plugins, monkeypatch, capfd):
    from recipe_toy.config import WriteConfig

    monkeypatch.setattr("recipe_runner.commands.plan.load_plugins", lambda _: plugins)
    monkeypatch.setattr(WriteConfig, "estimate", lambda self, known: Estimate(disk=2_500_000))
    bench.write("  a-stage-of-a-long-name: {use: toy-corpus}\n  b: {use: toy-train, corpus: a-stage-of-a-long-name}\n")
    assert main(["plan", str(bench.recipe), "--store", str(bench.store.root)]) == 0
    assert capfd.readouterr().err.splitlines() == [
        "a-stage-of-a-long-name  toy-corpus  run      no-artifact",
        "    disk at most 2.5 MB",
        "b                       toy-train   pending  pending (a-stage-of-a-long-name)",
    ]


@pytest.mark.parametrize(
    ("memory", "code", "fits"),
    [({"weights": 5}, 0, True), ({"weights": 10**18, "activations": 10**18}, 6, False), ({}, 7, None)],
)
def test_a_stage_that_does_not_fit_is_a_hint_and_with_fits_an_exit_code(
    bench, plugins, monkeypatch, capfd, memory, code, fits
):
    """A corpus takes no room that anybody counts; a stage that makes a model does, or nobody can tell."""
    from recipe_toy.config import TrainConfig

    less = {"a half": 10**15, "much": 3}
    monkeypatch.setattr("recipe_runner.commands.plan.load_plugins", lambda _: plugins)
    monkeypatch.setattr(TrainConfig, "estimate", lambda self, known: Estimate(memory=memory, alternatives=less))
    bench.write("  data: {use: toy-corpus}\n  base: {use: toy-train, corpus: data}\n")
    words = ["plan", str(bench.recipe), "--store", str(bench.store.root)]
    assert main(words) == 0
    told = [line for line in capfd.readouterr().err.splitlines() if line.startswith(("hint", "  ->"))]
    assert len(told) == (3 if fits is False else 0)
    if told:
        assert told[0].startswith("hint: base does not fit: about 2000000.0 TB a process, of ")
        assert told[1:] == ["  -> a half: 1000.0 TB", "  -> much: 3 B, which fits"]
    with pytest.raises(SystemExit) as left:
        sys.exit(main([*words, "--fits", "--json"]))
    assert left.value.code == code
    assert [stage["fits"] for stage in json.loads(capfd.readouterr().out)["stages"]] == [None, fits]
    bench.run()
    assert main([*words, "--fits", "--check"]) == 0, "what is there takes no room any more"
