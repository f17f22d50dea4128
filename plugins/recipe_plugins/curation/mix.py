"""The mixture: how much of each domain is kept under a budget, and which documents.

The one idea: targets are whole numbers that add up to the budget (largest remainder, Hamilton); a domain's documents
stand in the order of a hash of (seed, id), and the first that fit its target are selected. So the selection depends on
neither order nor workers, and a larger budget selects a superset. A domain that is to give more than it holds is gone
through several times, as far as `repeat` or `upsample` allow it; copies are called `id#2`, `id#3`.
Only what is trained on is mixed: held-out documents are all kept, once. What was selected is below its target by less
than one document. Limits: tokens are bytes divided by `bytes_per_token`; in memory are 20 bytes a document.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from recipe_plugins.curation.config import MixConfig
from recipe_plugins.curation.documents import fingerprint, group_of, side
from recipe_runner import RecipeError, Record, Verdict, exact

ENTRY = np.dtype([("domain", "<u4"), ("key", "<u8"), ("size", "<u8")])
COLUMNS = ("domain", "population", "selected", "target", "observed", "repeated")


class Mix:
    """A global filter over all domains of a curation, `domains` in the order of their priorities."""

    def __init__(self, config: MixConfig, domains: Sequence[str], heldout: float, seed: int) -> None:
        self.config, self.domains = config, domains
        self._heldout, self._seed = heldout, seed

    def _is_mixed(self, record: Record) -> bool:
        return side(group_of(record), self._heldout) == "train"

    def _key(self, record: Record) -> int:
        return fingerprint(f"mix\0{record.id}", self._seed)

    def sketch(self, batch: Sequence[Record]) -> bytes:
        """Domain, key and size of each document that may be trained on."""
        rows = [(record.priority, self._key(record), record.size) for record in batch if self._is_mixed(record)]
        return np.array(rows, ENTRY).tobytes()

    def decide(self, sketches: Iterable[bytes], work: Path) -> Path:
        """The table, and for each domain how often all of it is taken, and below which key once more."""
        parts = [np.frombuffer(sketch, ENTRY) for sketch in sketches]
        found = np.concatenate([np.empty(0, ENTRY), *parts])
        held = {domain: found[found["domain"] == number] for number, domain in enumerate(self.domains)}
        sizes = {domain: int(rows["size"].sum()) for domain, rows in held.items()}
        goals = targets(self.config, sizes)
        state = {domain: _selection(domain, rows, goals[domain]) for domain, rows in held.items()}
        target = work / "mix.json"
        target.write_text(json.dumps(state, indent=1), encoding="utf-8")
        return target

    def judge(self, batch: Sequence[Record], state: Path) -> list[Verdict]:
        """Selected documents go on, as often as their domain is gone through."""
        selections = json.loads(state.read_text(encoding="utf-8"))
        return [self._judge(record, selections[self.domains[record.priority]]) for record in batch]

    def _judge(self, record: Record, selection: Mapping[str, int]) -> Verdict:
        if not self._is_mixed(record):
            return Verdict(True)
        copies = selection["times"] + (self._key(record) < selection["below"])
        return Verdict(True, copies=copies) if copies else Verdict(False, "over_budget")

    def tables(self, state: Path) -> list[dict[str, Any]]:
        """What `decide` wrote, as people read it; all in bytes of text but for `selected`, which is documents."""
        selections = json.loads(state.read_text(encoding="utf-8"))
        rows = [[domain, *(selection[name] for name in COLUMNS[1:])] for domain, selection in selections.items()]
        return [{"title": "domains", "columns": list(COLUMNS), "rows": rows}]


# ── how much ─────────────────────────────────────────────────────────────────────────────────────────────────────


def targets(config: MixConfig, sizes: Mapping[str, int]) -> dict[str, int]:
    """Bytes of each domain, whole numbers that add up to the budget; `sizes` are the bytes there are.

    Shares are those of `weights`, else of the sizes times `upsample`, each to the power 1/`temperature` (as in
    multilingual BERT). Without a budget it is the largest that no domain is too small for. Raises `RecipeError` where
    one is.
    """
    shares = _shares(config, sizes)
    holds = {domain: math.floor(sizes[domain] * exact(_times(config, domain))) for domain in sizes}
    if config.budget is None:
        budget = math.floor(min(holds[domain] / share for domain, share in shares.items()))
    else:
        budget = round(config.budget * _ratio(config, shares)) if config.unit == "tokens" else config.budget
    goals = largest_remainder(budget, shares)
    lacking = [
        f"{goals[domain]:,} bytes of {domain}, which gives {holds[domain]:,} ({sizes[domain]:,} gone through at most "
        f"{_times(config, domain):g} times): {goals[domain] - holds[domain]:,} too many"
        for domain in sizes
        if goals[domain] > holds[domain]
    ]
    if lacking:
        fits = math.floor(min(holds[domain] / share for domain, share in shares.items()))
        if config.unit == "tokens":
            fits = math.floor(fits / _ratio(config, shares))
        raise RecipeError(
            f"the mix asks for more than there is: {'; '.join(lacking)}",
            next=f"a budget of {fits:,} {config.unit} fits; else raise `mix.repeat`, or lower a weight",
        )
    return goals


def _shares(config: MixConfig, sizes: Mapping[str, int]) -> dict[str, Fraction]:
    """Shares of the budget in bytes, which add up to 1."""
    empty = [domain for domain, size in sizes.items() if not size]
    if empty:
        what = f"all that is left of {empty[0]} is held out, so that there is nothing of it to be mixed"
        raise RecipeError(what, next="loosen the steps that judge it, or lower `heldout`")
    written = {domain: exact(weight) for domain, weight in config.weights.items()}
    given = written or {domain: size * exact(config.upsample.get(domain, 1.0)) for domain, size in sizes.items()}
    tempered = {domain: _tempered(given[domain], config.temperature) for domain in sizes}
    if config.weights and config.unit == "tokens":
        tempered = {d: weight * exact(config.ratio(d)) for d, weight in tempered.items()}
    total = sum(tempered.values())
    return {domain: weight / total for domain, weight in tempered.items()}


def _tempered(weight: Fraction, temperature: float) -> Fraction:
    if temperature == 1:
        return weight
    try:
        found = Fraction(float(weight) ** (1 / temperature))
    except OverflowError:
        found = Fraction(0)
    if not found:
        raise RecipeError(
            f"mix.temperature: {float(weight):g} to the power 1/{temperature:g} is no number that shares are made of",
            next="take a temperature nearer to 1, or weights nearer to 1",
        )
    return found


def _ratio(config: MixConfig, shares: Mapping[str, Fraction]) -> Fraction:
    """Bytes of a token of the whole mixture."""
    return 1 / sum((share / exact(config.ratio(domain)) for domain, share in shares.items()), Fraction(0))


def _times(config: MixConfig, domain: str) -> float:
    return max(config.repeat, config.upsample.get(domain, 1.0))


def largest_remainder(total: int, shares: Mapping[str, Fraction]) -> dict[str, int]:
    """Whole numbers near `total` times each share that add up to `total` (Hamilton's method; ties: the first)."""
    exact = {name: total * share for name, share in shares.items()}
    parts = {name: math.floor(value) for name, value in exact.items()}
    order = sorted(exact, key=lambda name: parts[name] - exact[name])
    for name in order[: total - sum(parts.values())]:
        parts[name] += 1
    return parts


# ── which ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _selection(domain: str, rows: np.ndarray, target: int) -> dict[str, int]:
    """`times`: how often all are taken; `below`: keys under it are taken once more; and the row of the table."""
    rows = np.sort(rows, order=["key", "size"])
    population = int(rows["size"].sum())
    times, rest = divmod(target, population)
    after = np.cumsum(rows["size"])
    fit = int(np.searchsorted(after, rest, side="right"))
    below = int(rows["key"][fit]) if fit < len(rows) else (1 << 64)
    more = rows["key"] < below if fit < len(rows) else np.ones(len(rows), bool)
    observed = times * population + int(rows["size"][more].sum())
    if not observed:
        raise RecipeError(
            f"the mix selects nothing of {domain}: its target, {target:,} bytes, is smaller than a document",
            next="raise `mix.budget` or its weight",
        )
    return {
        "population": population, "selected": len(rows) if times else int(more.sum()), "target": target,
        "observed": observed, "repeated": max(0, observed - population), "times": times, "below": below,
    }  # fmt: skip
