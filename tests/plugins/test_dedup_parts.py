"""`line-dedup` and `substring-dedup`: what is repeated goes, once stays, whatever the order; nothing else changes."""

from __future__ import annotations

import json
import random
import tracemalloc

import numpy as np
import pytest

from recipe_plugins.filters.substring import merged, window_hashes
from recipe_runner import RecipeError, Record
from recipe_runner.identity import folder_files
from recipe_runner.testing import make
from recipe_runner.testing.local import slot

rng = random.Random(11)


def noise(count):
    return "".join(rng.choices("abcdefghijklmnopqrstuvwxyzäöü 語", k=count))


def judged(use, records, folder, **config):
    """The texts that are left, by id; None where nothing is."""
    step = slot("filter", {"use": use, **config}).build()
    folder.mkdir()
    state = step.decide([step.sketch(records[n : n + 3]) for n in range(0, len(records), 3)], folder)
    verdicts = step.judge(records, state)
    return {r.id: (v.text if v.text is not None else r.text) if v.keep else None
            for r, v in zip(records, verdicts, strict=True)}  # fmt: skip


# ── lines ────────────────────────────────────────────────────────────────────────────────────────────────────────

MENU = "Home | About us | Contact | Imprint\n"


def test_a_line_of_three_documents_stays_in_the_first(tmp_path):
    records = [Record(f"d{n}", f"Its own line number {n} is long\n{MENU.upper() if n % 2 else MENU}short\n", priority=1)
               for n in range(5)]  # fmt: skip
    records += [Record("first", MENU + "and text of its own here\n", priority=0)]
    left = judged("line-dedup", records, tmp_path / "a")
    assert left["first"] == records[-1].text
    assert all(left[f"d{n}"] == f"Its own line number {n} is long\nshort\n" for n in range(5))
    assert judged("line-dedup", records[::-1], tmp_path / "b") == left
    assert "Home" not in "".join(judged("line-dedup", records, tmp_path / "c", keep="none").values())
    assert judged("line-dedup", records, tmp_path / "d", documents=7) == {r.id: r.text for r in records}


def test_a_document_of_nothing_but_repeated_lines_goes_and_the_ledger_balances(tmp_path):
    rows = [{"id": f"d{n}", "text": MENU + (f"A line of number {n} that nobody has\n" if n else "")} for n in range(6)]
    rows.append({"id": "x", "text": MENU})
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {"sources": {"web": {"use": "jsonl", "path": str(tmp_path / "in.jsonl")}}, "heldout": 0,
              "steps": {"lines": {"use": "line-dedup", "keep": "none"}}}  # fmt: skip
    corpus = make("curation", config, tmp_path / "out")
    step = json.loads((corpus.path / "ledger.json").read_text())["domains"]["web"]["steps"]["lines"]
    assert step["removed"]["only_repeated"]["documents"] == 2
    assert step["changed_bytes"] == -5 * len(MENU)


def test_a_conversation_is_an_error():
    step = slot("filter", {"use": "line-dedup"}).build()
    with pytest.raises(RecipeError, match="c is a conversation"):
        step.sketch([Record("c", messages=[{"role": "user", "content": "x"}])])


# ── spans ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_window_s_hash_tells_its_bytes():
    data = np.frombuffer(rng.randbytes(400) * 2, np.uint8)
    for length in (1, 2, 3, 16, 100, 200, 257):
        hashes = window_hashes(data, length)
        assert len(hashes) == len(data) - length + 1
        windows = {data[at : at + length].tobytes(): int(h) for at, h in enumerate(hashes)}
        assert all(windows[data[at : at + length].tobytes()] == int(h) for at, h in enumerate(hashes))
        assert len(set(windows.values())) == len(windows)


def test_the_union_of_spans():
    assert merged(np.array([5, 0, 3, 20]), np.array([9, 4, 5, 22])) == [(0, 9), (20, 22)]


@pytest.mark.parametrize("parts", [1, 7])
def test_repeated_spans_are_cut_and_the_first_stays(tmp_path, parts, monkeypatch):
    shared = [noise(150), noise(300)]
    own = [noise(500) for _ in range(6)]
    records = [Record(f"d{n}", own[n] + shared[n % 2] + own[n][::-1]) for n in range(6)]
    size = sum(r.size for r in records)
    monkeypatch.setattr("recipe_plugins.filters.substring.WINDOW", parts * 1_000_000 // size)
    left = judged("substring-dedup", records, tmp_path / "a", length=100, memory=1_000_000)
    assert [left["d0"], left["d1"]] == [records[0].text, records[1].text]
    for n in range(2, 6):
        # a character beside the span may by chance be the same in both documents, and goes too
        assert 0 <= 1000 - len(left[f"d{n}"]) < 10
        assert own[n][:490] in left[f"d{n}"]
    assert judged("substring-dedup", records[::-1], tmp_path / "b", length=100) == left


def test_one_byte_less_than_the_length_stays(tmp_path):
    span = "".join(rng.choices("abcdef", k=64))
    records = [Record("a", "1" + span + "2" * 5), Record("b", "3" + span + "4" * 5)]
    assert judged("substring-dedup", records, tmp_path / "a", length=64)["b"] == "344444"
    assert judged("substring-dedup", records, tmp_path / "b", length=65)["b"] == records[1].text


def test_a_text_that_repeats_itself_keeps_its_first_length(tmp_path):
    left = judged("substring-dedup", [Record("a", "ab" * 500), Record("b", "ab" * 30)], tmp_path / "a", length=50)
    assert left["a"] == "ab" * 25
    assert left["b"] is None


def test_spans_of_tokens(tmp_path):
    """One token to a word, of a vocabulary that 16 bits do not hold; byte-level tokens never part a character."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {word: n for n, word in enumerate([*(f"w{n}" for n in range(100_000)), "[UNK]", "ä", "語"])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.save(str(tmp_path / "words.json"))
    span, other = ([f"w{start + n}" for n in range(20)] for start in (70_000, 70_000 - 65_536))
    records = [Record("a", " ".join(["ä", *span, "w1"])), Record("b", " ".join(["w2 語", *span, "w3"])),
               Record("c", " ".join(other))]  # fmt: skip
    given = {"length": 20, "tokeniser": str(tmp_path / "words.json")}
    left = judged("substring-dedup", records, tmp_path / "a", **given)
    assert left == {"a": records[0].text, "b": "w2 語  w3", "c": records[2].text}
    longer = judged("substring-dedup", records, tmp_path / "b", **{**given, "length": 21})
    assert longer["b"] == records[1].text

    alphabet = {character: n for n, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    level = Tokenizer(models.BPE(alphabet, []))
    level.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    level.save(str(tmp_path / "bytes.json"))
    mixed = [Record(f"d{n}", noise(60) + "語äü" * 20 + noise(60)) for n in range(4)]
    by_tokens = judged("substring-dedup", mixed, tmp_path / "c", length=40, tokeniser=str(tmp_path / "bytes.json"))
    assert by_tokens == judged("substring-dedup", mixed, tmp_path / "d", length=40)


def test_what_is_no_tokeniser_is_an_error(tmp_path):
    (tmp_path / "t.json").write_text("{}")
    with pytest.raises(RecipeError, match=r"t.json is no tokenizer.json"):
        judged("substring-dedup", [Record("a", "text")], tmp_path / "a", tokeniser=str(tmp_path / "t.json"))


def test_memory_stays_below_its_bound(tmp_path):
    records = [Record(f"d{n}", rng.randbytes(50_000).hex()) for n in range(20)]  # 2 MB: 128 MB if done at once
    step = slot("filter", {"use": "substring-dedup", "memory": "10MB"}).build()
    sketches = [step.sketch([record]) for record in records]
    tracemalloc.start()
    step.decide(sketches, tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10e6 + 50e6


def test_workers_and_order_change_nothing(tmp_path):
    shared = noise(300)
    rows = [{"id": f"d{n}", "text": noise(200) + shared + noise(100)} for n in range(12)]
    steps = {"spans": "substring-dedup", "lines": "line-dedup"}
    found = []
    for name, given, files, workers in (("a", rows, 1, 1), ("b", rows[::-1], 3, 2)):
        (tmp_path / name).mkdir()
        for n in range(files):
            (tmp_path / name / f"{n}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in given[n::files]))
        config = {"sources": {"web": {"use": "jsonl", "path": str(tmp_path / name)}}, "steps": steps, "heldout": 0}
        corpus = make("curation", {**config, "execution": {"workers": workers}}, tmp_path / f"out-{name}")
        found.append(folder_files(corpus.payload))
    assert found[0] == found[1]
