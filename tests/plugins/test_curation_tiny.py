"""The corpora of recipes/tiny.yaml: what is held out is not in the training text, and enough is kept."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from recipe_runner import Corpus, Record
from recipe_runner.components import written
from recipe_runner.recipe import load
from recipe_runner.testing import make

pytestmark = pytest.mark.slow
TINY = Path(__file__).resolve().parents[2] / "recipes" / "tiny.yaml"
STAGES = ("corpus", "questions", "skill")
SPAN = 60
"""Bytes of a span that is searched for."""
FACTOR = np.uint64(0x9E3779B97F4A7C15)
INVERSE = np.uint64(pow(int(FACTOR), -1, 2**64))


@pytest.fixture(scope="module")
def corpora(tmp_path_factory) -> dict[str, Corpus]:
    recipe = load(str(TINY))
    configs = {name: {**written(recipe.stages[name]), "execution": {}} for name in STAGES}
    return {name: make(config.pop("use"), config, tmp_path_factory.mktemp(name)) for name, config in configs.items()}


def records(corpora: dict[str, Corpus], split: str) -> Iterator[Record]:
    for corpus in corpora.values():
        for domain in corpus.domains(split):
            yield from corpus.read(domain, split)


def data_of(record: Record) -> bytes:
    """The text, with white space run together: indentation gives nothing away."""
    turns = [record.text] if record.text is not None else [turn["content"] for turn in record.messages]
    return " ".join("\n".join(turns).split()).encode()


def hashes(data: bytes) -> np.ndarray:
    """A hash of each span of `SPAN` bytes: differences of prefix sums of a polynomial, moved to the origin."""
    values = np.frombuffer(data, np.uint8)
    count = max(len(values) - SPAN + 1, 0)
    up, down = (np.cumprod(np.full(len(values) + 1, base, np.uint64)) for base in (FACTOR, INVERSE))
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(values * up[:-1])])
    return (sums[SPAN : SPAN + count] - sums[:count]) * down[:count]


def test_less_than_one_in_a_hundred_held_out_spans_stands_in_the_training_text(corpora):
    known = np.sort(hashes(b"\0\0".join(map(data_of, records(corpora, "train")))))
    spans = np.concatenate([hashes(data_of(record))[::SPAN] for record in records(corpora, "heldout")])
    at = np.minimum(np.searchsorted(known, spans), len(known) - 1)
    assert len(spans) > 3000
    leaked = float((known[at] == spans).mean())
    print(f"{leaked:.2%} of {len(spans)} spans")
    assert leaked < 0.01


def test_what_the_corpus_holds_out_is_trained_on_nowhere(corpora):
    """A stage may hold out a larger share than another, but then more of the same."""
    heldout = {record.meta["group"] for record in records({"corpus": corpora["corpus"]}, "heldout")}
    assert len(heldout) > 10
    assert not heldout & {record.meta["group"] for record in records(corpora, "train")}


def test_each_domain_keeps_most_of_its_bytes(corpora):
    """Of what the steps see; the mixture of `skill` then selects under a budget, which is no loss."""
    for corpus in (corpora["corpus"], corpora["questions"]):
        for domain, account in json.loads((corpus.path / "ledger.json").read_text())["domains"].items():
            kept = sum(counts["bytes"] for counts in account["written"].values())
            assert kept >= 0.6 * account["read"]["bytes"], domain
