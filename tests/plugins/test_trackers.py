"""Trackers: what they keep of a run, by their own libraries, where these are installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from recipe_runner import Event, RecipeError
from recipe_runner.testing.local import slot

pytestmark = pytest.mark.slow


def tell(tracker) -> None:
    """A run whose stage is resumed after step 2, and tells step 3 twice."""
    tracker.on_event(Event("run-started", data={"recipe": "tiny", "run": "r1"}, time=1.0))
    for step, loss in ((1, 3.0), (2, 2.0), (3, 9.0)):
        tracker.on_event(Event("metrics", "base", {"step": step, "loss": loss, "note": "text"}, time=10.0 + step))
    tracker.on_event(Event("resumed", "base", {"step": 2}, time=20.0))
    tracker.on_event(Event("metrics", "base", {"step": 3, "loss": 1.0}, time=21.0))
    tracker.on_event(Event("stage-finished", "base", {"path": "", "seconds": 1.0}, time=22.0))
    tracker.on_event(Event("run-finished", data={"status": "finished", "seconds": 1.0}, time=23.0))


def test_tensorboard_reads_back_what_was_told(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tell(slot("tracker", {"use": "tensorboard", "folder": str(tmp_path)}).build())
    read = EventAccumulator(str(tmp_path / "r1" / "base"))
    read.Reload()
    assert read.Tags()["scalars"] == ["loss"]
    found = [(entry.step, entry.value, entry.wall_time) for entry in read.Scalars("loss")]
    assert found == [(1, 3.0, 11.0), (2, 2.0, 12.0), (3, 1.0, 21.0)]  # the first third step is void


def test_wandb_keeps_all_here(tmp_path):
    pytest.importorskip("wandb")
    tell(slot("tracker", {"use": "wandb", "project": "p", "folder": str(tmp_path)}).build())
    kept = list(tmp_path.rglob("run-*.wandb"))
    assert len(kept) == 1
    assert kept[0].parent.name.startswith("offline-run-")
    assert kept[0].stat().st_size > 0


TRACKIO = """
import json, socket, sys
def refused(*_): raise AssertionError("nothing is sent")
socket.socket.connect = socket.getaddrinfo = refused
sys.path.insert(0, sys.argv[1])
from test_trackers import tell
from recipe_runner.testing import slot
from trackio.sqlite_storage import SQLiteStorage
tell(slot("tracker", {"use": "trackio", "project": "p"}).build())
ids = [run["id"] for run in SQLiteStorage.get_run_records("p")]
rows = {id: SQLiteStorage.get_logs("p", "base", run_id=id) for id in ids}
configs = {id: SQLiteStorage.get_run_config("p", "base", run_id=id) for id in ids}
print(json.dumps([rows, configs]))
"""


def test_trackio_keeps_all_here(tmp_path):
    pytest.importorskip("trackio")
    variables = {**os.environ, "TRACKIO_DIR": str(tmp_path), "HF_TOKEN": "hf_none", "TRACKIO_SPACE_ID": "no/where"}
    command = [sys.executable, "-c", TRACKIO, str(Path(__file__).parent)]
    done = subprocess.run(command, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows, configs = json.loads(done.stdout)
    found = {name: [(row["step"], row["loss"]) for row in logged] for name, logged in rows.items()}
    assert found == {"tiny/r1/base": [(1, 3.0), (2, 2.0), (3, 9.0)], "tiny/r1/base/2": [(3, 1.0)]}
    assert rows["tiny/r1/base"][0]["timestamp"].startswith("1970-01-01T00:00:11")
    assert configs["tiny/r1/base/2"]["resumed_from"] == 2
    assert (tmp_path / "p.db").stat().st_size > 0


SETTINGS = {"tensorboard": {"folder": "x"}, "trackio": {"project": "p"}, "wandb": {"folder": "x", "project": "p"}}


@pytest.mark.parametrize("name", SETTINGS)
def test_what_is_not_installed_says_how(name, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    for module in [m for m in sys.modules if m.startswith(("tensorboard.", "trackio.", "recipe_plugins.trackers."))]:
        monkeypatch.delitem(sys.modules, module)
    with pytest.raises(RecipeError, match=f"needs {name}, which is not installed"):
        slot("tracker", {"use": name, **SETTINGS[name]}).build()


def test_tensorboard_needs_no_torch():
    pytest.importorskip("tensorboard")
    code = "import sys, recipe_plugins.trackers.tensorboard; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path.cwd()).returncode == 0
