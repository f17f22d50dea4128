"""What annealing gains, taken apart: the falling rate and the better mixture, each alone and together.

    python tests/benchmarks/anneal.py [--scale 1.0] [--seeds 3]

`recipes/tiny.yaml` as far as its base, once a seed; from the end of its stable phase four continuations, equal tokens:
the rate stays or falls to zero, the mixture stays the base's or becomes that of the recipe's annealing. Weights are
those of the recipe, written down before. The table has bits per byte of each domain's held-out text, as medians of the
seeds. To hold, for the median of the differences within a seed: decay helps every domain at either mixture, and the
mixture helps its own domain (the one whose share it raises most) at either rate. What the mixture costs elsewhere is
printed. Exits 1 if one does not hold.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

from recipe_runner.plugins import installed
from recipe_runner.recipe import load
from recipe_runner.testing import make

RATES = {"stable": "constant", "decaying": "linear"}
Bits = Mapping[tuple[str, str], Mapping[str, float]]


class Bench:
    """The stages of the recipe, each made in this process."""

    def __init__(self, folder: Path, scale: float) -> None:
        recipe = load(
            str(Path(__file__).parents[2] / "recipes" / "tiny.yaml"), [f"vars.scale={scale}"], plugins=installed()
        )
        stages = ("corpus", "tokeniser", "base", "annealed")
        self.configs = {name: recipe.config(name).model_dump(mode="json", exclude_none=True) for name in stages}
        self.folder = folder
        self.mixes = {"old": self.configs["base"]["mix"], "high-quality": self.configs["annealed"]["mix"]}
        self.inputs: dict[str, Any] = {"corpus": make("curation", self.configs["corpus"], folder / "corpus")}
        self.inputs["tokeniser"] = self._made("tokeniser", "tokeniser", "tokeniser", {}, 0)

    def _made(self, use: str, stage: str, name: str, changes: dict[str, Any], seed: int) -> Any:
        config = {**self.configs[stage], **changes}
        return make(use, config, self.folder / name, inputs=self.inputs, seed=seed)

    def of_seed(self, seed: int) -> Bits:
        """Bits per byte of each domain after each of the four continuations."""
        self.inputs["base"] = self._made("pretrain", "base", f"base-{seed}", {}, seed)
        found = {}
        for rate, mix in product(RATES, self.mixes):
            changes = {"schedule": RATES[rate], "mix": self.mixes[mix]}
            made = self._made("anneal", "annealed", f"{rate}-{mix}-{seed}", changes, seed)
            found[rate, mix] = made.facts["bits_per_byte"]
        return found


def differences(seeds: list[Bits], better: tuple[str, str], than: tuple[str, str], domain: str) -> float:
    """The median, over the seeds, of what `better` gains on a domain."""
    return median(bits[than][domain] - bits[better][domain] for bits in seeds)


def checks(seeds: list[Bits], own: str) -> Iterator[tuple[str, float, bool]]:
    """Each claim with its gain in bits per byte, and whether it must hold."""
    domains = list(seeds[0]["stable", "old"])
    for mix, domain in product(("old", "high-quality"), domains):
        gain = differences(seeds, ("decaying", mix), ("stable", mix), domain)
        yield f"decay, {mix} mixture, {domain}", gain, True
    for rate, domain in product(RATES, domains):
        gain = differences(seeds, (rate, "high-quality"), (rate, "old"), domain)
        yield f"mixture, {rate} rate, {domain}", gain, domain == own


def main(words: list[str]) -> int:
    """Print the tables; 1 if a claim does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--seeds", type=int, default=3)
    asked = parser.parse_args(words)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), asked.scale)
        shares = {name: {d: w / sum(mix.values()) for d, w in mix.items()} for name, mix in bench.mixes.items()}
        own = max(shares["old"], key=lambda domain: shares["high-quality"].get(domain, 0) - shares["old"][domain])
        seeds = [bench.of_seed(seed) for seed in range(asked.seeds)]
    domains = list(seeds[0]["stable", "old"])
    print(f"bits per byte of held-out text, median of {len(seeds)} seeds; mixtures: {shares}")
    print(f"{'':<24}" + "".join(f"{domain:>14}" for domain in domains))
    for rate, mix in seeds[0]:
        middle = [median(bits[rate, mix][domain] for bits in seeds) for domain in domains]
        print(f"{rate + ', ' + mix:<24}" + "".join(f"{value:14.4f}" for value in middle))
    missed = 0
    for claim, gain, must in checks(seeds, own):
        missed += must and gain <= 0
        print(f"{claim:<46}{gain:+9.4f}  {('holds' if gain > 0 else 'DOES NOT HOLD') if must else 'gain or cost'}")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
