"""The stage `tokeniser`."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys

import pytest
from pydantic import ValidationError

from recipe_runner import RecipeError
from recipe_runner.testing import make, slot

pytestmark = pytest.mark.slow

TURNS = [{"role": "user", "content": "Wie geht's, 世界?"}, {"role": "assistant", "content": "Gut 👍"}]


@pytest.fixture(scope="module")
def tokenizer(tiny_tokeniser):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_tokeniser.payload)


def trained(folder, corpus, **changes):
    return make("tokeniser", {"corpus": "corpus", "vocab_size": 300, **changes}, folder, inputs={"corpus": corpus})


def test_it_loads_and_any_text_comes_back(tokenizer, tiny_tokeniser):
    assert len(tokenizer) == tiny_tokeniser.facts["vocab_size"] == 384
    for text in ("", " a  b\n\tc ", "naïve 世界 👍 \x00\ufffd", "don't  <|pad|> 12345"):
        assert tokenizer.decode(tokenizer(text, split_special_tokens=True)["input_ids"]) == text


@pytest.mark.parametrize(
    ("tokens", "what"),
    [
        (["<|a|>", "<|a|>"], "'<|a|>' is there already"),
        (["<|im_end|>"], "'<|im_end|>' is there already"),
        (["<|unk|>"], "'<|unk|>' is there already"),
        (["<|a|>", ""], "'' is no token"),
    ],
)
def test_a_special_token_that_would_be_lost_is_a_problem(tokens, what):
    """The library would leave it out without a word."""
    with pytest.raises(ValidationError, match=re.escape(what)):
        slot("stage", {"use": "tokeniser", "corpus": "c", "vocab_size": 300, "special_tokens": tokens})


def test_the_tokens_around_turns_are_those_of_the_template():
    from recipe_plugins.tokeniser.config import OWN
    from recipe_plugins.training.conversations import TURN_END, TURN_START

    assert OWN[2:] == (TURN_START, TURN_END)


def test_special_tokens_are_apart(tokenizer):
    special = ["<|endoftext|>", "<|pad|>", "<|im_start|>", "<|im_end|>"]
    assert [tokenizer.convert_tokens_to_ids(token) for token in special] == [0, 1, 2, 3]
    assert (tokenizer.eos_token, tokenizer.pad_token) == tuple(special[:2])


def test_the_template_marks_exactly_what_the_assistant_says(tokenizer):
    found = tokenizer.apply_chat_template(TURNS, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    said = [number for number, mark in zip(found["input_ids"], found["assistant_masks"], strict=True) if mark]
    assert tokenizer.decode(said) == "Gut 👍<|im_end|>"


def test_bytes_per_token_are_those_of_the_heldout_text(tokenizer, tiny_tokeniser, tiny_corpus):
    texts = [record.text for record in tiny_corpus.read("code", "heldout")]
    expected = sum(len(t.encode()) for t in texts) / sum(len(tokenizer(t)["input_ids"]) for t in texts)
    assert tiny_tokeniser.facts["bytes_per_token"]["code"] == pytest.approx(expected, abs=1e-4)
    assert set(tiny_tokeniser.facts["bytes_per_token"]) == {"prose", "code"}


def test_nothing_is_learned_from_heldout_text(tmp_path, write_corpus):
    documents = ["qzx" * 50 if number % 8 == 0 else "plain words and more of them" for number in range(64)]
    made = trained(tmp_path / "tokeniser", write_corpus(tmp_path / "corpus", {"web": documents}))
    assert "qz" not in (made.payload / "tokenizer.json").read_text()
    assert made.manifest["warnings"] == [f"the text gave {made.facts['vocab_size']} entries only; 300 were asked for"]


def test_the_same_in_every_process(tmp_path, tiny_corpus):
    script = (
        "import sys; from pathlib import Path\n"
        "from recipe_runner import Corpus; from recipe_runner.testing import make\n"
        "corpus = Corpus(Path(sys.argv[1]), '', {'facts': {}})\n"
        "made = make('tokeniser', {'corpus': 'c', 'vocab_size': 400}, Path(sys.argv[2]), inputs={'c': corpus})\n"
        "print(made.digest)"
    )
    digests = set()
    for seed in ("1", "2"):
        run = [sys.executable, "-c", script, str(tiny_corpus.path), str(tmp_path / seed)]
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run(run, env=environment, capture_output=True, text=True, check=True)
        digests.add(done.stdout.strip())
    assert len(digests) == 1


def test_conversations_are_text_too(tmp_path, write_corpus):
    corpus = write_corpus(tmp_path / "corpus", {"chat": [TURNS] * 16})
    made = trained(tmp_path / "tokeniser", corpus)
    assert made.facts["bytes_per_token"]["chat"] > 1


def test_templates_of_ones_own(tmp_path, tiny_corpus):
    template = tmp_path / "mine.jinja"
    template.write_text("{% for m in messages %}{% generation %}{{ m['content'] }}{% endgeneration %}{% endfor %}")
    made = trained(tmp_path / "one", tiny_corpus, template=str(template), special_tokens=["<|tool|>"])
    assert (made.payload / "chat_template.jinja").read_text() == template.read_text()
    assert made.digest != trained(tmp_path / "two", tiny_corpus).digest
    for text, message in (
        ("{{ messages[0]['content'] }}", "does not mark what the assistant generates"),
        ("{{ strftime_now('%d') }}", "asks for the date"),
        ("{% for %}", "mine.jinja"),
    ):
        template.write_text(text)
        with pytest.raises(RecipeError, match=message):
            trained(tmp_path / hashlib.sha256(text.encode()).hexdigest(), tiny_corpus, template=str(template))


def test_a_reference_is_compared_on_the_same_text(tmp_path, tiny_corpus, tiny_tokeniser):
    inputs = {"corpus": tiny_corpus, "small": tiny_tokeniser}
    made = make("tokeniser", {"corpus": "corpus", "vocab_size": 600, "reference": "small"}, tmp_path, inputs=inputs)
    assert made.facts["reference"]["bytes_per_token"] == tiny_tokeniser.facts["bytes_per_token"]
    [table] = made.facts["tables"]
    rows = {row[0]: dict(zip(table["columns"], row, strict=True)) for row in table["rows"]}
    assert rows["code"]["its tokens / ours"] > 1  # a smaller vocabulary needs more
    assert rows["code"]["bytes a token of small"] == tiny_tokeniser.facts["bytes_per_token"]["code"]


def test_what_is_unknown_to_a_reference_is_counted_too(tmp_path, tiny_corpus):
    """Else one that drops what it does not know looks as if it said more in fewer tokens."""
    poor = {"corpus": "corpus", "algorithm": "characters", "vocab_size": 20}
    small = make("tokeniser", poor, tmp_path / "small", inputs={"corpus": tiny_corpus})
    config = {"corpus": "corpus", "vocab_size": 600, "reference": "small"}
    made = make("tokeniser", config, tmp_path / "made", inputs={"corpus": tiny_corpus, "small": small})
    assert made.facts["reference"]["unknown_tokens"] == small.facts["unknown_tokens"]
    assert all(small.facts["unknown_tokens"].values())
    [table] = made.facts["tables"]
    assert table["columns"][-1] == "unknown to small"
    assert {row[0]: row[-1] for row in table["rows"]} == small.facts["unknown_tokens"]


@pytest.fixture
def extended(tmp_path, tiny_tokeniser, tiny_corpus):
    """Makes a `pretrained-tokeniser` of `tiny_tokeniser`, with changes."""

    def make_it(name="made", **changes):
        inputs = {"theirs": tiny_tokeniser, "corpus": tiny_corpus}
        return make("pretrained-tokeniser", {"tokeniser": "theirs", **changes}, tmp_path / name, inputs=inputs)

    return make_it


def test_added_tokens_are_whole_and_leave_the_others_as_they_were(extended, tokenizer):
    from transformers import AutoTokenizer

    made = extended(tokens=["zyxomma"], special_tokens=["<|tool|>"], corpus="corpus")
    more = AutoTokenizer.from_pretrained(made.payload)
    assert made.facts["vocab_size"] == len(more) == len(tokenizer) + 2
    text = "def f(x): return x  # 世界"
    assert more(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert more("a zyxomma b", split_special_tokens=True)["input_ids"].count(len(tokenizer)) == 1
    assert len(tokenizer) + 1 not in more("<|tool|>", split_special_tokens=True)["input_ids"]  # text is only text
    assert more.decode(more("a zyxomma b")["input_ids"]) == "a zyxomma b"
    assert set(made.facts["bytes_per_token"]) == {"prose", "code"}
    assert more.chat_template == tokenizer.chat_template
    assert extended("again", tokens=["zyxomma"], special_tokens=["<|tool|>"]).digest == made.digest


def test_what_a_pretrained_tokeniser_cannot_be_given_is_refused(extended, tmp_path):
    with pytest.raises(RecipeError, match=r"has <\|pad\|> already"):
        extended(tokens=["<|pad|>"])
    with pytest.raises(ValidationError, match="'x' is added twice"):
        extended(tokens=["x"], special_tokens=["x"])
    with pytest.raises(ValidationError, match="reference needs a corpus"):
        extended(reference="theirs")


@pytest.mark.parametrize("named", [False, True])
def test_a_template_that_changes_by_the_day_is_not_kept(tmp_path, tiny_tokeniser, named):
    from transformers import AutoTokenizer

    from recipe_runner import Tokeniser

    theirs = AutoTokenizer.from_pretrained(tiny_tokeniser.payload)
    dated = "{{ strftime_now('%d %b %Y') }}{{ messages[0]['content'] }}"
    theirs.chat_template = {"default": "{{ messages[0]['content'] }}", "tool_use": dated} if named else dated
    theirs.save_pretrained(tmp_path / "theirs")
    inputs = {"theirs": Tokeniser(tmp_path / "theirs", "", {})}
    with pytest.raises(RecipeError, match="asks for the date") as error:
        make("pretrained-tokeniser", {"tokeniser": "theirs"}, tmp_path / "one", inputs=inputs)
    assert "chat: chatml" in error.value.next
    made = make("pretrained-tokeniser", {"tokeniser": "theirs", "chat": "chatml"}, tmp_path / "two", inputs=inputs)
    assert "strftime" not in AutoTokenizer.from_pretrained(made.payload).chat_template
    assert made.facts["added"] == 0  # it has ChatML's tokens


def test_a_sample_is_about_as_large_as_asked_and_the_same_in_any_order(write_corpus, tmp_path):
    from recipe_plugins.tokeniser.stage import _texts

    corpus = write_corpus(tmp_path / "one", {"a": [f"text {n} " * 20 for n in range(400)], "b": ["b " * 50] * 400})
    whole, some = list(_texts(corpus, None)), list(_texts(corpus, 20_000))
    assert 12_000 < sum(map(len, some)) < 28_000 < sum(map(len, whole))
    assert {text[0] for text in some} == {"t", "b"}
    assert list(_texts(corpus, 10**9)) == whole
    assert set(_texts(corpus, 10_000)) <= set(some)
    made = trained(tmp_path / "made", corpus, sample=20_000)
    assert made.digest != trained(tmp_path / "all", corpus).digest
