"""Two runs at once: one works, the other waits and says for whom, and whoever dies leaves the way free."""

from __future__ import annotations

import json
import os
import signal

import pytest

from recipe_runner.errors import ExitCode, Interrupted, StoreBusy
from recipe_runner.run import Options, Run
from recipe_runner.store import Store, describe, read_run

STAGES = "  train: {use: toy-train, steps: 12, execution: {checkpoint_every: 4}}\n"


@pytest.fixture
def pair(bench):
    """A run that holds still, and a second one that has said that it waits."""
    held = bench.write(STAGES).held()
    second = bench.start()
    line = ""
    while "waiting" not in line:
        line = second.stderr.readline()
        assert line, second.communicate()
    yield held, second, line
    for process in (held.parent, second):
        process.kill()
        process.communicate()


def test_the_second_waits_says_for_whom_and_ends_with_the_same(bench, pair):
    held, second, line = pair
    assert f"process {held.parent.pid} running 't', stage 'train', since 20" in line
    held.file.unlink()
    for process in (held.parent, second):
        process.communicate(timeout=20)
        assert process.returncode == 0
    first, other = (json.loads((run / "run.json").read_text())["stages"]["train"] for run in bench.store.runs())
    assert (first["status"], other["status"]) == ("built", "cached")
    assert first["path"] == other["path"]
    starts = (bench.store.root / "artifacts").glob("*/*/logs/rank-*.txt")
    assert len(list(starts)) == 1
    assert not list((bench.store.root / "locks").glob("*.json")), "the word of who held it goes with the lock"


def test_after_a_sigkill_the_second_takes_over_from_the_checkpoint(bench, pair):
    held, second, _ = pair
    os.kill(held.parent.pid, signal.SIGKILL)
    held.file.unlink()
    _, err = second.communicate(timeout=20)
    assert second.returncode == 0
    assert "incomplete (step" in err
    (folder,) = bench.store.artifacts()
    assert bench.steps(folder) == list(range(1, 13))


def test_the_lock_lasts_as_long_as_a_worker_does(bench):
    """A worker in a long call cannot notice its parent's death: nobody may touch what it writes."""
    held = bench.write(STAGES).held("stages.train.grip=2")
    os.kill(held.parent.pid, signal.SIGKILL)
    held.parent.communicate(timeout=20)
    with pytest.raises(StoreBusy):
        bench.run(wait=False)
    assert bench.alive(held.worker)
    bench.wait_for(lambda: not bench.alive(held.worker))
    held.file.unlink()
    assert bench.statuses(wait=False) == {"train": "built"}


def test_no_wait_is_busy_and_exits_4(bench):
    held = bench.write(STAGES).held()
    with pytest.raises(StoreBusy, match=f"process {held.parent.pid} running 't'") as caught:
        bench.run(wait=False)
    assert caught.value.exit_code == ExitCode.BUSY == 4
    other = bench.start("--no-wait")
    _, err = other.communicate(timeout=20)
    assert other.returncode == 4
    assert "leave out --no-wait" in err
    held.kill("parent")


def test_ctrl_c_while_waiting_leaves_at_once(pair):
    held, second, _ = pair
    os.kill(second.pid, signal.SIGINT)
    second.communicate(timeout=20)
    assert second.returncode == 130
    assert held.parent.poll() is None


def test_ctrl_c_that_falls_into_a_listener_is_not_lost(bench):
    """Listeners' errors are swallowed; what a signal asks for must not be."""
    held = bench.write(STAGES).held()
    listener = lambda event: event.kind == "stage-waiting" and os.kill(os.getpid(), signal.SIGINT)  # noqa: E731
    with pytest.raises(Interrupted, match="between stages"):
        Run(bench.load(), bench.store, bench.plugins, Options(), [listener]).execute()
    held.kill("parent")


def test_a_run_that_was_killed_does_not_say_it_runs(bench):
    held = bench.write(STAGES).held()
    (folder,) = bench.store.runs()
    assert read_run(folder)["status"] == "running"
    held.kill("parent")
    assert read_run(folder)["status"] == "killed"
    log = (folder / "log.txt").read_text()
    assert "train        running  no-artifact" in log


def test_other_keys_do_not_wait(bench):
    held = bench.write(STAGES).held()
    assert bench.statuses("stages.train.label=other", wait=False) == {"train": "built"}
    held.kill("parent")


def test_a_lock_says_who_holds_it(tmp_path):
    store, told = Store(tmp_path), []
    holder = {"pid": 7, "recipe": "r", "stage": "s", "since": "now"}
    with store.lock("a" * 64, holder, None):
        with (
            pytest.raises(StoreBusy, match="process 7 running 'r', stage 's', since now"),
            store.lock("a" * 64, holder, None),
        ):
            pass
        with store.lock("b" * 64, holder, None):
            pass
    with store.lock("a" * 64, holder, told.append):
        assert told == []
    assert describe({}) == "a run that is starting or ending"
