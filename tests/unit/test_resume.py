"""Kill, stop and resume: `recipe run` again gives what an uninterrupted run gives, and no process lives on."""

from __future__ import annotations

import json
import os
import shlex
import signal
import threading
from pathlib import Path

import pytest

from recipe_runner.errors import StageFailed
from recipe_runner.run import Run

STAGES = "  train: {use: toy-train, steps: 12, execution: {checkpoint_every: 4}}\n"


def result(folder: Path) -> dict[str, bytes]:
    """What a run gives: its rows and its payload."""
    files = [folder / "metrics.jsonl", *sorted((folder / "payload").rglob("*"))]
    return {path.name: path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def uninterrupted(benches) -> dict[str, bytes]:
    bench = benches().write(STAGES)
    bench.run()
    return result(bench.artifact("train"))


# ── kill ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("who", "step"),
    [("parent", 2), ("parent", 9), ("worker", 4), ("worker", 9), ("worker parent", 9), ("parent worker", 4)],
)
def test_killed_anywhere_it_goes_on_to_the_same_end(bench, uninterrupted, monkeypatch, who, step):
    temporary = bench.folder / "tmp"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    held = bench.write(STAGES).held(step=step)
    held.kill(*who.split())
    assert list(temporary.iterdir()) == [] or " " in who, "the pipes go with the last who knows of them"
    partial = bench.partial()
    assert (partial / "work" / "checkpoint.json").exists() == (step >= 4)
    run = bench.run()
    assert _incomplete(run)
    assert result(bench.artifact("train")) == uninterrupted
    assert not partial.exists()


def _incomplete(run: Run) -> str:
    (reason,) = run.results["train"].reasons
    assert reason.startswith("incomplete")
    return reason


def test_a_torn_checkpoint_is_a_step_back_and_nothing_is_lost(bench, uninterrupted):
    with pytest.raises(StageFailed):
        bench.write(STAGES).run("stages.train.fail_at=9")
    os.truncate(bench.partial() / "work" / "checkpoint.json", 3)
    bench.run()
    assert result(bench.artifact("train")) == uninterrupted


def test_a_failure_goes_on_from_its_checkpoint_too(bench, uninterrupted):
    with pytest.raises(StageFailed) as caught:
        bench.write(STAGES).run("stages.train.fail_at=9")
    assert "ZeroDivisionError: a defect on rank 0" in caught.value.what
    assert "to continue: recipe run" in caught.value.next
    assert bench.steps(bench.partial()) == list(range(1, 10))
    assert _incomplete(bench.run()) == "incomplete (step 9)"
    assert result(bench.artifact("train")) == uninterrupted


@pytest.mark.parametrize(("who", "spawn"), [("worker", "fork"), ("worker parent", "fork"), ("worker parent", "spawn")])
def test_no_process_of_a_stage_outlives_it(bench, who, spawn):
    """A child that a worker left behind would hold the key's lock for ever."""
    held = bench.write(STAGES).held(f"stages.train.spawn={spawn}")
    child = int((bench.partial() / "child").read_text())
    assert bench.alive(child)
    held.kill(*who.split())
    bench.wait_for(lambda: not bench.alive(child))
    bench.run(wait=False)


def test_no_process_of_a_stage_outlives_its_end(bench):
    bench.write(STAGES).run("stages.train.spawn=fork")
    child = int((bench.artifact("train") / "child").read_text())
    bench.wait_for(lambda: not bench.alive(child))


# ── stop ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_ctrl_c_saves_and_says_how_to_go_on(bench, uninterrupted, number):
    held = bench.write(STAGES).held("stages.train.label=''", step=5)
    os.kill(held.parent.pid, number)
    _, err = held.parent.communicate(timeout=20)
    assert held.parent.returncode == 130
    assert "the stage saves its state" in err
    words = ["recipe", "run", str(bench.recipe), "stages.train.label=''", "stages.train.hold_at=5", "--store"]
    assert f"to continue: {shlex.join([*words, str(bench.store.root)])}" in err
    assert json.loads((bench.partial() / "work" / "checkpoint.json").read_text())[0] == 6
    assert _recorded(bench) == ("interrupted", "interrupted")
    assert not bench.alive(held.worker)
    held.file.unlink(missing_ok=True)
    bench.run()
    assert result(bench.artifact("train")) == uninterrupted


def _recorded(bench) -> tuple[str, str]:
    """The status of the last run and of its last stage, as written down."""
    run = json.loads((bench.store.runs()[-1] / "run.json").read_text())
    return run["status"], list(run["stages"].values())[-1]["status"]


def test_the_terminal_s_ctrl_c_reaches_the_parent_alone(bench):
    """It goes to the whole process group; the worker must be told by the parent, once, or it cannot save."""
    held = bench.write(STAGES).held(step=5, start_new_session=True)
    os.killpg(held.parent.pid, signal.SIGINT)
    held.parent.communicate(timeout=20)
    assert held.parent.returncode == 130
    assert json.loads((bench.partial() / "work" / "checkpoint.json").read_text())[0] == 6


def test_a_second_ctrl_c_leaves_at_once(bench, uninterrupted):
    held = bench.write(STAGES).held("stages.train.deaf=true")
    os.kill(held.parent.pid, signal.SIGINT)
    while "again to leave at once" not in held.parent.stderr.readline():
        assert bench.alive(held.worker)
    os.kill(held.parent.pid, signal.SIGINT)
    held.parent.communicate(timeout=20)
    assert held.parent.returncode == 130
    assert _recorded(bench) == ("interrupted", "interrupted")
    bench.wait_for(lambda: not bench.alive(held.worker))
    bench.run()
    assert result(bench.artifact("train")) == uninterrupted


def test_a_stage_that_ends_in_spite_of_it_is_kept_and_the_next_is_not_begun(bench):
    held = bench.write(STAGES + "  next: {use: toy-train, model: train}\n").held("stages.train.deaf=true")
    os.kill(held.parent.pid, signal.SIGINT)
    while "again to leave at once" not in held.parent.stderr.readline():
        assert bench.alive(held.worker)
    held.file.unlink()
    _, err = held.parent.communicate(timeout=20)
    assert held.parent.returncode == 130
    assert "interrupted between stages" in err
    assert _recorded(bench) == ("interrupted", "built")
    assert bench.statuses() == {"train": "cached", "next": "built"}


def test_the_command_to_go_on_has_every_option_that_matters(bench):
    with pytest.raises(StageFailed) as caught:
        bench.write(STAGES).run("stages.train.fail_at=1", until="train", force=("train",), allow_remote_code=True)
    words = shlex.split(caught.value.next.partition("to continue: ")[2])
    assert words[:4] == ["recipe", "run", str(bench.recipe), "stages.train.fail_at=1"]
    rest = ["--store", str(bench.store.root), "--until", "train", "--force", "train", "--trust-remote-code"]
    assert words[4:] == rest


def test_the_command_to_go_on_keeps_what_a_restart_has_made_and_restarts_what_is_still_to_come(bench, uninterrupted):
    bench.write(STAGES + "  next: {use: toy-train, model: train}\n")
    with pytest.raises(StageFailed):
        bench.run("stages.train.fail_at=4")
    with pytest.raises(StageFailed) as caught:
        bench.run("stages.train.fail_at=9", restart=("train", "next"), wait=False)
    words = shlex.split(caught.value.next.partition("to continue: ")[2])
    assert words[words.index("--store") + 2 :] == ["--restart", "next", "--no-wait"]
    assert bench.steps(bench.partial()) == list(range(1, 10))
    assert _incomplete(bench.run(restart=("next",))) == "incomplete (step 9)"
    assert result(bench.artifact("train")) == uninterrupted


# ── what else may end a stage ────────────────────────────────────────────────────────────────────────────────────


def test_a_line_torn_by_a_kill_does_not_hold_the_run(bench, uninterrupted):
    """The parent must not wait for the rest of it; and the worker's death is told as what it was."""
    failed: list[BaseException] = []

    def run():
        try:
            bench.run("stages.train.tear_at=6")
        except StageFailed as error:
            failed.append(error)

    bench.write(STAGES)
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive(), "it hangs"
    assert "was killed by signal 9" in str(failed[0])
    assert bench.steps(bench.partial()) == [1, 2, 3, 4, 5, 6]
    bench.run()
    assert result(bench.artifact("train")) == uninterrupted


def test_events_longer_than_a_pipe_s_atom_arrive_whole(bench):
    """Also with text that is no UTF-8, as rows of a broken file have."""
    bench.write(STAGES).run("stages.train.noise=20000")
    warnings = bench.manifest("train")["warnings"]
    assert [len(text) for text in warnings] == [40_000 + len(f"step {n} ") for n in range(1, 13)]
    assert warnings[0].endswith("é\udc80")
    assert bench.steps(bench.artifact("train")) == list(range(1, 13))


def test_leaving_without_a_word_is_a_failure(bench):
    with pytest.raises(StageFailed, match="SystemExit: 0"):
        bench.write(STAGES).run("stages.train.leave_at=2")


def test_a_stage_s_own_error_is_shown_without_a_traceback(bench):
    with pytest.raises(StageFailed) as caught:
        bench.write(STAGES).run("stages.train.mistake=the data is odd")
    assert "Traceback" not in caught.value.render()
    assert "stage train: the data is odd\n  -> write something else" in caught.value.render()
    assert "Traceback" in (bench.partial() / "logs" / "rank-0.txt").read_text(), "the log has it"


@pytest.mark.parametrize("rank", [0, 1])
def test_the_first_rank_that_fails_is_shown_once_and_ends_the_others(bench, rank):
    with pytest.raises(StageFailed) as caught:
        bench.write(STAGES).run(
            "stages.train.execution.processes=2", "stages.train.fail_at=3", f"stages.train.fail_rank={rank}",
            "stages.train.pause=0.05",
        )  # fmt: skip
    assert caught.value.what.count("Traceback") == 1
    assert f"failed on rank {rank}" in caught.value.what
    assert f"a defect on rank {rank}" in caught.value.what
    assert sorted(path.name for path in (bench.partial() / "logs").iterdir()) == ["rank-0.txt", "rank-1.txt"]


def test_only_rank_0_tells(bench):
    bench.write(STAGES).run("stages.train.execution.processes=2")
    assert bench.steps(bench.artifact("train")) == list(range(1, 13))
    assert len(bench.told("note")) == 1


def test_a_run_may_be_in_a_thread(bench, uninterrupted):
    """Without signals, which only the main thread can have."""
    thread = threading.Thread(target=bench.write(STAGES).run)
    thread.start()
    thread.join(30)
    assert result(bench.artifact("train")) == uninterrupted
