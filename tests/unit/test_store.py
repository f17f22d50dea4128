"""The store: a folder is there exactly when its stage is complete, whatever was cut short, and nothing is lost."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from recipe_runner.artifacts import Corpus
from recipe_runner.components import Ref
from recipe_runner.contract import Event
from recipe_runner.errors import RecipeError, StageFailed, StoreError, UsageError
from recipe_runner.events import StageRecord
from recipe_runner.store import Store, foreign_digest, read_json, write_json

STAGES = "  data: {use: toy-corpus}\n  train: {use: toy-train, corpus: data, execution: {checkpoint_every: 2}}\n"


@pytest.fixture(scope="module")
def built(benches):
    """A finished run, to be copied."""
    bench = benches().write(STAGES)
    bench.run()
    return bench


@pytest.fixture
def copy(built, bench):
    """A bench with the store of `built`."""
    shutil.copytree(built.store.root, bench.store.root)
    return bench.write(STAGES)


def one(bench, use: str) -> Path:
    (found,) = (path for path in bench.store.artifacts() if path.parent.name == use)
    return found


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# ── a run ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_artifact_lies_where_its_key_says(built):
    run = json.loads((built.last.folder / "run.json").read_text())
    assert run["status"] == "finished"
    for name, use in {"data": "toy-corpus", "train": "toy-train"}.items():
        key = run["stages"][name]["key"]
        assert built.artifact(name) == built.store.root / "artifacts" / use / key[:12]
        assert built.manifest(name)["key"] == key
        assert not (built.artifact(name) / "work").exists()
    assert not list(built.store.root.glob("artifacts/*/*.partial"))


def test_a_manifest_says_what_made_it(built):
    manifest = built.manifest("train")
    assert manifest["use"] == "recipe-toy:toy-train@1"
    assert manifest["identity"]["inputs"] == {"corpus": built.manifest("data")["digest"]}
    assert [entry["path"] for entry in manifest["files"]] == ["model.json"]
    assert {"python", "recipe-runner", "recipe-toy"} <= set(manifest["versions"])
    assert list(manifest["versions"]).index("recipe-runner") < list(manifest["versions"]).index("recipe-toy")
    assert manifest["facts"]["value"] > 0
    assert manifest["execution"]["execution"]["checkpoint_every"] == 2


def test_a_second_run_starts_no_worker(copy, monkeypatch):
    monkeypatch.setattr("recipe_runner.run.Run._build", lambda *_: pytest.fail("something was built"))
    before = tree(copy.store.root / "artifacts")
    assert copy.statuses() == {"data": "cached", "train": "cached"}
    assert tree(copy.store.root / "artifacts") == before
    assert [event.kind for event in copy.events] == ["run-started", "stage-cached", "stage-cached", "run-finished"]


def test_a_corpus_can_be_read(built):
    corpus = built.last.made["data"]
    assert isinstance(corpus, Corpus)
    assert [record.text for record in corpus.read("all", start=1)] == ["two"]
    assert corpus.domains()["all"].documents == 2
    assert corpus.domains("heldout")["all"].documents == 0


def test_an_empty_payload_is_no_artifact(bench):
    with pytest.raises(StageFailed, match="without a word in its payload"):
        bench.write("  data: {use: toy-corpus, empty: true}\n").run()
    assert list(bench.store.artifacts()) == []


# ── what was damaged ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("damage", ["truncated", "gone", "torn manifest", "no manifest"])
def test_a_damaged_artifact_is_built_again_and_set_aside(copy, damage):
    folder = one(copy, "toy-train")
    intact, path = tree(folder), folder / "payload" / "model.json"
    if damage == "truncated":
        os.truncate(path, 5)
    elif damage == "gone":
        path.unlink()
    elif damage == "torn manifest":
        os.truncate(folder / "manifest.json", 100)
    else:
        (folder / "manifest.json").unlink()
    run = copy.run()
    assert (run.results["train"].status, run.results["train"].reasons) == ("built", ["missing-files"])
    assert run.results["data"].status == "cached"
    assert tree(folder)["payload/model.json"] == intact["payload/model.json"]
    assert (folder.with_name(folder.name + ".old-1")).is_dir(), "nothing is deleted"


def test_a_manifest_of_another_format_is_an_error_and_stays(copy):
    path = one(copy, "toy-train") / "manifest.json"
    path.write_text(path.read_text().replace('"schema": 1', '"schema": 2'))
    with pytest.raises(StoreError, match="has format 2") as caught:
        copy.run()
    assert "upgrade" in caught.value.next
    assert path.exists()


def test_another_key_with_the_same_digits_is_not_taken_for_this_one(copy):
    """Neither its artifact nor its checkpoints: only the first 12 of 64 digits are in a name."""
    folder = one(copy, "toy-train")
    manifest = json.loads((folder / "manifest.json").read_text())
    other = {**manifest, "key": manifest["key"][:12] + "0" * 52}
    write_json(folder / "manifest.json", other)
    partial = folder.with_name(folder.name + ".partial")
    (partial / "work").mkdir(parents=True)
    (partial / "work" / "checkpoint.json").write_text("[8, 1.5]")
    write_json(partial / "execution.json", {"key": other["key"], "execution": {"processes": 1}})
    assert copy.statuses() == {"data": "cached", "train": "built"}
    assert copy.steps(copy.artifact("train")) == list(range(1, 11))
    assert json.loads((copy.artifact("train") / "payload" / "model.json").read_text()) == {
        "value": manifest["facts"]["value"]
    }


# ── what was cut short ───────────────────────────────────────────────────────────────────────────────────────────


def test_a_kill_between_manifest_and_rename_is_finished(copy):
    folder = one(copy, "toy-train")
    intact = tree(folder)
    partial = folder.rename(folder.with_name(folder.name + ".partial"))
    (partial / "work").mkdir()
    (partial / "work" / "checkpoint.json").write_text("[8, 1.5]")
    assert copy.statuses() == {"data": "cached", "train": "built"}
    assert tree(folder) == intact, "nothing ran: not even the log has a new line"
    assert "stage-started" not in [event.kind for event in copy.events]


@pytest.mark.parametrize("damage", ["manifest", "payload"])
def test_a_commit_that_cannot_be_finished_is_begun_again(copy, damage):
    folder = one(copy, "toy-train")
    model = (folder / "payload" / "model.json").read_bytes()
    partial = folder.rename(folder.with_name(folder.name + ".partial"))
    os.truncate(partial / ("manifest.json" if damage == "manifest" else "payload/model.json"), 9)
    assert copy.statuses() == {"data": "cached", "train": "built"}
    assert (folder / "payload" / "model.json").read_bytes() == model


def test_torn_rows_of_metrics_go_and_whole_ones_stay(tmp_path):
    record = StageRecord(tmp_path)
    for step in (1, 2, 3):
        record(Event("metrics", data={"step": step, "loss": 0.1}))
    record.close()
    path = tmp_path / "metrics.jsonl"
    os.truncate(path, path.stat().st_size - 4)
    again = StageRecord(tmp_path)
    again(Event("resumed", data={"step": 1}))
    again(Event("metrics", data={"step": 2, "loss": float("nan")}))
    again.close()
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"step": 1, "loss": 0.1}, {"step": 2, "loss": "nan"},
    ]  # fmt: skip


def test_facts_and_warnings_outlive_a_stop(tmp_path):
    for number in (1, 2):
        record = StageRecord(tmp_path)
        record(Event("note", data={f"fact-{number}": number}))
        record(Event("warning", data={"text": "the same"}))
        record.close()
    assert (record.facts, record.warnings) == ({"fact-1": 1, "fact-2": 2}, ["the same"])


def test_json_is_whole_or_absent(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, {"text": "é\udc80"})
    assert read_json(path) == {"text": "é\udc80"}
    with pytest.raises(ValueError, match="nan"):
        write_json(path, {"a": float("nan")})
    assert read_json(path) == {"text": "é\udc80"}
    os.truncate(path, 5)
    assert read_json(path) is None
    assert read_json(tmp_path / "absent") is None


# ── other processes, other ranks ─────────────────────────────────────────────────────────────────────────────────


def test_checkpoints_of_another_number_of_processes_are_refused_with_two_remedies(bench):
    stages = "  train: {use: toy-train, fail_at: 7, execution: {checkpoint_every: 2}}\n"
    with pytest.raises(StageFailed):
        bench.write(stages).run()
    with pytest.raises(UsageError, match="begun by 1 processes") as caught:
        bench.run("stages.train.execution.processes=2", "stages.train.fail_at=-1")
    assert "execution.processes=1" in caught.value.next
    assert "--restart" in caught.value.next
    assert (bench.partial() / "work" / "checkpoint.json").exists()
    bench.run("stages.train.fail_at=-1", "stages.train.execution.processes=2", restart=("train",))
    assert bench.last.results["train"].reasons == ["no-artifact"]
    assert bench.steps(bench.artifact("train")) == list(range(1, 11))


# ── force, until, only ───────────────────────────────────────────────────────────────────────────────────────────


def test_force_builds_anew_and_sets_the_old_aside(copy):
    folder = one(copy, "toy-corpus")
    run = copy.run(force=("data",))
    assert (run.results["data"].reasons, run.results["train"].status) == (["forced"], "cached")
    assert sorted(path.name for path in folder.parent.iterdir()) == [folder.name, folder.name + ".old-1"]
    copy.run(force=("data",))
    assert (folder.with_name(folder.name + ".old-2")).is_dir()
    assert len(list(copy.store.artifacts())) == 2


def test_until_takes_the_stages_that_are_needed_and_only_the_one(bench):
    bench.write(STAGES + "  extra: {use: toy-corpus, words: [x]}\n")
    with pytest.raises(UsageError, match="'data' is not built") as caught:
        bench.run(only="train")
    assert caught.value.next == "--until train builds it too"
    assert list(bench.run(until="data").results) == ["data"]
    assert {n: r.status for n, r in bench.run(only="train").results.items()} == {"data": "cached", "train": "built"}


# ── disks ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def disk(tmp_path):
    """`disk(size, "rw")`: a small file system of its own, where this user may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(*options: str) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(folder)]
        if os.name == "nt" or shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("this user cannot mount a file system")
        return folder

    yield mount
    subprocess.run(["umount", "-l", str(folder)], capture_output=True)


def test_a_full_disk_is_an_error_and_what_was_saved_goes_on(bench, disk):
    """The stage's account outgrows the disk; with room again, the run goes on from its checkpoint."""
    bench.store = Store(disk("size=300k") / "store")
    bench.write("  train: {use: toy-train, steps: 30, execution: {checkpoint_every: 2}}\n")
    with pytest.raises(RecipeError, match="No space left") as caught:
        bench.run("stages.train.noise=3000")
    assert "nothing is lost" in caught.value.next
    saved, _ = json.loads((bench.partial() / "work" / "checkpoint.json").read_text())
    assert 0 < saved < 30
    (bench.partial() / "warnings.json").unlink()
    (bench.partial() / "warnings.json.tmp").unlink(missing_ok=True)
    assert bench.run().results["train"].reasons[0].startswith("incomplete (step")
    assert bench.steps(bench.artifact("train")) == list(range(1, 31))


def test_a_disk_that_is_full_before_the_run_is_an_error(bench, disk):
    bench.store = Store(disk("size=8k") / "store")
    with pytest.raises(StoreError, match="No space left"):
        bench.write(STAGES).run()


def test_a_read_only_store_is_an_error_for_run_and_none_for_plan(bench, disk, plugins):
    from recipe_runner.plan import make_plan

    (bench.folder / "foreign").mkdir()
    (bench.folder / "foreign" / "x").write_text("x")
    bench.store = Store(disk("ro") / "store")
    bench.write("  train: {use: toy-train, model: ./foreign}\n")
    with pytest.raises(StoreError, match="Read-only file system") as caught:
        bench.run()
    assert "--store" in caught.value.next
    (plan,) = make_plan(bench.load(), bench.store)
    assert plan.status == "run"


# ── what comes from outside ──────────────────────────────────────────────────────────────────────────────────────


def test_a_folder_s_digest_is_of_its_files_and_is_remembered(tmp_path, monkeypatch):
    folder, cache = tmp_path / "model", tmp_path / "cache"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "x").write_text("one")
    ref = Ref(str(folder))
    first = foreign_digest(ref, cache)
    for torn in cache.iterdir():
        os.truncate(torn, 0)
    assert foreign_digest(ref, cache) == first, "a torn note of the cache is not believed"
    monkeypatch.setattr("recipe_runner.identity.file_digest", lambda _: pytest.fail("hashed again"))
    assert foreign_digest(ref, cache) == first
    monkeypatch.undo()
    (folder / "deep" / "x").write_text("two2")
    second = foreign_digest(ref, cache)
    (folder / "deep" / "x").rename(folder / "x")
    assert len({first, second, foreign_digest(ref, cache)}) == 3
    assert foreign_digest(Ref("org/name@v1"), cache) == "hub:org/name@v1"
    with pytest.raises(RecipeError, match="there is no folder"):
        foreign_digest(Ref("/no/such/folder"), cache)
