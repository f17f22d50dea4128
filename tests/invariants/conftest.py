"""What the tests of fine-tuning share."""

from __future__ import annotations

import json
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def talk(tmp_path_factory) -> Path:
    """Forty short conversations, each with a worse answer, and eight held out."""
    folder = tmp_path_factory.mktemp("talk")
    rows = [
        {"id": str(n), "text": None, "messages": [
            {"role": "user", "content": f"What comes after {n}?"}, {"role": "assistant", "content": f"{n + 1}."},
        ], "meta": {"preference": {"prompt": 1, "rejected": [{"role": "assistant", "content": f"{n}."}]}}}
        for n in range(48)
    ]  # fmt: skip
    index = {}
    for split, chosen in (("train", rows[:40]), ("heldout", rows[40:])):
        (folder / "payload" / split / "talk").mkdir(parents=True)
        path = folder / "payload" / split / "talk" / "0.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in chosen))
        shard = {"file": f"{split}/talk/0.jsonl", "documents": len(chosen), "bytes": 1}
        index[split] = {"documents": len(chosen), "bytes": 1, "shards": [shard]}
    (folder / "payload/corpus.json").write_text(json.dumps({"domains": {"talk": index}}))
    (folder / "manifest.json").write_text(json.dumps({"type": "corpus", "facts": {}}))
    return folder
