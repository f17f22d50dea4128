"""What full tuning and LoRA forget where both have learned as much: bits per byte at equal held-out answer loss.

    python tests/benchmarks/forgetting.py [--pretraining 400] [--steps 160] [--every 10] [--hidden 128]

A base is pretrained on the language reference that CPython carries, then tuned on questions about the standard library
in several ways, each at a constant rate, with the held-out answer loss measured every so many steps. The loss that all
of them reach is the common one: each way runs again for just as many steps as it took to get there, which ends where
the first run was, and is asked what it forgot. One row is full tuning on all tokens instead of the answers. Prints a
table; there is no goal.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from recipe_runner.testing import make

FULL = {"use": "sft", "optimizer": {"use": "adamw", "lr": 5e-4}}
LORA = {"use": "lora", "optimizer": {"use": "adamw", "lr": 3e-3}}
WAYS: dict[str, dict[str, Any]] = {
    "full": FULL,
    "full, train_on: all": {**FULL, "train_on": "all"},
    "lora r=8": {**LORA, "adapter": {"use": "lora", "r": 8, "alpha": 16}},
    "lora r=32": {**LORA, "adapter": {"use": "lora", "r": 32, "alpha": 64}},
}


class Bench:
    """One base and one corpus, and what becomes of them."""

    def __init__(self, given: argparse.Namespace, folder: Path) -> None:
        self.given, self.folder = given, folder
        self.execution = {"device": "cpu", "threads": given.threads, "checkpoint_every": 10**6}
        text = self._make("curation", {"sources": {"reference": "python-reference", "docs": "python-docstrings"}}, {})
        self.questions = self._make(
            "curation", {"sources": {"what": {"use": "python-questions", "kinds": ["how"]}}}, {}
        )
        tokeniser = self._make("tokeniser", {"corpus": "text", "vocab_size": 2048}, {"text": text})
        self.base = self._make("pretrain", self._pretraining(), {"text": text, "tokeniser": tokeniser})

    def _make(self, use: str, config: dict[str, Any], inputs: dict[str, Any]) -> Any:
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        return make(use, {"execution": self.execution, **config}, folder, inputs=inputs, seed=1)

    def _pretraining(self) -> dict[str, Any]:
        hidden = self.given.hidden
        architecture = {
            "use": "llama", "hidden_size": hidden, "num_hidden_layers": 4, "num_attention_heads": max(1, hidden // 32),
            "intermediate_size": hidden * 8 // 3, "max_position_embeddings": 256,
        }  # fmt: skip
        return {
            "corpus": "text", "tokeniser": "tokeniser", "architecture": architecture, "batch_size": 16,
            "sequence_length": 256, "optimizer": {"use": "adamw", "lr": 4e-3}, "max_repeats": 100,
            "schedule": {"use": "wsd", "warmup": 0.05, "decay": 0.2}, "budget": {"steps": self.given.pretraining},
        }  # fmt: skip

    def tuned(self, way: dict[str, Any], steps: int) -> Any:
        """The base tuned for so many steps at a constant rate."""
        config = {
            **way, "model": "base", "corpus": "questions", "schedule": "constant", "batch_size": 8,
            "sequence_length": 256, "budget": {"steps": steps}, "evaluation": {"every": self.given.every, "samples": 0},
        }  # fmt: skip
        return self._make(config.pop("use"), config, {"base": self.base, "questions": self.questions})


def curve(tuned: Any) -> dict[int, float]:
    """Held-out answer loss by step."""
    title = "held-out answer loss while training"
    table = next(table for table in tuned.facts["tables"] if table["title"] == title)
    return {int(step): float(loss) for step, loss in table["rows"]}


def main() -> int:
    """Print the table."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--pretraining", type=int, default=400, help="steps of 4,096 tokens")
    options.add_argument("--steps", type=int, default=160, help="of tuning, at most")
    options.add_argument("--every", type=int, default=10)
    options.add_argument("--hidden", type=int, default=128)
    options.add_argument("--threads", type=int, default=2)
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(given, Path(name))
        curves = {label: curve(bench.tuned(way, given.steps)) for label, way in WAYS.items()}
        common = max(min(losses.values()) for losses in curves.values())
        print(f"held-out answer loss that all reach: {common:.3f} nats a token")
        print(f"{'way':<22} {'steps':>5} {'answers':>8} {'reference, bits per byte':>26} {'change':>8}")
        for label, way in WAYS.items():
            steps = next(step for step, loss in curves[label].items() if loss <= common)
            pair = bench.tuned(way, steps).facts["forgetting"]
            text = pair["python-reference"]
            before_and_after = f"{text['before']:.3f} -> {text['after']:.3f}"
            print(
                f"{label:<22} {steps:>5} {pair['answer_loss']['after']:>8.3f} {before_and_after:>26} "
                f"{text['change']:>+8.3f}",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
