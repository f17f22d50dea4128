"""What plugin authors test with: a stage run in this process, and conformance checks for each kind.

corpus = make("curation", {"sources": {"mine": {"use": "jsonl", "path": "x.jsonl"}}}, tmp_path / "corpus")
model = make("pretrain", {"corpus": "corpus", ...}, tmp_path / "model", inputs={"corpus": corpus, ...})
check_optimizer(slot("optimizer", "lion").build(), [torch.nn.Parameter(torch.randn(4, 4))])
"""

from __future__ import annotations

from recipe_runner.testing.conformance import check_filter, check_optimizer, check_plugin
from recipe_runner.testing.local import LocalContext, make, slot

__all__ = ["LocalContext", "check_filter", "check_optimizer", "check_plugin", "make", "slot"]
