"""The tokeniser's algorithms: what comes back, what is unknown, the same in every process."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from pydantic import ValidationError

from recipe_runner import RecipeError
from recipe_runner.testing import make, slot

pytestmark = pytest.mark.slow

ALGORITHMS = ["bytes", "unigram", "bpe", "wordpiece", "characters"]
OF_BYTES = ("bytes", "unigram")  # to which nothing is unknown
SPECIAL = ["<|endoftext|>", "<|pad|>", "<|im_start|>", "<|im_end|>", "<|tool|>"]
DOCUMENTS = [f"def f{number}(x):\n\treturn x + {number}  # naïve ▁ 世界, don't" for number in range(64)]


def trained(folder, corpus, algorithm, **changes):
    config = {"corpus": "c", "vocab_size": 300, "algorithm": algorithm, "special_tokens": ["<|tool|>"], **changes}
    return make("tokeniser", config, folder, inputs={"c": corpus})


def loaded(made):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(made.payload)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, write_corpus):
    return write_corpus(tmp_path_factory.mktemp("corpus"), {"code": DOCUMENTS, "same": DOCUMENTS[:16]})


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_text_comes_back_and_special_tokens_are_first(algorithm, corpus, tmp_path):
    made = trained(tmp_path, corpus, algorithm)
    tokenizer = loaded(made)
    assert tokenizer.convert_tokens_to_ids(SPECIAL) == [0, 1, 2, 3, 4]
    assert len(tokenizer) == made.facts["vocab_size"] <= 300
    assert (tokenizer.unk_token is None) == (algorithm in OF_BYTES)
    assert tokenizer(SPECIAL[4] + SPECIAL[0])["input_ids"] == [4, 0]
    for text in (DOCUMENTS[11], " x  \n\n\t", "", "x "):
        back = tokenizer.decode(tokenizer(text)["input_ids"])
        if algorithm == "wordpiece":
            back, text = "".join(back.split()), "".join(text.split())
        assert back == text


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_template_marks_the_answer(algorithm, corpus, tmp_path):
    tokenizer = loaded(trained(tmp_path, corpus, algorithm))
    turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "return"}]
    found = tokenizer.apply_chat_template(turns, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    said = [token for token, mark in zip(found["input_ids"], found["assistant_masks"], strict=True) if mark]
    assert tokenizer.decode(said).replace(" ", "") == "return<|im_end|>"


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_same_in_every_process(algorithm, tiny_corpus, tmp_path):
    script = (
        "import sys; from pathlib import Path\n"
        "from recipe_runner import Corpus; from recipe_runner.testing import make\n"
        "corpus = Corpus(Path(sys.argv[1]), '', {'facts': {}})\n"
        "config = {'corpus': 'c', 'vocab_size': 500, 'algorithm': sys.argv[3]}\n"
        "print(make('tokeniser', config, Path(sys.argv[2]), inputs={'c': corpus}).digest)"
    )
    digests = set()
    for seed in ("1", "2"):
        run = [sys.executable, "-c", script, str(tiny_corpus.path), str(tmp_path / seed), algorithm]
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run(run, env=environment, capture_output=True, text=True, check=True)
        digests.add(done.stdout.strip())
    assert len(digests) == 1


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_what_is_unknown_is_counted_by_domain(algorithm, tmp_path, write_corpus):
    odd = ["plain words" if number % 8 else "ж words ж" for number in range(64)]
    corpus = write_corpus(tmp_path / "corpus", {"odd": odd, "plain": ["words"] * 64})
    made = trained(tmp_path / "made", corpus, algorithm)
    if algorithm in OF_BYTES:
        assert "unknown_tokens" not in made.facts
        return
    unknown = made.facts["unknown_tokens"]
    held = sum(record.text.count("ж") for record in corpus.read("odd", "heldout"))
    assert unknown == {"odd": held, "plain": 0}
    assert held > 0
    assert f"{held} tokens of held-out text are unknown" in made.manifest["warnings"][0]


def test_too_little_room_is_refused(tmp_path, corpus):
    for algorithm in ("bpe", "wordpiece"):
        with pytest.raises(RecipeError, match=r"special tokens alone are \d+ entries; vocab_size is 20"):
            trained(tmp_path / algorithm, corpus, algorithm, vocab_size=20)
    made = trained(tmp_path / "characters", corpus, "characters", vocab_size=20)
    assert made.facts["vocab_size"] == 20
    for algorithm in ("bytes", "byte-bpe", "unigram"):
        with pytest.raises(ValidationError, match=r"vocab_size 260 is too small: .* alone are 261"):
            trained(tmp_path / algorithm, corpus, algorithm, vocab_size=260)


def test_bytes_are_one_token_each(corpus, tmp_path):
    tokenizer = loaded(trained(tmp_path, corpus, "bytes"))
    text = "naïve 世界 👍 \x00"
    assert len(tokenizer(text)["input_ids"]) == len(text.encode())
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert len(tokenizer) == 261


def test_pieces_of_unigram_know_any_text_and_never_say_a_special_token(corpus, tmp_path):
    changes = {"vocab_size": 280, "special_tokens": ["return", "<|tool|>"]}
    tokenizer = loaded(trained(tmp_path / "made", corpus, "unigram", **changes))
    odd = "a\t\r\n  b\u00a0c\u2028 naïve 世界 👍 \x00\ufffd"
    for text in ("return return", odd, "".join(map(chr, range(256))), "x" * 5000):
        ids = tokenizer(text, split_special_tokens=True)["input_ids"]
        assert tokenizer.decode(ids) == text
        assert not set(ids) & set(tokenizer.all_special_ids)
    assert tokenizer("return")["input_ids"] == [4]
    short = loaded(trained(tmp_path / "short", corpus, {"use": "unigram", "max_piece": 3}, **changes))
    longest = [max(len(entry) for entry, number in t.get_vocab().items() if number > 5) for t in (short, tokenizer)]
    assert longest[0] == 3 < longest[1]


def test_the_order_of_documents_is_nothing_to_unigram(tmp_path, write_corpus):
    digests = {
        trained(tmp_path / str(n), write_corpus(tmp_path / f"c{n}", {"a": texts}), "unigram").digest
        for n, texts in enumerate((DOCUMENTS[:8], [DOCUMENTS[0], *DOCUMENTS[7:0:-1]]))
    }
    assert len(digests) == 1


def test_a_missing_sentencepiece_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    monkeypatch.delitem(sys.modules, "recipe_plugins.tokeniser.unigram", raising=False)
    with pytest.raises(RecipeError, match="unigram needs sentencepiece"):
        slot("algorithm", "unigram").build()
