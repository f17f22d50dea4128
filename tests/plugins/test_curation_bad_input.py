"""Odd documents through every step that learns or cuts: nothing is lost, nothing breaks, the ledger balances."""

from __future__ import annotations

import json

from recipe_runner.testing import make

LONG = "one line without an end " * 20_000
ODD = ["", "\0", "\0\0 nul bytes \0", "\n\n\n", "word", "😀" * 300, "\u2028\u2029\x85 line ends of another kind",
       "ä" * 1000, "ab" * 5_000, LONG, "\ufeff", "-", "\u0301" * 50, "語" * 500]  # fmt: skip


def test_odd_documents_are_kept_cut_or_removed_and_all_are_counted(tmp_path):
    plain = [f"The document with number {n} says the thing that number {n * n} says" for n in range(30)]
    for name, texts in {"odd": ODD * 2 + ["word"] * 500, "plain": plain}.items():
        rows = [{"id": f"{name}{n}", "text": text} for n, text in enumerate(texts)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "eval.txt").write_text(plain[3] + "\n")
    sources = {name: {"use": "jsonl", "path": str(tmp_path / f"{name}.jsonl")} for name in ("plain", "odd")}
    steps = {
        "evaluation": {"use": "decontaminate", "files": [str(tmp_path / "eval.txt")], "ngram": 10},
        "lines": {"use": "line-dedup", "min_characters": 4},
        "spans": {"use": "substring-dedup", "length": 64},
        "model": {"use": "quality-classifier", "keep": {"top": 0.9},
                  "positives": {"domains": ["plain"]}, "negatives": {"domains": ["odd"]}},
    }  # fmt: skip
    config = {"sources": sources, "steps": steps, "mix": {"budget": 2_000}, "heldout": 0}
    corpus = make("curation", config, tmp_path / "out")
    ledger = json.loads((corpus.path / "ledger.json").read_text())["domains"]
    assert ledger["odd"]["read"]["documents"] == 2 * len(ODD) + 500
    assert ledger["plain"]["steps"]["evaluation"]["removed"]["contaminated"]["documents"] == 1
    assert ledger["odd"]["steps"]["lines"]["removed"]["only_repeated"]["documents"] >= 500
    for account in ledger.values():
        flow = account["read"]
        for step in account["steps"].values():
            assert step["in"] == {key: flow[key] for key in ("documents", "bytes")}
            out = step["kept"]["documents"] + sum(removed["documents"] for removed in step["removed"].values())
            assert out == step["in"]["documents"] + step["repeated"]["documents"]
            flow = step["kept"]
        assert sum(split["documents"] for split in account["written"].values()) == flow["documents"]
