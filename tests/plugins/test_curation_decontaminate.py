"""Decontamination: an evaluation item is found wherever it stands, and the removed record says where."""

from __future__ import annotations

import json
import random

import pytest

from recipe_runner import RecipeError, Record
from recipe_runner.testing import check_filter, make
from recipe_runner.testing.local import slot

rng = random.Random(5)
WORDS = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=5)) for _ in range(400)]


def words(count):
    return [rng.choice(WORDS) for _ in range(count)]


@pytest.fixture
def item():
    return words(20)


@pytest.fixture
def file(tmp_path, item):
    target = tmp_path / "eval.jsonl"
    rows = [
        {"q": " ".join(words(15)), "choices": []},
        {"q": " ".join(item), "choices": [" ".join(words(9)), "too short"]},
    ]
    target.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(target)


def build(file, **config):
    return slot("filter", {"use": "decontaminate", "files": [file], **config}).build()


def test_thirteen_words_in_a_row_anywhere_are_found_and_twelve_are_not(file, item):
    judge = build(file)
    for at in (0, 1, 500):
        around = words(at), words(300)
        for length, found in ((13, True), (12, False), (20, True)):
            text = " ".join([*around[0], *(item[2 : 2 + length] if length < 20 else item), *around[1]])
            verdict = judge.judge([Record("a", text)])[0]
            assert verdict.keep != found
            if found:
                assert [(s["from"], s["to"]) for s in verdict.spans] == [(at, at + length)]
                assert verdict.spans[0]["found_in"] == "eval.jsonl:2"
                assert verdict.scores["matches"] == length - 12
    check_filter(judge, [Record(str(n), " ".join([*words(n), *item[: n // 2]])) for n in range(0, 40, 3)])


def test_fewer_words_in_a_row_than_an_item_must_have_are_sought(file, item):
    """With `ngram` below `shortest` no item was long enough, and the error said that the file has none."""
    judge = build(file, ngram=6, fields=["q"])
    for length, found in ((6, True), (5, False)):
        assert judge.judge([Record("a", " ".join([*item[3 : 3 + length], *words(30)]))])[0].keep != found


def test_case_marks_and_line_ends_do_not_hide_it(file, item):
    hidden = "Well:\n" + ",  ".join(word.upper() for word in item[:10]) + "!\n\n" + "; ".join(item[10:])
    assert not build(file).judge([Record("a", hidden)])[0].keep


def test_the_fields_named_are_the_ones_sought(file, item):
    text = Record("a", " ".join(item))
    assert build(file, fields=["choices"]).judge([text])[0].keep
    with pytest.raises(RecipeError, match=r"eval.jsonl:1: no field 'qu'"):
        build(file, fields=["qu"])


def test_a_removed_record_holds_its_spans(file, item, tmp_path):
    rows = [{"id": "clean", "text": " ".join(words(50))}, {"id": "dirty", "text": " ".join(words(5) + item)}]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {"sources": {"web": {"use": "jsonl", "path": str(tmp_path / "in.jsonl")}}, "heldout": 0,
              "steps": {"clean": {"use": "decontaminate", "files": [file]}}}  # fmt: skip
    corpus = make("curation", config, tmp_path / "out")
    assert [record.id for record in corpus.read("web")] == ["clean"]
    removed = json.loads((corpus.path / "removed" / "01_clean" / "web.jsonl").read_text())
    assert removed["spans"] == [{"from": 5, "to": 25, "text": " ".join(item), "found_in": "eval.jsonl:2"}]


def test_a_set_that_gives_nothing_is_an_error(tmp_path):
    (tmp_path / "short.txt").write_text("three words only\n")
    with pytest.raises(RecipeError, match="no item of 8 words"):
        build(str(tmp_path / "short.txt"))
