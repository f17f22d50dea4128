"""What plugin authors test with: a stage run in this process, and conformance checks for each kind.

corpus = make("curation", {"sources": {"mine": {"use": "jsonl", "path": "x.jsonl"}}}, tmp_path / "corpus")
model = make("pretrain", {"corpus": "corpus", ...}, tmp_path / "model", inputs={"corpus": corpus, ...})
"""

from __future__ import annotations

from recipe_runner.testing.local import LocalContext, make

__all__ = ["LocalContext", "make"]
