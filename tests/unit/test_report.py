"""What a run says at its end: the same facts on the terminal, as JSON, and in report.html."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest

from recipe_runner.commands.report import gather, save, tables_of
from recipe_runner.commands.tables import cell, html, samples_table, show, table

NOTED = {
    "tables": [{"title": "bits per byte", "columns": ["domain", "base", "chat"], "rows": [["code", 2.34567, None]]}],
    "samples": [
        {"prompt": "What is <b>?", "answers": {"base": "a\nb", "chat": "bold & more"}},
        {"prompt": "And?", "answers": {"chat": "so"}},
    ],
    "parameters": 1_053_312,
}


def write_run(folder: Path, facts: dict, warnings: list[str]) -> Path:
    """A run of two stages, of which the second has noted things."""
    store, run = folder / ".recipe", folder / ".recipe" / "runs" / "r" / "1"
    stages = {}
    for name, inputs in (("corpus", {}), ("base", {"corpus": "d-corpus", "teacher": "hub:org/name"})):
        path = store / "artifacts" / name
        path.mkdir(parents=True)
        manifest = {
            "type": "model", "use": f"x:{name}@1", "digest": f"d-{name}", "created": "now", "seconds": 9.5,
            "identity": {"inputs": inputs}, "files": [{"size": 5}], "versions": {"torch": "2.13"}, "execution": {},
            "facts": facts if name == "base" else {}, "warnings": warnings if name == "base" else [],
        }  # fmt: skip
        (path / "manifest.json").write_text(json.dumps(manifest))
        stages[name] = {"status": "built", "key": "k" * 64, "path": str(path), "reasons": ["forced"], "seconds": 9.6}
    stages["late"] = {"status": "failed", "key": "k" * 64, "path": "", "reasons": ["no-artifact"], "seconds": 0.0}
    run.mkdir(parents=True)
    told = {"recipe": "r", "run": "1", "file": "r.yaml", "overrides": ["a=1"], "started": "now", "seconds": 9.9}
    (run / "run.json").write_text(json.dumps({**told, "status": "failed", "stages": stages}))
    return run


class Cells(HTMLParser):
    """The texts of a page, and what it would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.fetched: list[str] = []

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def handle_starttag(self, tag: str, attrs) -> None:
        self.fetched += [tag] * (tag in ("script", "link", "img", "b")) + [
            name for name, _ in attrs if name in ("src", "href")
        ]


def test_the_report_has_everything_and_needs_no_other_file(tmp_path):
    page = Cells()
    page.feed(save(gather(write_run(tmp_path, NOTED, ["the loss <was> NaN"]))).read_text(encoding="utf-8"))
    texts = " | ".join(page.texts)
    for wanted in (
        "forced", "9.6", "base: bits per byte", "2.346", "What is <b>?", "bold & more", "the loss <was> NaN",
        str(tmp_path / ".recipe/artifacts/base/payload"), "torch", "1,053,312", "failed", "a=1", "org/name",
    ):  # fmt: skip
        assert wanted in texts, wanted
    assert page.fetched == []


def test_lineage_says_which_stage_made_each_input(tmp_path):
    run = gather(write_run(tmp_path, {}, []))
    assert run["stages"]["base"]["made_by"] == {"corpus": "corpus", "teacher": "outside"}


def test_what_is_shown_at_the_end_is_what_stages_noted(tmp_path):
    shown = tables_of(gather(write_run(tmp_path, NOTED, ["careful"])))
    assert [entry["title"] for entry in shown] == ["base: bits per byte", "base: samples", "warnings"]
    assert shown[1]["columns"] == ["prompt", "base", "chat"]
    assert shown[1]["rows"][1] == ["And?", None, "so"]
    assert shown[2]["rows"] == [("base", "careful")] or shown[2]["rows"] == [["base", "careful"]]


def test_an_artifact_that_is_gone_leaves_the_report_readable(tmp_path):
    run = write_run(tmp_path, NOTED, [])
    (tmp_path / ".recipe/artifacts/base/manifest.json").unlink()
    assert save(gather(run)).is_file()


def test_every_run_leaves_a_report_a_failed_one_too(recipe, here):
    assert recipe("run", "toy.yaml", "stages.tuned.fail_at=3").code == 1
    (report,) = here.glob(".recipe/runs/toy/*/report.html")
    assert "failed" in report.read_text(encoding="utf-8")
    assert recipe("report", "--json").json["stages"]["tuned"]["status"] == "failed"


def test_the_end_of_a_run_prints_whole_paths_and_the_chat_command(recipe, here):
    err = recipe("run", "toy.yaml", "--store", "my store").err
    (run,) = here.glob("my store/runs/toy/*")
    payloads = [str(path) for path in here.glob("my store/artifacts/*/*/payload")]
    assert len(payloads) == 3
    assert all(path in err for path in payloads)
    assert f"recipe chat '{run}'" in err


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "–"), (True, "yes"), (1053312, "1,053,312"), (2.34567, "2.346"), (1e-5, "1e-05"), (123456.7, "123,457"),
     (3e15, "3e+15"), ("a", "a"), ({"b": 1, "c": [2, None]}, "b=1, c=(2, –)"),
     ([{"a": 1}, {"a": 1, "b": 2}], "a=1, (a=1, b=2)"), (float("nan"), "nan")],
)  # fmt: skip
def test_values_are_shown_as_people_write_them(value, shown):
    assert cell(value) == shown


def test_tables_of_nothing_and_of_odd_text_are_drawn(capsys):
    odd = samples_table("odd [bold]", [{"prompt": "[red]x[/red]", "answers": {"m": "<i>\x1b"}}])
    show([table("empty", "a, b", []), odd])
    out, err = capsys.readouterr()
    assert out == ""
    assert "[red]x[/red]" in err
    assert "<i>" not in html(odd)


def test_a_text_in_parts_is_marked_with_colours_or_without(capsys):
    shown = table("rows", "row, text", [["a", {"marked": [["<q>", False], ["yes", True]]}]])
    show([shown])
    assert "<q>⟦yes⟧" in capsys.readouterr().err
    assert "<td>&lt;q&gt;<mark>yes</mark></td>" in html(shown)


def test_on_a_terminal_a_marked_text_has_a_colour(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    show([table("rows", "text", [[{"marked": [["q", False], ["yes", True]]}]])])
    assert "q\x1b[32myes\x1b[0m" in capsys.readouterr().err
