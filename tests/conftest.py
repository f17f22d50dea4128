"""Fixtures that several tests share. Imports nothing heavy; what needs torch imports it when it is asked for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from recipe_runner import Corpus, Record
from recipe_runner.identity import digest_of, folder_files

LLAMA = {
    "use": "llama",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 128,
}


def _write_corpus(folder: Path, documents: dict[str, list], heldout_every: int = 8) -> Corpus:
    """A corpus of texts (or lists of messages) by domain, as curation writes it; every so-manieth is held out."""
    index: dict = {}
    for domain, texts in documents.items():
        for split in ("train", "heldout"):
            chosen = [(n, text) for n, text in enumerate(texts) if (n % heldout_every == 0) == (split == "heldout")]
            rows = [{"id": f"{domain}-{n}", "meta": {}, **_content(text)} for n, text in chosen]
            path = folder / "payload" / split / domain / "00000.jsonl"
            path.parent.mkdir(parents=True)
            path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
            size = sum(Record(**row).size for row in rows)
            shard = {"file": f"{split}/{domain}/00000.jsonl", "documents": len(rows), "bytes": size}
            index.setdefault(domain, {})[split] = {"documents": len(rows), "bytes": size, "shards": [shard]}
    (folder / "payload" / "corpus.json").write_text(json.dumps({"domains": index}), encoding="utf-8")
    files = folder_files(folder / "payload")
    manifest = {"type": "corpus", "facts": {}, "files": files}
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return Corpus(folder, digest_of(files), manifest)


def _content(document) -> dict:
    return {"text": document} if isinstance(document, str) else {"messages": document}


def _texts() -> dict[str, list[str]]:
    """A little English and a little code that every CPython has."""
    import argparse
    import inspect
    import textwrap
    from pydoc_data.topics import topics

    prose = [topics[name] for name in sorted(topics)[:40]]
    code = [inspect.getsource(thing) for module in (argparse, textwrap) for _, thing in inspect.getmembers(module)
            if inspect.isfunction(thing) or inspect.isclass(thing)]  # fmt: skip
    return {"prose": [text[:2000] for text in prose], "code": [text[:2000] for text in code]}


@pytest.fixture(scope="session")
def write_corpus():
    """`write_corpus(folder, {domain: texts or conversations})`: a corpus by hand."""
    return _write_corpus


@pytest.fixture(scope="session")
def tiny_corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Two domains, `prose` and `code`, of some 60 KB each, split into train and heldout."""
    return _write_corpus(tmp_path_factory.mktemp("tiny-corpus"), _texts())


@pytest.fixture(scope="session")
def tiny_tokeniser(tiny_corpus, tmp_path_factory: pytest.TempPathFactory):
    """A byte-level BPE of 384 entries."""
    from recipe_runner.testing import make

    folder = tmp_path_factory.mktemp("tiny-tokeniser")
    return make("tokeniser", {"corpus": "corpus", "vocab_size": 384}, folder, inputs={"corpus": tiny_corpus})


@pytest.fixture(scope="session")
def pretraining():
    """`pretraining(budget={"steps": 9})`: a config of `pretrain` at the smallest scale, with changes."""
    return _pretraining


@pytest.fixture(scope="session")
def annealing():
    """A config of `anneal` at the smallest scale, with changes."""
    shared = ("corpus", "mix", "batch_size", "sequence_length", "budget", "execution")
    return lambda **changes: {**{key: _pretraining()[key] for key in shared}, "model": "base", **changes}


@pytest.fixture(scope="session")
def tiny_base(tiny_corpus, tiny_tokeniser, tmp_path_factory: pytest.TempPathFactory):
    """A llama of two layers, pretrained for 30 steps, with its branch point."""
    from recipe_runner.testing import make

    return make(
        "pretrain",
        _pretraining(budget={"steps": 30}),
        tmp_path_factory.mktemp("tiny-base"),
        inputs={"corpus": tiny_corpus, "tokeniser": tiny_tokeniser},
    )


def _pretraining(**changes) -> dict:
    """A config of `pretrain` at the smallest scale."""
    return {
        "corpus": "corpus",
        "tokeniser": "tokeniser",
        "mix": {"prose": 0.6, "code": 0.4},
        "architecture": LLAMA,
        "optimizer": {"lr": 3e-3},
        "schedule": {"use": "wsd", "warmup": 3},
        "batch_size": 8,
        "sequence_length": 64,
        "budget": {"steps": 12},
        "execution": {"device": "cpu", "threads": 1, "checkpoint_every": 4},
        **changes,
    }
