"""Curation: every document accounted for, and one result for any number of workers, files and interruptions."""

from __future__ import annotations

import gzip
import json
import random
import re
from contextlib import suppress
from pathlib import Path

import pytest
from pydantic import ValidationError

from recipe_plugins.curation import stage as curation_stage
from recipe_plugins.curation import tables
from recipe_plugins.curation.ledger import Account
from recipe_runner import Component, Counts, Interrupted, RecipeError
from recipe_runner.components import Registry
from recipe_runner.identity import folder_files
from recipe_runner.plugins import Plugins, installed
from recipe_runner.testing import LocalContext, make
from recipe_runner.testing.local import slot

WORDS = "the cat sat on a mat and saw that birds have to be with many of their own in old trees near rivers".split()


def text_of(rng: random.Random, words: int) -> str:
    return " ".join(rng.choice(WORDS) + str(rng.randrange(50)) * rng.randrange(2) for _ in range(words))


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    """400 documents: some short, some twice, some nearly twice."""
    rng = random.Random(7)
    found = [{"id": f"d{n:03d}", "text": text_of(rng, rng.choice([20, 80, 150]))} for n in range(300)]
    found += [{"id": f"e{n:03d}", "text": found[n]["text"]} for n in range(50)]
    found += [{"id": f"n{n:03d}", "text": found[n]["text"] + " and one more"} for n in range(50, 100)]
    return found


STEPS = {
    "quality": {"use": "gopher-quality", "min_letter_words": 0.5},
    "equal": "exact-dedup",
    "alike": "minhash-dedup",
    "long": {"use": "gopher-quality", "max_words": 140, "min_letter_words": 0.5},
}


def write(folder: Path, rows: list[dict], files: int) -> Path:
    folder.mkdir(parents=True)
    for n in range(files):
        lines = [json.dumps(row) for row in rows[n::files]]
        (folder / f"part-{n:03d}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def curate(source: dict, folder: Path, **more):
    return make("curation", {"sources": {"web": source}, "steps": STEPS, "heldout": 0.2, **more}, folder)


def texts(corpus, domain="web", split="train"):
    return {record.id: record.text for record in corpus.read(domain, split)}


def ledger(corpus) -> dict:
    return json.loads((corpus.path / "ledger.json").read_text())["domains"]


# ── one result ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_workers_files_and_order_of_the_input_change_no_byte(rows, tmp_path):
    one = curate({"use": "jsonl", "path": str(write(tmp_path / "a", rows, 1))}, tmp_path / "1")
    shuffled = random.Random(1).sample(rows, len(rows))
    many = curate({"use": "jsonl", "path": str(write(tmp_path / "b", shuffled, 40))}, tmp_path / "2",
                  execution={"workers": 3})  # fmt: skip
    assert folder_files(one.payload) == folder_files(many.payload)
    assert 0 < len(texts(one)) < 300
    drop = ("seconds", "bad_samples")
    assert json.loads(json.dumps(ledger(one)), object_hook=lambda d: {k: d[k] for k in d if k not in drop}) == \
        json.loads(json.dumps(ledger(many)), object_hook=lambda d: {k: d[k] for k in d if k not in drop})  # fmt: skip
    removed = [p.relative_to(one.path) for p in sorted(one.path.glob("removed/*/*"))]
    assert len(removed) >= 3
    assert [(one.path / p).read_bytes() for p in removed] == [(many.path / p).read_bytes() for p in removed]


def test_shards_of_the_output_are_ranges_of_one_order(rows, tmp_path, monkeypatch):
    source = {"use": "jsonl", "path": str(write(tmp_path / "a", rows, 3))}
    whole = curate(source, tmp_path / "whole")
    monkeypatch.setattr("recipe_plugins.curation.stage.SHARD", 9_000)
    monkeypatch.setattr("recipe_plugins.curation.runs.RUN", 5_000)
    parts = curate(source, tmp_path / "parts")
    assert len(list((parts.payload / "train" / "web").iterdir())) > 3
    for split in ("train", "heldout"):
        assert list(parts.read("web", split)) == list(whole.read("web", split))
        assert parts.domains(split) == whole.domains(split)
    skipped = list(parts.read("web", "train", start=70))
    assert skipped == list(parts.read("web"))[70:]


class Stopping(LocalContext):
    """Asks to stop at the n-th look."""

    looks = 0

    def stopping(self) -> bool:
        self.looks += 1
        return self.looks > self.stop


@pytest.mark.parametrize("segments", [STEPS, {}])
def test_stopped_anywhere_it_goes_on_and_redoes_nothing(rows, tmp_path, segments):
    config = {"sources": {"web": {"use": "jsonl", "path": str(write(tmp_path / "a", rows, 3))}}, "steps": segments}
    straight = make("curation", config, tmp_path / "straight")
    stage = slot("stage", {"use": "curation", **config, "execution": {"workers": 1}})
    context = Stopping(tmp_path / "stopped")
    kept: dict[Path, int] = {}
    stops = 0
    while not (context.payload / "corpus.json").exists():
        context.stop, context.looks = 3, 0  # three looks a run: one piece and a half, or one barrier over three
        stops += 1
        before = {f: f.stat().st_mtime_ns for f in context.work.rglob("account.json")}
        assert kept.items() <= before.items()
        with suppress(Interrupted):
            stage.build().run(context)
        kept = before
    assert stops > (4 if segments else 1)
    assert folder_files(context.payload) == folder_files(straight.payload)


@pytest.mark.parametrize("file", ["00/000001/kept.jsonl", "01/000001/kept.jsonl", "01/000000/sketches", "plan.json"])
def test_what_a_crash_tore_is_made_again(rows, tmp_path, file):
    config = {"sources": {"web": {"use": "jsonl", "path": str(write(tmp_path / "a", rows, 3))}}, "steps": STEPS}
    straight = make("curation", config, tmp_path / "straight")
    stage = slot("stage", {"use": "curation", **config, "execution": {"workers": 1}})
    context = Stopping(tmp_path / "torn")
    context.stop = 13  # two looks in each of three pieces, a barrier over three, two pieces
    with pytest.raises(Interrupted):
        stage.build().run(context)
    torn = context.work / file
    torn.write_bytes(torn.read_bytes()[:-20])
    context.stop = 1000
    stage.build().run(context)
    assert folder_files(context.payload) == folder_files(straight.payload)


# ── the account ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_ledger_says_what_happened_to_every_document(rows, tmp_path):
    corpus = curate({"use": "jsonl", "path": str(write(tmp_path / "a", rows, 2))}, tmp_path / "c", keep_removed="all")
    web = ledger(corpus)["web"]
    given = {row["id"]: row["text"] for row in rows}
    kept = {**texts(corpus), **texts(corpus, split="heldout")}
    gone = {}
    for file in corpus.path.glob("removed/*/web.jsonl"):
        for line in file.read_text().splitlines():
            entry = json.loads(line)
            gone[entry["id"]] = (file.parent.name, entry["reason"], entry["text"])
    assert kept.keys() | gone.keys() == given.keys()
    assert not kept.keys() & gone.keys()
    assert all(gone[name][2] == given[name] for name in gone)
    for number, (name, passage) in enumerate(web["steps"].items(), 1):
        for reason, counts in passage["removed"].items():
            mine = [text for step, why, text in gone.values() if (step, why) == (f"{number:02d}_{name}", reason)]
            assert counts == {"documents": len(mine), "bytes": sum(len(text.encode()) for text in mine)}
    assert web["steps"]["equal"]["removed"]["duplicate"]["documents"] > 20
    assert web["steps"]["alike"]["removed"]["near_duplicate"]["documents"] > 20
    assert sum(c["documents"] for c in web["written"].values()) == len(kept)
    assert corpus.facts["domains"]["web"]["train"]["documents"] == len(texts(corpus))
    assert [stop["step"] for stop in corpus.facts["funnel"]["web"]] == ["read", *STEPS]


@pytest.mark.parametrize(("keep", "expected"), [("sample", 100), ("all", 300)])
def test_removed_documents_are_kept_as_a_sample_of_each_reason_or_all(tmp_path, keep, expected):
    rows = [{"id": str(n), "text": "too short"} for n in range(300)] + [{"id": "long", "text": "the of " * 50}]
    config = {
        "sources": {"web": {"use": "jsonl", "path": str(write(tmp_path / "a", rows, 4))}},
        "steps": {"quality": {"use": "gopher-quality", "min_mean_word_length": 0}},
        "keep_removed": keep,
    }
    corpus = make("curation", config, tmp_path / "c")
    lines = (corpus.path / "removed" / "01_quality" / "web.jsonl").read_text().splitlines()
    assert len({json.loads(line)["id"] for line in lines}) == len(lines) == expected
    assert json.loads(lines[0])["scores"]["words"] == 2


def test_of_two_copies_the_earlier_source_then_the_lower_id_survives(tmp_path):
    text = text_of(random.Random(3), 80)
    config = {
        "sources": {
            "first": {"use": "jsonl", "path": str(write(tmp_path / "1", [{"id": "z", "text": text}], 1))},
            "second": {"use": "jsonl", "path": str(write(tmp_path / "2", [
                {"id": "b", "text": text}, {"id": "a", "text": text}, {"id": "d", "text": text + " x"},
                {"id": "c", "text": "Something else."},
            ], 1))},
        },
        "steps": {"equal": {"use": "exact-dedup", "only": {"domain": ["second"]}}},
        "heldout": 0,
    }  # fmt: skip
    assert set(texts(make("curation", config, tmp_path / "apart"), "second")) == {"a", "c", "d"}
    config["steps"] = {"equal": "exact-dedup", "alike": "minhash-dedup"}
    corpus = make("curation", config, tmp_path / "together")
    assert set(texts(corpus, "first")) == {"z"}
    assert set(texts(corpus, "second")) == {"c"}


def test_a_step_judges_only_its_domains(tmp_path):
    config = {
        "sources": {name: {"use": "jsonl", "path": str(write(tmp_path / name, [{"id": name, "text": "Short."}], 1))}
                    for name in ("prose", "code")},
        "steps": {"equal": {"use": "exact-dedup", "only": {"domain": ["prose"]}}},
    }  # fmt: skip
    corpus = make("curation", config, tmp_path / "c")
    assert set(ledger(corpus)["prose"]["steps"]) == {"equal"}
    assert ledger(corpus)["code"]["steps"] == {}
    config["steps"]["equal"]["only"]["domain"] = ["prosa"]
    with pytest.raises(ValidationError, match="did you mean 'prose'"):
        make("curation", config, tmp_path / "d")


@pytest.fixture(scope="module")
def balanced(rows, tmp_path_factory) -> str:
    """The account of one domain, as JSON."""
    folder = tmp_path_factory.mktemp("balanced")
    corpus = curate({"use": "jsonl", "path": str(write(folder / "a", rows, 1))}, folder / "c")
    return json.dumps(ledger(corpus)["web"])


@pytest.mark.parametrize(
    ("at", "value"),
    [
        (("read", "rows"), 999),
        (("read", "documents"), 999),
        (("read", "bytes"), 999),
        (("read", "bad"), {"lost": 1}),
        (("steps", "quality", "in", "documents"), 999),
        (("steps", "quality", "in", "bytes"), 999),
        (("steps", "quality", "kept", "documents"), 999),
        (("steps", "quality", "kept", "bytes"), 999),
        (("steps", "quality", "removed"), {}),
        (("steps", "quality", "changed_bytes"), 1),
        (("steps", "alike", "kept", "bytes"), 999),
        (("written", "train", "documents"), 999),
        (("written", "heldout", "bytes"), 999),
    ],
)
def test_a_ledger_with_any_figure_changed_does_not_balance(balanced, at, value):
    from recipe_plugins.curation.ledger import Account

    data = json.loads(balanced)
    Account.from_json(data).check("web")
    part = data
    for key in at[:-1]:
        part = part[key]
    part[at[-1]] = value
    with pytest.raises(RecipeError, match="does not balance"):
        Account.from_json(data).check("web")


# ── filters of others ────────────────────────────────────────────────────────────────────────────────────────────

OTHERS = """
from recipe_runner import Verdict

class Shout:
    def __init__(self, config): pass
    def judge(self, batch): return [Verdict(True, text=record.text.upper() + "!") for record in batch]

class Lazy(Shout):
    def judge(self, batch): return super().judge(batch)[1:]
"""


@pytest.fixture
def others(tmp_path, monkeypatch) -> Plugins:
    """The installed plugins, with two filters of somebody else's."""
    (tmp_path / "their_filters.py").write_text(OTHERS)
    monkeypatch.syspath_prepend(str(tmp_path))
    theirs = [
        Component(kind="filter", name=name.lower(), target=f"their_filters:{name}", dist="theirs")
        for name in ("Shout", "Lazy")
    ]
    ours = installed()
    return Plugins(ours.manager, ours.records, Registry([*ours.registry, *theirs]))


def test_a_changed_text_is_written_and_booked(rows, tmp_path, others):
    config = {
        "sources": {"web": {"use": "jsonl", "path": str(write(tmp_path / "a", rows, 2))}},
        "steps": {"shout": "shout"},
        "heldout": 0,
        "execution": {"workers": 2},
    }
    corpus = make("curation", config, tmp_path / "c", plugins=others)
    assert texts(corpus) == {row["id"]: row["text"].upper() + "!" for row in rows}
    assert ledger(corpus)["web"]["steps"]["shout"]["changed_bytes"] == len(rows)


def test_a_filter_that_forgets_a_document_is_an_error(rows, tmp_path, others):
    source = {"use": "jsonl", "path": str(write(tmp_path / "a", rows, 1))}
    config = {"sources": {"web": source}, "steps": {"lazy": "lazy"}}
    with pytest.raises(RecipeError, match="399 verdicts on 400 documents"):
        make("curation", config, tmp_path / "c", plugins=others)


# ── what is read ─────────────────────────────────────────────────────────────────────────────────────────────────


def bad_rows(tmp_path, good: int) -> Path:
    lines = [json.dumps({"id": n, "text": f"document number {n}"}).encode() for n in range(good)]
    lines[2:2] = [b'{"text": "torn', b'{"text": "\xff"}', b'{"body": "x"}', b"", b'["text"]', b'{"text": "\\ud800"}']
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join(lines))
    return path


def test_bad_rows_are_counted_with_file_and_line(tmp_path):
    path = bad_rows(tmp_path, 600)
    corpus = make("curation", {"sources": {"web": {"use": "jsonl", "path": str(path)}}}, tmp_path / "c")
    read = ledger(corpus)["web"]["read"]
    assert (read["rows"], read["documents"]) == (605, 600)
    assert [(entry["where"].removeprefix(str(path)), entry["reason"]) for entry in read["bad_samples"]] == [
        (":3", "malformed JSON (Unterminated string starting at); a JSON Lines file has one object a line"),
        (":4", "not UTF-8"),
        (":5", "neither `text` nor `messages`; name a `format` and its `fields`; it has 'body'"),
        (":7", "not a JSON object; a JSON Lines file has one object a line"),
        (":8", "a lone surrogate in its text"),
    ]
    assert sum(read["bad"].values()) == 5
    (told,) = corpus.manifest["warnings"]
    assert re.fullmatch(r"web: 5 of 605 rows cannot be read; the first: .*rows.jsonl:3: malformed JSON .*", told)
    assert not any("'body'" in reason for reason in read["bad"])  # rows with other columns are no other reason


def test_too_many_bad_rows_stop_the_stage(tmp_path):
    config = {"sources": {"web": {"use": "jsonl", "path": str(bad_rows(tmp_path, 400))}}}
    with pytest.raises(RecipeError, match=r"5 of 405 rows cannot be read, more than max_bad \(1.00%\).*rows.jsonl:3"):
        make("curation", config, tmp_path / "c")
    assert make("curation", {**config, "max_bad": "2%"}, tmp_path / "d").domains()["web"].documents > 300


def test_what_was_removed_is_shown_by_reason_and_adds_up(tmp_path):
    source = {"use": "jsonl", "path": str(bad_rows(tmp_path, 600))}
    steps = {"short": {"use": "length", "min_characters": 18}}
    config = {"sources": {"web": source}, "steps": steps}
    corpus = make("curation", config, tmp_path / "c")
    shown = {found["title"]: found["rows"] for found in corpus.manifest["facts"]["tables"]}
    read, kept = shown["funnel"][0][2:4], shown["funnel"][1][2:4]
    steps = [row for row in shown["removed"] if row[1] == "short"]
    assert steps == [["web", "short", "few_characters", 10, 170, "1.7%"]]
    assert [read[n] - kept[n] for n in (0, 1)] == steps[0][3:5]
    assert sum(row[3] for row in shown["removed"] if row[1] == "read") == 5


def test_many_reasons_are_shown_together():
    account = Account()
    for number in range(30):
        account.step("s").remove(f"r{number:02d}", Counts(30 - number, 10))
    (table,) = tables.removed({"d": account})
    rows = table["rows"]
    assert [row[2] for row in rows][-2:] == ["r11", "18 other reasons"]
    assert sum(row[3] for row in rows) == sum(range(31))
    assert tables.removed({"d": Account()}) == []


def test_as_many_bad_rows_as_max_bad_says_are_none_too_many(tmp_path):
    lines = [b'{"text": "a %d"}' % n for n in range(71)] + [b"{"] * 29
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    config = {"sources": {"web": {"use": "jsonl", "path": str(tmp_path / "a.jsonl")}}, "heldout": 0, "max_bad": 0.29}
    assert make("curation", config, tmp_path / "c").domains()["web"].documents == 71  # 0.29 * 100 is below 29 in floats


@pytest.mark.parametrize("workers", [1, 3])
def test_a_limit_takes_the_first_documents_that_fit(rows, tmp_path, workers):
    source = {"use": "jsonl", "path": str(write(tmp_path / "a", rows, 7)), "limit": "20KB"}
    config = {"sources": {"web": source}, "heldout": 0, "execution": {"workers": workers}}
    corpus = make("curation", config, tmp_path / "c")
    expected, size = [], 0
    for row in (row for n in range(7) for row in rows[n::7]):
        size += len(row["text"])
        if size > 20_000:
            break
        expected.append(row["id"])
    assert texts(corpus).keys() == set(expected)
    read = ledger(corpus)["web"]["read"]
    assert read["rows"] == len(expected)


def test_a_group_stands_on_one_side_in_every_stage_and_seed(rows, tmp_path):
    grouped = [{**row, "group": f"g{int(row['id'][1:]) % 20}"} for row in rows]
    sides = []
    for seed in (1, 2):
        source = {"use": "jsonl", "path": str(write(tmp_path / f"{seed}", grouped[seed::3], 2))}
        config = {"sources": {f"web{seed}": source}, "heldout": 0.3}
        corpus = make("curation", config, tmp_path / f"c{seed}", seed=seed)
        train, heldout = ({r.meta["group"] for r in corpus.read(f"web{seed}", s)} for s in ("train", "heldout"))
        assert train
        assert heldout
        assert not train & heldout
        sides.append((train, heldout))
    assert not sides[0][0] & sides[1][1]
    assert not sides[0][1] & sides[1][0]
    assert sides[0][0] & sides[1][0]


def test_two_rows_with_one_id_are_an_error(rows, tmp_path):
    source = {"use": "jsonl", "path": str(write(tmp_path / "a", [*rows, {"id": "d007", "text": "another"}], 3))}
    with pytest.raises(
        RecipeError, match=r"id 'd007' \(document 3 of part-001.jsonl@0 and document 134 of part-001.jsonl@0\)"
    ):
        make("curation", {"sources": {"web": source}}, tmp_path / "c")
    named = {**source, "format": {"use": "auto", "fields": {"id": None}}}
    assert sum(make("curation", {"sources": {"web": named}}, tmp_path / "d").domains(s)["web"].documents
               for s in ("train", "heldout")) == 401  # fmt: skip


def test_nothing_read_and_nothing_kept_are_errors(tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(RecipeError, match="web: the source gave no document"):
        make("curation", {"sources": {"web": {"use": "jsonl", "path": str(tmp_path / "empty.jsonl")}}}, tmp_path / "a")
    (tmp_path / "short.jsonl").write_text('{"text": "too short"}\n')
    config = {"sources": {"web": {"use": "jsonl", "path": str(tmp_path / "short.jsonl")}}, "steps": STEPS}
    config["steps"] = {**STEPS, "same": "exact-dedup"}
    with pytest.raises(RecipeError, match=r"keep no document; most went in 'quality': too_short \(1 documents\)"):
        make("curation", config, tmp_path / "b")
    assert not list((tmp_path / "b" / "work").glob("*.state"))  # nothing more was paid for it


def test_what_a_filter_finds_wrong_is_told_with_its_step(rows, tmp_path):
    source = {"use": "jsonl", "path": str(write(tmp_path / "a", rows, 1))}
    for number, use in enumerate(({"where": "qualty > 1"}, {"top": 0.5, "by": "qualty"})):
        config = {"sources": {"web": source}, "steps": {"length": "exact-dedup", "good": {"use": "score", **use}}}
        with pytest.raises(RecipeError, match=r"^step good: d\d+: no score is called 'qualty'"):
            make("curation", config, tmp_path / f"c{number}")


def test_a_packed_file_that_ends_early_is_an_error(rows, tmp_path):
    packed = gzip.compress("\n".join(map(json.dumps, rows)).encode())
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(packed[: len(packed) // 2])
    with pytest.raises(RecipeError, match=r"rows.jsonl.gz: the compressed data ends early"):
        make("curation", {"sources": {"web": {"use": "jsonl", "path": str(path)}}}, tmp_path / "c")


def test_sources_that_changed_since_the_stop_start_over(rows, tmp_path):
    source = {"use": "jsonl", "path": str(write(tmp_path / "a", rows, 3))}
    stage = slot("stage", {"use": "curation", "sources": {"web": source}, "execution": {"workers": 1}})
    context = Stopping(tmp_path / "c")
    context.stop = 2
    with pytest.raises(Interrupted):
        stage.build().run(context)
    write(tmp_path / "a" / "more", [{"id": "new", "text": "one more document"}], 1)
    context.stop = 100
    stage.build().run(context)
    assert context.warnings[0] == "the sources changed since this run was stopped: it starts over"
    assert sum(c["documents"] for c in context.facts["domains"]["web"].values()) == 401


def test_what_a_run_before_the_change_wrote_is_no_part_of_the_corpus(rows, tmp_path, monkeypatch):
    monkeypatch.setattr(curation_stage, "SHARD", 4_000)
    path = write(tmp_path / "a", rows, 3)
    stage = slot("stage", {"use": "curation", "sources": {"web": {"use": "jsonl", "path": str(path)}}})
    context = Stopping(tmp_path / "c")
    context.stop = 1000
    stage.build().run(context)  # and is killed before it is committed
    next(path.iterdir()).unlink()
    stage.build().run(context)
    fresh = Stopping(tmp_path / "fresh")
    fresh.stop = 1000
    stage.build().run(fresh)
    assert folder_files(context.payload) == folder_files(fresh.payload)


def test_estimate_knows_what_files_and_limits_tell(rows, tmp_path):
    from recipe_runner import Known

    path = write(tmp_path / "a", rows, 2)
    size = sum(file.stat().st_size for file in path.iterdir())
    config = {"sources": {"web": {"use": "jsonl", "path": str(path)}, "code": {"use": "python-source", "limit": "1MB"},
                          "docs": "python-docstrings"}}  # fmt: skip
    estimate = slot("stage", {"use": "curation", **config}).config.estimate(Known())
    assert estimate.facts["domains"] == {"web": {"train": {"bytes": size}}, "code": {"train": {"bytes": 1_000_000}}}
    assert estimate.notes == ["bytes of docs unknown before it is read"]


class Telling(LocalContext):
    """Keeps what is shown."""

    def progress(self, done, total=None, unit="", note=""):
        self.notes = [*getattr(self, "notes", []), (done, total, unit, note)]


@pytest.mark.parametrize("workers", [1, 2])
def test_progress_says_how_fast_and_how_much_is_kept(rows, tmp_path, workers):
    source = {"use": "jsonl", "path": str(write(tmp_path / "a", rows, 5))}
    config = {"sources": {"web": source}, "steps": STEPS, "execution": {"workers": workers}}
    context = Telling(tmp_path / "c")
    slot("stage", {"use": "curation", **config}).build().run(context)
    speed = r"[\d,]+ documents/s, \d+\.\d MB/s, \d+\.\d% kept"
    left = r"(, \d:\d\d:\d\d left)?"
    steps = rf"( \((\w+ {speed}(; )?)+\))?"
    segments = [note for note in context.notes if re.fullmatch(rf"(\w|, )+: {speed}{left}{steps}", note[3])]
    assert all((" left" in note[3]) == (note[0] < 5) for note in segments)
    assert [note[:3] for note in segments if note[0] == 5] == [(5, 5, "pieces")] * 3
    first = ledger_of(context.folder)["steps"]["quality"]
    kept = first["kept"]["bytes"] / first["in"]["bytes"]
    assert segments[4][3].startswith("read, quality: ")
    assert segments[4][3].endswith(f"{kept:.1%} kept")


def test_progress_says_it_of_each_step(rows, tmp_path):
    source = {"use": "jsonl", "path": str(write(tmp_path / "a", rows, 5))}
    steps = {"long": {"use": "length", "min_words": 60}, "quality": "gopher-quality", "equal": "exact-dedup"}
    context = Telling(tmp_path / "c")
    config = {"sources": {"web": source}, "steps": steps, "execution": {"workers": 1}}
    slot("stage", {"use": "curation", **config}).build().run(context)
    told = [note for *_, note in context.notes]
    last = next(note for note in reversed(told) if note.startswith("read, long, quality"))
    for name, passage in list(ledger_of(context.folder)["steps"].items())[:2]:
        kept = passage["kept"]["bytes"] / passage["in"]["bytes"]
        assert re.search(rf"[(; ]{name} [\d,]+ documents/s, \d+\.\d MB/s, {kept:.1%} kept", last)
    assert "equal: decides over all documents" in told


def ledger_of(folder: Path) -> dict:
    return json.loads((folder / "ledger.json").read_text())["domains"]["web"]
