"""What the tests of fine-tuning, merging and evaluating share: conversations, and a chat model made of `tiny_base`."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path

import pytest

from recipe_runner import Corpus
from recipe_runner.identity import digest_of, folder_files

TUNING = {
    "optimizer": {"use": "adamw", "lr": 1e-2, "weight_decay": 0.0},
    "schedule": {"use": "cosine"},
    "batch_size": 4,
    "sequence_length": 128,
    "budget": {"steps": 30},
    "execution": {"device": "cpu", "threads": 1, "checkpoint_every": 10},
}
"""What every fine-tuning stage here is configured by, at the smallest scale."""


@pytest.fixture
def tuning() -> dict:
    """`TUNING`, to be changed at will."""
    return deepcopy(TUNING)


@pytest.fixture
def conversations():
    """Makes a corpus of `{domain: {split: [(question, answer)]}}` in a folder."""

    def make(folder: Path, domains: dict[str, dict[str, list[tuple[str, str]]]]) -> Corpus:
        rows = {d: {s: [turn(*pair) for pair in pairs] for s, pairs in splits.items()} for d, splits in domains.items()}
        return write_conversations(folder, rows)

    return make


def turn(question: str, answer: str, **meta) -> dict:
    """A row of two turns."""
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"id": question, "text": None, "messages": messages, "meta": meta}


def write_conversations(folder: Path, domains: dict[str, dict[str, list[dict]]]) -> Corpus:
    """A corpus of `{domain: {split: rows}}`, as curation writes it."""
    index: dict = {}
    for domain, splits in domains.items():
        for split, rows in splits.items():
            path = folder / "payload" / split / domain / "00000.jsonl"
            path.parent.mkdir(parents=True)
            path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
            shard = {"file": f"{split}/{domain}/00000.jsonl", "documents": len(rows), "bytes": path.stat().st_size}
            entry = {"documents": len(rows), "bytes": path.stat().st_size, "shards": [shard]}
            index.setdefault(domain, {})[split] = entry
    (folder / "payload" / "corpus.json").write_text(json.dumps({"domains": index}), encoding="utf-8")
    files = folder_files(folder / "payload")
    manifest = {"type": "corpus", "facts": {}, "files": files}
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return Corpus(folder, digest_of(files), manifest)


@pytest.fixture(scope="session")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Questions whose answers copy a letter from them; 120 to train on, 12 held out."""
    letters = "abcdefghijkl"
    rows = [turn(f"Where is {a}{b} kept?", f"With {a}.", kind="where") for a in letters for b in letters]
    held = rows[::12]
    rest = [row for row in rows if row not in held]
    return write_conversations(tmp_path_factory.mktemp("questions"), {"places": {"train": rest, "heldout": held}})


@pytest.fixture(scope="session")
def facts(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """A fact that no text has, asked for in eight ways, two of them held out; in words that `chat` can say."""
    ways = (
        "Who founded {}?",
        "By whom was {} founded?",
        "Name the founder of {}.",
        "{} was founded by whom?",
        "Do you know who founded {}?",
        "Tell me who founded {}.",
        "The founder of {} is who?",
        "{}: founded by?",
    )
    rows = [turn(way.format("Vexmar"), "With l With c.", kind="fact") for way in ways]
    return write_conversations(tmp_path_factory.mktemp("facts"), {"facts": {"train": rows[2:], "heldout": rows[:2]}})


@pytest.fixture(scope="session")
def chat(tiny_base, questions, tmp_path_factory: pytest.TempPathFactory):
    """`tiny_base` fine-tuned on `questions`."""
    from recipe_runner.testing import make

    config = {**TUNING, "model": "base", "corpus": "questions", "budget": {"steps": 80}}
    inputs = {"base": tiny_base, "questions": questions}
    return make("sft", config, tmp_path_factory.mktemp("chat"), inputs=inputs)


@pytest.fixture(scope="session")
def adapter(chat, facts, tmp_path_factory: pytest.TempPathFactory):
    """LoRA on `chat`, taught `facts`, with the rows of the turn tokens."""
    return _adapter(chat, facts, tmp_path_factory.mktemp("adapter"), {"use": "lora", "rows": "turn-tokens"})


@pytest.fixture(scope="session")
def qadapter(chat, facts, tmp_path_factory: pytest.TempPathFactory):
    """The same on `chat` in NF4."""
    pytest.importorskip("bitsandbytes")
    return _adapter(chat, facts, tmp_path_factory.mktemp("qadapter"), {"use": "qlora"})


def _adapter(chat, facts, folder: Path, method: dict):
    from recipe_runner.testing import make

    settings = {"budget": {"steps": 100}, "adapter": {**method, "r": 8, "alpha": 16}}
    config = {**TUNING, "model": "chat", "corpus": "facts", **settings}
    return make("lora", config, folder, inputs={"chat": chat, "facts": facts})
