"""What training the tables brings to continued pretraining on a new domain with new tokens, at equal tokens.

    python tests/benchmarks/continued.py [--scale 0.25] [--steps 80] [--seeds 3]

`recipes/continue-tiny.yaml` as far as its continued model, once a seed, in three ways that differ in nothing but what
of the embedding and the head trains beside the adapter: both whole (the recipe), the rows of the new tokens only, or
nothing. `scale` is that of the budgets of the base. The table has bits per byte of each domain's held-out text, as
medians of the seeds, before and after: `notes` is new, `docstrings` is replayed, `reference` is not seen again. To
hold, for the median of the differences within a seed: with both tables the new domain is learned better than without.
What it costs elsewhere is printed. Exits 1 if it does not hold.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from recipe_runner.plugins import installed
from recipe_runner.recipe import load
from recipe_runner.testing import make

RECIPE = Path(__file__).parents[2] / "recipes" / "continue-tiny.yaml"
NEW = "notes"
WITH, WITHOUT = "both tables", "neither"
WAYS: Mapping[str, dict[str, Any]] = {
    WITH: {},
    "rows of new tokens": {"modules": [], "rows": "new-tokens"},
    WITHOUT: {"modules": []},
}
Found = Mapping[str, Mapping[str, Any]]
"""The facts of each way, of one seed."""


class Bench:
    """The stages of the recipe, each made in this process."""

    def __init__(self, folder: Path, scale: float, steps: int) -> None:
        changes = [
            f"vars.scale={scale}",
            "stages.corpus.sources.code.limit=2MB",
            f"stages.continued.budget={{steps: {steps}, scale: 1}}",
        ]
        recipe = load(str(RECIPE), changes, plugins=installed())
        self.uses = {
            "corpus": "curation", "notes": "curation", "tokeniser": "tokeniser", "words": "pretrained-tokeniser",
            "base": "pretrain", "annealed": "anneal", "continued": "pretrain",
        }  # fmt: skip
        self.configs = {name: recipe.config(name).model_dump(mode="json", exclude_none=True) for name in self.uses}
        self.folder = folder
        self.inputs: dict[str, Any] = {}
        for stage in ("corpus", "notes", "tokeniser", "words"):
            self.inputs[stage] = self._made(stage, self.configs[stage], stage, 0)

    def _made(self, stage: str, config: dict[str, Any], name: str, seed: int) -> Any:
        return make(self.uses[stage], config, self.folder / name, inputs=self.inputs, seed=seed)

    def of_seed(self, seed: int) -> Found:
        """What each way comes to, from one base."""
        for stage in ("base", "annealed"):
            self.inputs[stage] = self._made(stage, self.configs[stage], f"{stage}-{seed}", seed)
        continued, found = self.configs["continued"], {}
        for way, changes in WAYS.items():
            config = {**continued, "adapter": {**continued["adapter"], **changes}}
            found[way] = self._made("continued", config, f"{way}-{seed}", seed).facts
        return found


def table(seeds: list[Found]) -> list[list[str]]:
    """Rows of text: each way's trained parameters, and bits per byte of each domain."""
    domains = list(seeds[0][WITH]["forgetting"])

    def middle(way: str, when: str) -> list[str]:
        return [f"{median(found[way]['forgetting'][domain][when] for found in seeds):.4f}" for domain in domains]

    rows = [["trained beside", "parameters", *domains], ["before", "", *middle(WITH, "before")]]
    return rows + [[way, f"{seeds[0][way]['trainable']:,}", *middle(way, "after")] for way in WAYS]


def gains(seeds: list[Found], domain: str) -> list[float]:
    """By how many bits per byte a domain is better with both tables than without, of each seed."""
    after = [[found[way]["forgetting"][domain]["after"] for way in (WITHOUT, WITH)] for found in seeds]
    return [without - with_tables for without, with_tables in after]


def main(words: list[str]) -> int:
    """Print the tables; 1 if the claim does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=0.25)
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--seeds", type=int, default=3)
    asked = parser.parse_args(words)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), asked.scale, asked.steps)
        seeds = [bench.of_seed(seed) for seed in range(asked.seeds)]
    tokens = {found[way]["tokens"] for found in seeds for way in WAYS}
    print(f"bits per byte of held-out text, median of {len(seeds)} seeds, after {tokens} tokens")
    for row in table(seeds):
        print(f"{row[0]:<20}" + "".join(f"{entry:>14}" for entry in row[1:]))
    for domain in seeds[0][WITH]["forgetting"]:
        each = gains(seeds, domain)
        verdict = ("holds" if median(each) > 0 else "DOES NOT HOLD") if domain == NEW else "gain or cost"
        spread = f"({min(each):+.4f} to {max(each):+.4f})"
        print(f"{WITH} over {WITHOUT}, {domain:<14}{median(each):+9.4f}  {spread}  {verdict}")
    return int(median(gains(seeds, NEW)) <= 0 or len(tokens) > 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
