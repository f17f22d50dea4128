"""`recipe show ARTIFACT --removed STEP:REASON`: the documents that were removed, as many as asked for."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from recipe_runner.cli import main
from recipe_runner.testing import make


@pytest.fixture
def show(tmp_path):
    rows = [{"id": f"d{n}", "text": "word " * (n + 1)} for n in range(20)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    step = {"use": "gopher-quality", "min_words": 8, "min_stop_words": 0, "max_words": 15}
    sources = {"web": {"use": "jsonl", "path": str(tmp_path / "in.jsonl")}}
    corpus = make("curation", {"sources": sources, "steps": {"size": step}, "heldout": 0}, tmp_path / "out")

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "recipe_runner.cli", "show", str(corpus.path), "--removed", *arguments]
        return subprocess.run(command, capture_output=True, text=True)

    return run


def test_a_conversation_is_shown_as_who_says_what(tmp_path, capfd):
    talk = {"messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]}
    long = {"messages": [talk["messages"][0], {"role": "assistant", "content": "So it is, my friend."}]}
    (tmp_path / "in.jsonl").write_text(f"{json.dumps(talk)}\n{json.dumps(long)}\n")
    sources = {"chat": {"use": "jsonl", "path": str(tmp_path / "in.jsonl")}}
    step = {"use": "score", "where": "answer_words >= 3"}
    corpus = make("curation", {"sources": sources, "steps": {"long": step}, "heldout": 0}, tmp_path / "out")
    assert main(["show", str(corpus.path), "--removed", "long"]) == 0
    told = capfd.readouterr().err
    assert "user: Why?" in told
    assert "assistant: So." in told
    assert main(["show", str(corpus.path), "--removed", "short"]) == 2
    assert "'short' is no step of it, or removed nothing" in capfd.readouterr().err


def test_what_gave_a_document_away_is_shown(tmp_path, capfd):
    item = " ".join(f"word{n}" for n in range(14))
    (tmp_path / "eval.jsonl").write_text(json.dumps({"q": item}) + "\n")
    rows = [{"text": f"As they say, {item}. Yes."}, {"text": "nothing of it"}]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sources = {"web": {"use": "jsonl", "path": str(tmp_path / "in.jsonl")}}
    steps = {"clean": {"use": "decontaminate", "files": [str(tmp_path / "eval.jsonl")]}}
    corpus = make("curation", {"sources": sources, "steps": steps, "heldout": 0}, tmp_path / "out")
    assert main(["show", str(corpus.path), "--removed", "clean"]) == 0
    assert "found_in=eval.jsonl:1" in capfd.readouterr().err.replace("\n", "")


def test_it_shows_so_many_of_a_step_and_reason_and_names_what_there_is(show):
    found = json.loads(show("size:too_long", "-n", "3", "--json").stdout)
    assert len(found) == 3
    few = json.loads(show("size", "-n", "2", "--json").stdout)
    assert {row["reason"] for row in few} == {"too_long", "too_short"}  # some of each
    assert {(row["domain"], row["reason"], row["scores"]["words"] > 15) for row in found} == {("web", "too_long", True)}
    assert {row["reason"] for row in json.loads(show("size", "-n", "99", "--json").stdout)} == {"too_long", "too_short"}
    assert "too_short" in show("size:too_short").stderr
    wrong = show("size:too_small")
    assert wrong.returncode == 2
    assert "too_short" in wrong.stderr
    assert "did you mean 'size'" in show("sise").stderr
