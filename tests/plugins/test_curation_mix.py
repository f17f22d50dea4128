"""The mixture: exact targets, a selection that nothing but the seed decides, and errors that say by how much."""

from __future__ import annotations

import json
import re
from fractions import Fraction

import pytest
from pydantic import ValidationError

from recipe_plugins.curation.config import MixConfig
from recipe_plugins.curation.mix import largest_remainder, targets
from recipe_runner import RecipeError
from recipe_runner.identity import folder_files
from recipe_runner.testing import make
from recipe_runner.testing.local import slot


def write(path, name, count, size):
    rows = [{"id": f"{name}{n:03d}", "text": f"{name} {n:03d} ".ljust(size + n % 7, "x")} for n in range(count)]
    path.mkdir(exist_ok=True)
    (path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"use": "jsonl", "path": str(path / f"{name}.jsonl")}


@pytest.fixture
def sources(tmp_path):
    return {"web": write(tmp_path / "in", "web", 200, 50), "code": write(tmp_path / "in", "code", 60, 80)}


def mixed(sources, folder, mix, **more):
    return make("curation", {"sources": sources, "mix": mix, "heldout": 0.2, **more}, folder)


def table(corpus):
    found = next(entry for entry in corpus.manifest["facts"]["tables"] if entry["title"] == "mix: domains")
    return {row[0]: dict(zip(found["columns"], row, strict=True)) for row in found["rows"]}


def test_largest_remainder_adds_up_and_is_within_one():
    shares = {name: Fraction(n, 7 * 43) for n, name in zip((100, 99, 102), "abc", strict=True)}
    for total in range(1, 500):
        parts = largest_remainder(total, shares)
        assert sum(parts.values()) == total
        assert all(abs(parts[name] - total * shares[name]) < 1 for name in shares)


def test_targets_follow_weights_temperature_and_tokens():
    sizes = {"a": 8_000, "b": 2_000}
    assert targets(MixConfig(budget=1_000), sizes) == {"a": 800, "b": 200}
    assert targets(MixConfig(budget=1_000, temperature=2), sizes) == {"a": 667, "b": 333}
    assert targets(MixConfig(weights={"a": 1, "b": 3}, budget=1_000), sizes) == {"a": 250, "b": 750}
    assert targets(MixConfig(weights={"a": 1, "b": 1}), sizes) == {"a": 2_000, "b": 2_000}  # the largest that fits
    assert targets(MixConfig(upsample={"b": 3}), sizes) == {"a": 8_000, "b": 6_000}
    tokens = MixConfig(weights={"a": 1, "b": 1}, unit="tokens", budget=500, bytes_per_token={"a": 4, "b": 2})
    assert targets(tokens, sizes) == {"a": 1_000, "b": 500}


def test_shares_are_the_numbers_that_are_written():
    """As floats 0.1 is a little more than a tenth, and 100 times 1.15 a little less than 115."""
    assert targets(MixConfig(weights={"a": 0.1, "b": 0.9}), {"a": 100, "b": 1_000}) == {"a": 100, "b": 900}
    assert targets(MixConfig(repeat=1.15, budget=115), {"a": 100}) == {"a": 115}
    assert targets(MixConfig(upsample={"a": 1.15}), {"a": 100}) == {"a": 115}
    tokens = MixConfig(unit="tokens", budget=100, bytes_per_token=1.15)
    assert targets(tokens, {"a": 1_000}) == {"a": 115}


def test_observed_meets_the_target_but_for_one_document_and_the_ledger_balances(sources, tmp_path):
    corpus = mixed(sources, tmp_path / "a", {"weights": {"web": 3, "code": 1}, "budget": 6_000})
    ledger = json.loads((corpus.path / "ledger.json").read_text())["domains"]
    for domain, row in table(corpus).items():
        assert 0 <= row["target"] - row["observed"] < 90
        records = list(corpus.read(domain))
        assert (len(records), sum(r.size for r in records)) == (row["selected"], row["observed"])
        assert ledger[domain]["steps"]["mix"]["removed"]["over_budget"]["documents"] > 0
    assert sum(row["target"] for row in table(corpus).values()) == 6_000
    whole = make("curation", {"sources": sources, "heldout": 0.2}, tmp_path / "whole")
    assert list(corpus.read("web", "heldout")) == list(whole.read("web", "heldout"))
    removed = next((corpus.path / "removed").glob("*_mix/web.jsonl")).read_text()
    assert '"reason":"over_budget"' in removed


def test_the_selection_is_the_seed_s_and_grows_with_the_budget(sources, tmp_path):
    mix = {"weights": {"web": 1, "code": 1}, "budget": 4_000}
    small = mixed(sources, tmp_path / "a", mix)
    again = mixed(sources, tmp_path / "b", mix, execution={"workers": 2})
    assert folder_files(small.payload) == folder_files(again.payload)
    ids = {r.id for r in small.read("web")}
    assert ids < {r.id for r in mixed(sources, tmp_path / "c", {**mix, "budget": 6_000}).read("web")}
    assert ids != {r.id for r in mixed(sources, tmp_path / "d", mix, seed=5).read("web")}


def test_a_domain_is_gone_through_as_often_as_allowed(sources, tmp_path):
    corpus = mixed(sources, tmp_path / "a", {"upsample": {"code": 2.5}})
    records = [record.id for record in corpus.read("code")]
    originals = {name.partition("#")[0] for name in records}
    assert len(set(records)) == len(records)
    assert len(records) == pytest.approx(2.5 * len(originals), abs=1)
    assert {name.partition("#")[0] for name in records} & {r.id for r in corpus.read("code", "heldout")} == set()
    step = json.loads((corpus.path / "ledger.json").read_text())["domains"]["code"]["steps"]["mix"]
    assert step["repeated"]["documents"] == len(records) - len(originals)


def test_too_much_is_an_error_that_says_by_how_much(sources, tmp_path):
    with pytest.raises(RecipeError, match=r"10,000 bytes of code, which gives ([\d,]+) .* too many") as caught:
        mixed(sources, tmp_path / "a", {"weights": {"web": 1, "code": 1}, "budget": 20_000})
    assert "fits" in caught.value.next
    assert not (tmp_path / "a" / "payload" / "corpus.json").exists()


def test_the_budget_that_is_said_to_fit_fits_in_its_unit():
    sizes = {"a": 9_001, "b": 2_003}
    mix = {"weights": {"a": 1, "b": 3}, "unit": "tokens", "bytes_per_token": {"a": 4.3, "b": 2.1}}
    with pytest.raises(RecipeError) as caught:
        targets(MixConfig(**mix, budget=10_000), sizes)
    fits = int(re.search(r"([\d,]+) tokens fits", caught.value.next)[1].replace(",", ""))
    assert targets(MixConfig(**mix, budget=fits), sizes)
    with pytest.raises(RecipeError):
        targets(MixConfig(**mix, budget=fits + 2), sizes)


@pytest.mark.parametrize("weights", [{"a": 1e9, "b": 1}, {"a": 1e-9, "b": 1}])
def test_a_temperature_that_leaves_no_number_is_an_error(weights):
    with pytest.raises(RecipeError, match=r"mix\.temperature"):
        targets(MixConfig(weights=weights, temperature=0.01), {"a": 100, "b": 100})


def test_a_copy_called_as_another_document_is_an_error(tmp_path):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"id": i, "text": f"text {i}"}) + "\n" for i in ("a", "a#2")))
    source = {"use": "jsonl", "path": str(tmp_path / "a.jsonl")}
    with pytest.raises(RecipeError, match="web: two documents are called 'a#2'"):
        mixed({"web": source}, tmp_path / "out", {"upsample": {"web": 2}}, heldout=0)


@pytest.mark.parametrize(
    ("mix", "said"),
    [
        ({"weights": {"web": 1}}, "nothing is said of 'code'"),
        ({"weights": {"web": 1, "kode": 1}}, "no source is called 'kode'"),
        ({"weights": {"web": 1, "code": 1}, "upsample": {"web": 2}}, "give `repeat`"),
        ({"weights": {"web": 1, "code": 0}}, "greater than 0"),
    ],
)
def test_a_wrong_mix_is_an_error_at_load(sources, mix, said):
    with pytest.raises((ValidationError, RecipeError), match=said):
        slot("stage", {"use": "curation", "sources": sources, "mix": mix})
