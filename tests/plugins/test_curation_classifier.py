"""Classifiers: what is wanted is told from what is not, the same whatever the order, and it is said how well."""

from __future__ import annotations

import json
import random
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from recipe_plugins.filters import linear
from recipe_plugins.filters.classifier import kept
from recipe_plugins.filters.learned_config import Keep
from recipe_runner import RecipeError, Record
from recipe_runner.identity import folder_files
from recipe_runner.testing import make
from recipe_runner.testing.local import slot

GOOD = "theorem proof lemma follows integral converges therefore bounded sequence limit".split()
BAD = "click subscribe cheap deal buy now offer cart login cookie".split()
BOTH = "the of and a to in is that for it".split()


def text(rng, words, count=40):
    return " ".join(rng.choice(words if rng.random() < 0.4 else BOTH) for _ in range(count))


def rows(seed, words, name, count):
    rng = random.Random(seed)
    return [{"id": f"{name}{n}", "text": text(rng, words)} for n in range(count)]


def write(file, found):
    file.write_text("".join(json.dumps(row) + "\n" for row in found))
    return str(file)


@pytest.fixture
def files(tmp_path):
    mixed = random.Random(3).sample(rows(1, GOOD, "good", 60) + rows(2, BAD, "bad", 60), 120)
    return {
        "web": write(tmp_path / "web.jsonl", mixed),
        "good": write(tmp_path / "good.jsonl", rows(4, GOOD, "g", 80)),
        "bad": write(tmp_path / "bad.jsonl", rows(5, BAD, "b", 80)),
    }


def curate(files, folder, step, domains=("web",), **more):
    sources = {name: {"use": "jsonl", "path": files[name]} for name in domains}
    return make("curation", {"sources": sources, "steps": {"model": step}, "heldout": 0.1, **more}, folder)


def taught(files, keep, use="quality-classifier"):
    return {"use": use, "keep": keep, "positives": {"files": [files["good"]]}, "negatives": {"files": [files["bad"]]}}


def ids(corpus, domain="web"):
    return {record.id for split in ("train", "heldout") for record in corpus.read(domain, split)}


def test_trained_on_files_it_tells_good_from_bad_and_says_how_well(files, tmp_path):
    corpus = curate(files, tmp_path / "a", taught(files, {"above": 0.5}))
    assert ids(corpus) == {f"good{n}" for n in range(60)}
    curve, around = corpus.manifest["facts"]["tables"][:2]
    assert curve["title"] == "model: 16 positives and 16 negatives held out"
    assert next(row for row in curve["rows"] if row[0] == "0.5") == ["0.5", "1.000", "1.000", "50.0%"]
    assert len(around["rows"]) == 10
    removed = json.loads(next(corpus.path.glob("removed/*/web.jsonl")).read_text().splitlines()[0])
    assert removed["reason"] == "low_quality"
    assert removed["scores"]["quality"] < 0.5


@pytest.mark.parametrize(("top", "kept"), [("7%", 7), (0.29, 29), ("0.5%", 1), (1, 100), (0, 0)])
def test_top_is_the_share_that_is_written(top, kept):
    """7 % of 100 is 7; the float 0.07 times 100 is a little more, and was rounded up to 8."""
    config = {"use": "quality-classifier", "keep": {"top": top}, "positives": {"domains": ["a"]}}
    found = slot("filter", {**config, "negatives": {"domains": ["b"]}}).build()
    values = np.arange(100) / 100
    assert (values >= found._threshold(values)).sum() == kept


def test_top_keeps_that_share_and_all_keeps_all(files, tmp_path):
    assert len(ids(curate(files, tmp_path / "a", taught(files, {"top": 0.25})))) == 30
    assert ids(curate(files, tmp_path / "a2", taught(files, {"top": 0.25}))) < {f"good{n}" for n in range(60)}
    assert len(ids(curate(files, tmp_path / "b", taught(files, "all")))) == 120


def test_toxicity_removes_what_is_like_the_positives(files, tmp_path):
    corpus = curate(files, tmp_path / "a", taught(files, {"below": 0.5}, "toxicity-classifier"))
    assert ids(corpus) == {f"bad{n}" for n in range(60)}
    assert "toxic" in next(corpus.path.glob("removed/*/web.jsonl")).read_text()


def test_domains_teach_it_though_it_judges_others_only(files, tmp_path):
    step = {"use": "quality-classifier", "keep": {"above": 0.5}, "only": {"domain": ["web"]},
            "positives": {"domains": ["good"]}, "negatives": {"domains": ["bad"]}}  # fmt: skip
    corpus = curate(files, tmp_path / "a", step, ("web", "good", "bad"))
    assert ids(corpus) == {f"good{n}" for n in range(60)}
    assert len(ids(corpus, "bad")) == 80
    with pytest.raises((ValidationError, RecipeError), match="no source is called 'godo'"):
        curate(files, tmp_path / "b", {**step, "positives": {"domains": ["godo"]}}, ("web", "good", "bad"))


def test_order_and_workers_change_nothing(files, tmp_path):
    one = curate(files, tmp_path / "a", taught(files, {"top": 0.3}))
    found = [json.loads(line) for line in Path(files["web"]).read_text().splitlines()]
    (tmp_path / "parts").mkdir()
    for n in range(3):
        write(tmp_path / "parts" / f"{n}.jsonl", found[::-1][n::3])
    many = curate({**files, "web": str(tmp_path / "parts")}, tmp_path / "b", taught(files, {"top": 0.3}),
                  execution={"workers": 2})  # fmt: skip
    assert folder_files(one.payload) == folder_files(many.payload)


def test_a_text_s_score_does_not_depend_on_its_batch():
    texts = [row["text"] for row in rows(6, GOOD, "x", 30)] + ["", "..."]
    model = linear.train(texts[:20] + [row["text"] for row in rows(7, BAD, "y", 20)], [True] * 20 + [False] * 20)
    assert np.array_equal(linear.scores(model, texts), [linear.scores(model, [text])[0] for text in texts])


def test_examples_are_hashed_a_few_at_a_time_and_give_the_same(monkeypatch):
    rng = random.Random(3)
    texts = [text(rng, [f"word{n}" for n in range(900)], rng.randrange(1, 900)) for _ in range(600)] + ["", "…"]
    found = linear.Features(texts)
    tracemalloc.start()
    linear.Features(texts)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 40 * sum(map(len, texts))
    monkeypatch.setattr(linear, "TOGETHER", len(texts))
    whole = linear.Features(texts)
    for name in ("rows", "buckets", "values"):
        assert np.array_equal(getattr(found, name), getattr(whole, name))


def test_int_score_is_rounded_as_fineweb_edu_does():
    assert [kept(Keep(int_score=3), value, None) for value in (2.4, 2.51, 3.0, 9.0, -1.0)] == \
        [False, True, True, True, False]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"keep": {}}, "one of"),
        ({"keep": {"above": 0.5, "top": 0.1}}, "one of"),
        ({"negatives": {}}, "both `positives` and `negatives`"),
        ({"positives": {"files": ["/no/such/file"]}}, "no such file"),
    ],
)
def test_a_wrong_config_is_an_error_at_load(files, change, said):
    with pytest.raises((ValidationError, RecipeError), match=said):
        slot("filter", {**taught(files, "all"), **change})


def test_too_few_or_broken_examples_are_errors(files, tmp_path):
    few = write(tmp_path / "few.jsonl", rows(1, GOOD, "f", 3))
    with pytest.raises(RecipeError, match="3 positives"):
        curate(files, tmp_path / "a", {**taught(files, "all"), "positives": {"files": [few]}})
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"text": "x"}\n{"body": "y"}\n')
    with pytest.raises(RecipeError, match=r"broken.jsonl:2: not an object with `text`"):
        curate(files, tmp_path / "b", {**taught(files, "all"), "positives": {"files": [str(broken)]}})


@pytest.mark.slow
def test_a_transformers_classifier_is_loaded_by_the_path_of_its_weights(files, tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    vocab = {word: n for n, word in enumerate(["[PAD]", "[UNK]", *GOOD, *BAD, *BOTH])}
    inner = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    made = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]")
    made.save_pretrained(tmp_path / "m")
    config = BertConfig(vocab_size=len(vocab), hidden_size=8, num_hidden_layers=1, num_attention_heads=1,
                        intermediate_size=8, num_labels=1, max_position_embeddings=64)  # fmt: skip
    import torch

    torch.manual_seed(0)  # of what is not set below: positions
    model = BertForSequenceClassification(config)
    with torch.no_grad():  # a score of about 3.2 or 1.8, as the document begins with a good word or a bad one
        model.classifier.weight.zero_()
        model.classifier.bias.fill_(2.5)
        model.bert.pooler.dense.weight.copy_(5 * torch.eye(8))
        model.bert.pooler.dense.bias.zero_()
        model.classifier.weight[0, 0] = 0.7
        for layer in model.bert.encoder.layer:
            for name in (layer.attention.output.dense, layer.output.dense):
                name.weight.zero_()
                name.bias.zero_()
        sides = model.bert.embeddings.word_embeddings.weight
        for words, value in ((GOOD, 9.0), (BAD, -9.0), (BOTH, 0.0)):
            for word in words:
                sides[vocab[word], 0] = value
    model.save_pretrained(tmp_path / "m")
    path = str(tmp_path / "m" / "model.safetensors")
    step = {"use": "quality-classifier", "keep": {"top": 0.5}, "model": path}
    assert 55 <= len(ids(curate(files, tmp_path / "a", step))) <= 65
    edu = slot("filter", {"use": "quality-classifier", "keep": {"int_score": 3}, "model": path}).build()
    records = [Record("good", " ".join(GOOD[:8])), Record("bad", " ".join(BAD[:8]))]
    (tmp_path / "state").mkdir()
    verdicts = edu.judge(records, edu.decide([edu.sketch(records)], tmp_path / "state"))
    assert [verdict.keep for verdict in verdicts] == [True, False]
    assert verdicts[0].scores["quality"] > 2.5 > verdicts[1].scores["quality"]
