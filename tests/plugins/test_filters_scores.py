"""Scores that are kept and used: conditions, the best of all, and a filter of one's own in a few lines."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from pydantic import ValidationError

from recipe_plugins.filters.rules.score import value_of
from recipe_plugins.filters.rules.where import parsed
from recipe_runner import OneByOne, RecipeError, Record, Verdict, batched
from recipe_runner.testing import check_filter, make
from recipe_runner.testing.local import slot


def where(condition: str, **meta):
    return batched(slot("filter", {"use": "score", "where": condition}).build()).judge([Record("a", "x", meta=meta)])[0]


SCORES = {"quality": {"quality": 0.8}, "repeats": {"top_2_gram": 0.1, "words": 9}, "other": {"words": 7}}


@pytest.mark.parametrize(
    ("condition", "keep"),
    [
        ("quality >= 0.8", True), ("quality > 0.8", False), ("quality <= .8", True), ("quality < 8e-1", False),
        ("quality == 0.8", True), ("quality != 0.8", False), ("quality.quality>=0.8", True),
        ("top_2_gram < 0.2 and quality < 0.5", False), ("top_2_gram < 0.2 or quality < 0.5", True),
        ("quality < 0 and quality < 0 or quality > 0", True), ("quality > 0 or quality < 0 and quality < 0", True),
        ("repeats.words == 9 and other == 7", True), ("level >= -1", True),
    ],
)  # fmt: skip
def test_conditions(condition, keep):
    found = where(condition, scores=SCORES, level=-1)
    assert (found.keep, found.reason) == (keep, "" if keep else "score")


@pytest.mark.parametrize(
    ("condition", "message"),
    [("qualty >= 0.8", "no score is called 'qualty'"), ("words > 1", "other.words and repeats.words"),
     ("repeats > 1", "no score"), ("quality > 0 or qualty > 0", "qualty"), ("none > 0", "not a finite")],
)  # fmt: skip
def test_a_name_that_means_no_score_or_several_is_an_error(condition, message):
    with pytest.raises(RecipeError, match=message):
        where(condition, scores={**SCORES, "none": {"x": None}}, flag=True)


def test_scores_that_came_with_a_document_count_where_they_are_numbers():
    scores = {"edu": 3.5, "web": {"seen": 2, "kind": "news"}}
    assert where("edu >= 3 and scores.edu >= 3 and seen == 2", scores=scores).keep
    for name in ("kind", "sure", "plain"):
        with pytest.raises(RecipeError, match=f"no score is called '{name}'"):
            where(f"{name} >= 0", scores=scores, sure=False, plain="1")
    assert where("scores > 1", scores=2).keep


def test_a_document_without_scores_says_how_to_get_them():
    with pytest.raises(RecipeError) as caught:
        where("quality > 0")
    assert "keep_scores" in str(caught.value.next)


@pytest.mark.parametrize(
    "condition", ["", "quality", "quality => 1", "quality >= high", "1 >= quality", "a > 1 and", "a > 1, b > 1",
                  "__import__('os') > 1", "a > 1 or or b > 1", "(a > 1)"],
)  # fmt: skip
def test_what_is_no_condition_is_an_error_at_load(condition):
    with pytest.raises(ValueError, match="is no comparison"):
        parsed(condition)
    with pytest.raises(ValidationError):
        slot("filter", {"use": "score", "where": condition})


@pytest.mark.parametrize(
    "config", [{}, {"where": "a > 1", "top": 0.1, "by": "a"}, {"top": 0.1}, {"where": "a > 1", "by": "a"},
               {"top": 0, "by": "a"}],
)  # fmt: skip
def test_a_condition_or_the_best_not_both(config):
    with pytest.raises(ValidationError):
        slot("filter", {"use": "score", **config})


def best(records: list[Record], folder: Path, size: int, top: float) -> set[str]:
    folder.mkdir()
    found = slot("filter", {"use": "score", "top": top, "by": "q"}).build()
    batches = [records[at : at + size] for at in range(0, len(records), size)]
    state = found.decide((found.sketch(batch) for batch in batches), folder)
    return {r.id for batch in batches for r, v in zip(batch, found.judge(batch, state), strict=True) if v.keep}


def test_the_best_are_the_same_in_any_order_ties_and_all(tmp_path):
    rng = random.Random(5)
    records = [Record(str(n), "x", meta={"q": rng.choice([0.1, 0.5, 0.5, 0.9])}) for n in range(201)]
    kept = best(records, tmp_path / "a", 7, 0.6)
    assert len(kept) == round(0.6 * 201)
    lowest = min(float(r.meta["q"]) for r in records if r.id in kept)
    assert all(r.id in kept for r in records if r.meta["q"] > lowest)
    assert best(rng.sample(records, 201), tmp_path / "b", 50, 0.6) == kept
    assert best(records, tmp_path / "c", 7, 1) == {r.id for r in records}


def corpus(folder: Path, steps: dict, texts: list[str]):
    source = folder / "in.jsonl"
    lines = [json.dumps({"id": str(n), "text": text, "meta": {"kind": "t"}}) for n, text in enumerate(texts)]
    source.write_text("\n".join(lines), encoding="utf-8")
    sources = {"d": {"use": "jsonl", "path": str(source)}}
    return make("curation", {"sources": sources, "steps": steps, "heldout": 0}, folder / "out")


def rows(artifact) -> dict[str, dict]:
    files = sorted(artifact.path.glob("payload/train/d/*.jsonl"))
    return {row["id"]: row for file in files for row in map(json.loads, file.read_text("utf-8").splitlines())}


TEXTS = [f"{'word ' * n}number {n}" for n in range(1, 11)]


@pytest.mark.parametrize(
    ("name", "meta", "said"),
    [
        ("qualty", {"scores": {"quality": {"quality": 0.8, "other": 1}}}, "did you mean 'quality'?"),
        ("answer_word", {}, "did you mean 'answer_words'?"),
        ("toxicity", {}, "let the step that scores say `keep_scores: true`"),
    ],
)
def test_a_misspelt_score_is_likened_to_one_that_there_is(name, meta, said):
    with pytest.raises(RecipeError, match=f"no score is called '{name}'") as caught:
        value_of(Record("a", "x", meta=meta), name)
    assert caught.value.next == said


def test_a_curation_keeps_scores_and_uses_them_before_and_after_a_barrier(tmp_path):
    steps = {
        "size": {"use": "length", "min_words": 1, "keep_scores": True},
        "copies": {"use": "exact-dedup", "keep_scores": True},
        "long": {"use": "score", "where": "size.words >= 5"},
        "best": {"use": "score", "top": 0.5, "by": "size.words"},
    }
    kept = rows(corpus(tmp_path, steps, [*TEXTS, TEXTS[-1]]))
    assert sorted(map(int, kept)) == [6, 7, 8, 10]  # "10" survives "9"; 8 have 5 words or more, half of them
    size = {"characters": len(TEXTS[9]), "words": 12, "bytes": len(TEXTS[9])}
    assert kept["10"]["meta"] == {"kind": "t", "scores": {"size": size, "copies": {"copies": 2}}}


def test_scores_are_kept_only_where_that_is_said(tmp_path):
    kept = rows(corpus(tmp_path, {"size": {"use": "length", "min_words": 1}}, TEXTS))
    assert all(row["meta"] == {"kind": "t"} for row in kept.values())


class Even:
    def judge_one(self, record: Record) -> Verdict:
        even = len(record.text or "") % 2 == 0
        return Verdict(even, "" if even else "odd")


def test_a_class_with_one_method_is_a_filter():
    assert isinstance(batched(Even()), OneByOne)
    assert [v.reason for v in batched(Even()).judge([Record("a", "ab"), Record("b", "a")])] == ["", "odd"]
    check_filter(Even(), [Record(str(n), text) for n, text in enumerate(TEXTS)])
    whole = slot("filter", "minhash-dedup").build()
    assert batched(whole) is whole


def test_length_and_diversity_of_instruction_rows():
    turns = [("user", "Say it again"), ("assistant", "yes yes yes yes"), ("user", "More"), ("assistant", "No more")]
    row = Record("r", messages=[{"role": role, "content": content} for role, content in turns])

    def keeps(where: str, record: Record = row) -> bool:
        return step(where).judge([record])[0].keep

    def step(where: str):
        return batched(slot("filter", {"use": "score", "where": where}).build())

    assert keeps("turns == 4 and prompt_words == 4 and answer_words == 6")
    assert keeps("answer_diversity > 0.59 and answer_diversity < 0.61")  # 3 of 5 pairs
    assert keeps("diversity == 1 and words == 3", Record("t", "one Two two"))
    assert keeps("words == 9", Record("t", "one", meta={"words": 9}))  # a score that is there counts first
    with pytest.raises(RecipeError, match="t is no conversation"):
        keeps("answer_words > 1", Record("t", "text"))
    top = slot("filter", {"use": "score", "top": 0.5, "by": "answer_words"}).build()
    assert len(top.sketch([row])) == 24


def test_the_best_are_the_share_that_is_written(tmp_path):
    """57.5 of 100 are 58 to the nearest even; the float 0.575 times 100 is a little less."""
    records = [Record(str(n), "x", meta={"q": n}) for n in range(100)]
    assert len(best(records, tmp_path / "a", 30, 0.575)) == 58
    assert len(best(records, tmp_path / "b", 30, 0.07)) == 7
