"""The token store and its rows: nothing is lost, nothing held out is read, documents stay apart."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
from pydantic import ValidationError

from recipe_runner import Corpus, RecipeError
from recipe_runner.testing import LocalContext, slot

pytestmark = pytest.mark.slow  # the store encodes with transformers


@pytest.fixture
def store(tmp_path, tiny_corpus, tiny_tokeniser):
    from recipe_plugins.training.loading import load_tokenizer
    from recipe_plugins.training.store import build_store

    context = LocalContext(tmp_path)
    tokenizer = load_tokenizer(context, tiny_tokeniser)
    return build_store(context, tiny_corpus, tokenizer, ["prose", "code"], digest="one")


def mixed(store, counts, length=64, isolate=True, seed=1):
    from recipe_plugins.training.store import MixedRows, Portion

    portions = {name: Portion(count, 0, 0) for name, count in counts.items()}
    return MixedRows(store, portions, length=length, isolate=isolate, seed=lambda domain, epoch: seed + epoch,
                     name=lambda domain, number: f"{domain}/{number}")  # fmt: skip


def test_the_store_holds_every_training_document_and_no_other(store, tiny_corpus, tiny_tokeniser):
    from recipe_plugins.training.loading import load_tokenizer

    tokenizer = load_tokenizer(LocalContext(store.folder), tiny_tokeniser)
    for domain in ("prose", "code"):
        ends = store.ends(domain)
        pieces = np.split(store.stream(domain), ends)[:-1]
        assert all(piece[-1] == tokenizer.eos_token_id for piece in pieces)
        texts = [tokenizer.decode(piece[:-1]) for piece in pieces]
        assert texts == [record.text for record in tiny_corpus.read(domain, "train")]
        assert store.domains[domain].tokens == len(store.stream(domain)) == ends[-1]


def test_an_epoch_reads_every_token(store):
    from recipe_plugins.training.store import rows_of

    rows = rows_of(store.domains["prose"].tokens, 64)
    epoch = mixed(store, {"prose": rows, "code": 0})
    read = Counter(np.concatenate([epoch[n]["input_ids"] for n in range(rows)]).tolist())
    whole = Counter(store.stream("prose").tolist())
    filled = rows * 64 - store.domains["prose"].tokens
    assert not whole - read  # everything is read,
    assert sum((read - whole).values()) == filled  # and only what fills the last row twice
    twice = mixed(store, {"prose": 2 * rows, "code": 0})
    first, second = ([twice[n]["input_ids"].tobytes() for n in part] for part in (range(rows), range(rows, 2 * rows)))
    assert sorted(first) == sorted(second)
    assert first != second


def test_isolated_rows_start_positions_anew_and_never_predict_a_first_token(store, tiny_tokeniser):
    rows = mixed(store, {"prose": 30, "code": 30})
    end = 0  # <|endoftext|> is the first entry
    for number in range(60):
        row = rows[number]
        begins = np.r_[True, row["input_ids"][:-1] == end]
        np.testing.assert_array_equal(row["position_ids"] == 0, begins)
        np.testing.assert_array_equal(row["labels"] == -100, begins)
        assert (np.diff(row["position_ids"])[~begins[1:]] == 1).all()
        kept = row["labels"] != -100
        np.testing.assert_array_equal(row["labels"][kept], row["input_ids"][kept])
    leaking = mixed(store, {"prose": 30, "code": 30}, isolate=False)[5]
    np.testing.assert_array_equal(leaking["position_ids"], np.arange(64))
    np.testing.assert_array_equal(leaking["labels"], leaking["input_ids"])


def test_a_mix_is_divided_exactly(store):
    from recipe_plugins.training.store import divide

    portions = divide(store, {"prose": 1, "code": 2}, 100, 64, 4)
    assert {name: portion.rows for name, portion in portions.items()} == {"prose": 33, "code": 67}
    left_out = divide(store, {}, 100, 64, 4)
    share = store.domains["prose"].tokens / store.tokens
    assert left_out["prose"].rows == round(100 * share)


def test_a_domain_is_not_read_too_often(store):
    from recipe_plugins.training.store import divide

    with pytest.raises(RecipeError, match=r"reads code [0-9.]+ times; at most max_repeats = 4"):
        divide(store, {"prose": 0.5, "code": 0.5}, 3000, 64, 4)


def test_the_store_is_encoded_once(store, tmp_path, tiny_corpus, monkeypatch):
    from recipe_plugins.training.store import build_store

    monkeypatch.setattr(Corpus, "read", lambda *args: pytest.fail("read again"))
    again = build_store(LocalContext(tmp_path), tiny_corpus, None, ["prose", "code"], digest="one")
    assert again == store
    with pytest.raises(RecipeError, match="another tokeniser"):
        build_store(LocalContext(tmp_path), tiny_corpus, None, ["prose", "code"], digest="other")


def test_conversations_and_unknown_domains_are_refused(tmp_path, tiny_corpus, tiny_tokeniser, write_corpus):
    from recipe_plugins.training.loading import load_tokenizer
    from recipe_plugins.training.store import build_store

    context = LocalContext(tmp_path)
    tokenizer = load_tokenizer(context, tiny_tokeniser)
    with pytest.raises(RecipeError, match="no domain 'prosa'"):
        build_store(context, tiny_corpus, tokenizer, ["prosa"], digest="one")
    chats = write_corpus(tmp_path / "chats", {"chat": [[{"role": "user", "content": "hello"}]] * 9})
    with pytest.raises(RecipeError, match="holds conversations"):
        build_store(context, chats, tokenizer, ["chat"], digest="one")


def test_special_tokens_in_text_are_text(tmp_path, tiny_tokeniser, write_corpus):
    from recipe_plugins.training.loading import load_tokenizer
    from recipe_plugins.training.store import build_store

    context = LocalContext(tmp_path)
    tokenizer = load_tokenizer(context, tiny_tokeniser)
    corpus = write_corpus(tmp_path / "corpus", {"web": ["a <|endoftext|> b <|im_start|>"] * 9})
    found = build_store(context, corpus, tokenizer, ["web"], digest="one")
    assert (found.stream("web") == tokenizer.eos_token_id).sum() == found.domains["web"].documents
    assert not (found.stream("web") == tokenizer.convert_tokens_to_ids("<|im_start|>")).any()


def scored(folder, write_corpus):
    """Twenty pages; the n-th says `page n` and has the score n / 20."""
    corpus = write_corpus(folder, {"web": [f"page {number} " * 30 for number in range(20)]}, 10**6)
    path = corpus.payload / "train" / "web" / "00000.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        row["meta"] = {"scores": {"quality": {"score": int(row["id"].split("-")[1]) / 20}}}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return corpus


def test_a_selection_holds_the_documents_with_the_score_and_no_other(tmp_path, tiny_tokeniser, write_corpus):
    from recipe_plugins.training.config import Selection
    from recipe_plugins.training.loading import load_tokenizer
    from recipe_plugins.training.store import build_store

    corpus, context = scored(tmp_path / "corpus", write_corpus), LocalContext(tmp_path / "run")
    tokenizer = load_tokenizer(context, tiny_tokeniser)
    select = {"best": Selection(domain="web", where="quality >= 0.8")}
    store = build_store(context, corpus, tokenizer, ["best", "web"], select, digest="one")
    text = tokenizer.decode(store.stream("best"))
    assert {number for number in range(20) if f"page {number} " in text} == {16, 17, 18, 19}
    assert (store.domains["best"].documents, store.domains["web"].documents) == (4, 19)  # page 0 is held out

    for name, where, message in (
        ("best", "quality >= 2", "'best' has no training document"),
        ("best", "qualty >= 0.8", "no score is called 'qualty'"),
        ("web", "quality >= 0.8", "has the name of a domain"),
    ):
        again = LocalContext(tmp_path / f"{name}{where}")
        chosen = {name: Selection(domain="web", where=where)}
        with pytest.raises(RecipeError, match=message):
            build_store(again, corpus, tokenizer, [name], chosen, digest="one")


def test_a_selection_without_a_weight_or_a_condition_is_refused(annealing):
    best = {"domain": "prose", "where": "quality >= 0.8"}
    with pytest.raises(ValidationError, match=r"'best' has no weight"):
        slot("stage", {"use": "anneal", **annealing(select={"best": best})})
    with pytest.raises(ValidationError, match="no comparison"):
        slot("stage", {"use": "anneal", **annealing(select={"best": {**best, "where": "quality is high"}})})
