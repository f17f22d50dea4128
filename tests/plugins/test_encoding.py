"""Bulk encoding: the tokenizer's own ids by whichever library, and a difference is never written."""

from __future__ import annotations

import json
import sys
from itertools import islice

import pytest

from recipe_runner import RecipeError
from recipe_runner.testing import LocalContext, make

pytestmark = pytest.mark.slow

TEXTS = [
    "",
    "<|endoftext|> is text",
    "naïve 世界 👍 \x00",
    " a  b\n\n\tc \r\n",
    "don't\u00a0WE'RE 123 x" * 40,
    "a" + "\n" * 10**6,
]


@pytest.fixture(scope="module")
def tokenizer(tiny_tokeniser):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_tokeniser.payload)


@pytest.fixture(scope="module")
def texts(tiny_corpus):
    return TEXTS + [record.text for domain in ("prose", "code") for record in islice(tiny_corpus.read(domain), 9)]


def plain(tokenizer, texts):
    from recipe_plugins.training.loading import PLAIN

    return tokenizer(texts, **PLAIN)["input_ids"]


def broken(backend):
    """A library that forgets what is behind the first token of a text."""
    from tokenizers import Tokenizer

    from recipe_plugins.training.encoders import tokenizers

    right = tokenizers(Tokenizer.from_str(backend.to_str()))
    return lambda texts: [ids[:1] for ids in right(texts)]


@pytest.mark.parametrize("name", ["tokenizers", "tiktoken", "gigatoken"])
def test_each_library_gives_the_tokenizer_s_own_ids(name, tokenizer, texts):
    pytest.importorskip(name)
    from recipe_plugins.training.encoding import BulkEncoder, chosen

    library, facts = chosen(tokenizer, name, 0, TEXTS)
    assert facts == {"used": name, "passed_over": {}}
    encoder = BulkEncoder(tokenizer, library)
    assert encoder.encode(texts) == plain(tokenizer, texts)
    assert encoder.encode([]) == []


def test_the_first_documents_are_compared_with_the_tokenizer_itself(tokenizer):
    from recipe_plugins.training.encoding import BulkEncoder

    encoder = BulkEncoder(tokenizer, broken(tokenizer.backend_tokenizer))
    with pytest.raises(RecipeError, match="encode these documents differently"):
        encoder.encode(["two words"])


def test_auto_takes_the_first_that_is_installed_and_equal(tokenizer, monkeypatch):
    from recipe_plugins.training.encoders import LIBRARIES, tokenizers
    from recipe_plugins.training.encoding import WORTH, chosen

    right = lambda backend: tokenizers(type(backend).from_str(backend.to_str()))  # noqa: E731
    monkeypatch.setitem(LIBRARIES, "gigatoken", broken)
    monkeypatch.setitem(LIBRARIES, "tiktoken", right)
    assert chosen(tokenizer, "auto", WORTH - 1, [])[1] == {"used": "tokenizers", "passed_over": {}}
    facts = chosen(tokenizer, "auto", WORTH, ["some words"])[1]
    assert facts["used"] == "tiktoken"
    assert facts["passed_over"]["gigatoken"].startswith("it encodes 'some words' as [")
    with pytest.raises(RecipeError, match="gigatoken cannot encode in the place of this tokenizer: it encodes"):
        chosen(tokenizer, "gigatoken", 0, ["some words"])


@pytest.mark.parametrize("name", ["tiktoken", "gigatoken"])
def test_what_is_not_installed_is_named_or_passed(name, tokenizer, monkeypatch):
    from recipe_plugins.training.encoding import WORTH, chosen

    for module in ("tiktoken", "gigatoken"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(RecipeError, match=f"needs {name}, which is not installed") as error:
        chosen(tokenizer, name, 0, [])
    assert f"[{name}]" in error.value.next
    assert chosen(tokenizer, "auto", WORTH, [])[1] == {"used": "tokenizers", "passed_over": {}}


def test_what_tiktoken_cannot_do_is_said(tokenizer):
    pytest.importorskip("tiktoken")
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    from recipe_plugins.training.encoders import Unfit, tiktoken

    def changed(**changes):
        described = json.loads(tokenizer.backend_tokenizer.to_str())
        for key, value in changes.items():
            described["model"][key] = value
        return Tokenizer.from_str(json.dumps(described))

    def refused(backend):
        with pytest.raises(Unfit) as error:
            tiktoken(backend)
        return str(error.value)

    assert refused(Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))) == "it splits text by none"
    split, normalised, worded = changed(), changed(), changed()
    digits = pre_tokenizers.Digits()
    split.pre_tokenizer = pre_tokenizers.Sequence([digits, split.pre_tokenizer])
    assert refused(split) == "it splits text by Digits and ByteLevel"
    normalised.normalizer = normalizers.NFC()
    assert refused(normalised) == "it normalises text"
    worded.add_tokens(["zyxomma"])
    assert refused(worded) == "it has added words, such as 'zyxomma'"
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    assert refused(changed(merges=[merges[1], merges[0], *merges[2:]])) == "its ids are not in the order of its merges"
    assert refused(changed(dropout=0.1)) == "its model has dropout"
    own = changed()
    own.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\p{N}|[^\p{N}]+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    assert tiktoken(own)(TEXTS[2:]) == [own.encode(text).ids for text in TEXTS[2:]]
    with pytest.raises(UnicodeEncodeError):
        tiktoken(own)(["a lone \ud800"])  # which it would replace without a word


def test_tiktoken_bears_a_million_blank_lines(tokenizer):
    pytest.importorskip("tiktoken")
    from recipe_plugins.training.encoders import tiktoken

    backend, texts = tokenizer.backend_tokenizer, ["a", "b" + "\n" * 10**6 + "c", "d"]
    assert tiktoken(backend)(texts) == [backend.encode(text).ids for text in texts]  # its expressions run out of stack


def test_the_store_is_the_same_by_any_library_and_says_which(tmp_path, tiny_corpus, tokenizer, monkeypatch):
    pytest.importorskip("tiktoken")
    from recipe_plugins.training import encoders, encoding
    from recipe_plugins.training.store import build_store

    def stored(encoder):
        context = LocalContext(tmp_path / encoder)
        store = build_store(context, tiny_corpus, tokenizer, ["prose", "code"], encoder=encoder, digest="one")
        return context, [store.stream(domain).tolist() for domain in store.domains]

    named, tokens = stored("tiktoken")
    assert named.facts["encoder"] == {"used": "tiktoken", "passed_over": {}}
    monkeypatch.setattr(encoding, "WORTH", 0)
    for library in ("gigatoken", "tiktoken"):
        monkeypatch.setitem(encoders.LIBRARIES, library, broken)
    fallen, same = stored("auto")
    assert fallen.facts["encoder"]["used"] == "tokenizers"
    assert [line.partition(": it enc")[0] for line in fallen.warnings] == [
        "gigatoken was not used to encode",
        "tiktoken was not used to encode",
    ]
    assert same == tokens


def test_a_stage_encodes_by_what_it_is_told(tmp_path, tiny_corpus, tiny_tokeniser, pretraining, monkeypatch):
    monkeypatch.setitem(sys.modules, "gigatoken", None)
    inputs = {"corpus": tiny_corpus, "tokeniser": tiny_tokeniser}
    with pytest.raises(RecipeError, match="encoder: gigatoken needs gigatoken"):
        make("pretrain", pretraining(encoder="gigatoken"), tmp_path, inputs=inputs)
