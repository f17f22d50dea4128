"""The process a stage lives in: `python -m recipe_runner.worker JOB`, once per rank.

It rebuilds the stage from the job and refuses if its key differs; it ends at once when its parent dies; only rank 0
tells events. Memory and global state never leak from stage to stage, and one rank or eight take the same path.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipe_runner import identity
from recipe_runner.artifacts import Artifact
from recipe_runner.components import Ref, Slot, Use, Validation
from recipe_runner.contract import Event, StageConfig
from recipe_runner.errors import ExitCode, Interrupted, RecipeError
from recipe_runner.events import encode
from recipe_runner.plugins import installed
from recipe_runner.store import artifact_at, disk_errors, open_foreign, read_json


@dataclass(frozen=True, slots=True)
class Job:
    """What a worker is told. `config` is the stage as `written`; `inputs` are `{ref: {path | digest}}`."""

    stage: str
    config: Mapping[str, Any]
    key: str
    seed: int
    digests: Mapping[str, str]
    sources: Mapping[str, str]
    inputs: Mapping[str, Mapping[str, str]]
    folder: str
    channel: str
    disabled: Sequence[str] = ()
    allow_remote_code: bool = False


class Context:
    """The `StageContext` of a run."""

    def __init__(self, job: Job, rank: int, world_size: int) -> None:
        self._job, self.rank, self.world_size = job, rank, world_size
        self.folder = Path(job.folder)
        self.payload, self.work = self.folder / "payload", self.folder / "work"
        self.allow_remote_code = job.allow_remote_code
        self._stop = False
        self._one_line = threading.Lock()
        self._stop_file = Path(job.channel) / "stop"
        self._events = os.open(Path(job.channel) / "events", os.O_WRONLY) if rank == 0 else -1
        self._acks = os.open(Path(job.channel) / "acks", os.O_RDONLY) if rank == 0 else -1
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)

    def _on_signal(self, *_: object) -> None:
        self._stop = True

    def open(self, ref: Ref) -> Artifact:
        """See `StageContext`."""
        given = self._job.inputs[ref.text]
        if "path" in given:
            folder = Path(given["path"])
            return artifact_at(folder, read_json(folder / "manifest.json"))
        return open_foreign(ref, given["digest"])

    def seed(self, *words: str | int) -> int:
        """See `StageContext`."""
        return identity.make_seed(self._job.seed, *words)

    def emit(self, event: Event) -> None:
        """See `StageContext`."""
        if self.rank == 0:
            line = encode(Event(event.kind, event.stage or self._job.stage, event.data, time.time())).encode()
            with self._one_line:
                while line:
                    line = line[os.write(self._events, line) :]

    def metrics(self, step: int, **values: float) -> None:
        """See `StageContext`."""
        self.emit(Event("metrics", data={"step": step, **values}))

    def resume_from(self, step: int) -> None:
        """See `StageContext`."""
        self.emit(Event("resumed", data={"step": step}))

    def flush(self) -> None:
        """See `StageContext`."""
        if self.rank == 0:
            self.emit(Event("flush"))
            if not os.read(self._acks, 1):  # the parent is gone, and with it what it had not written
                os._exit(ExitCode.STAGE_FAILED)

    def progress(self, done: float, total: float | None = None, unit: str = "", note: str = "") -> None:
        """See `StageContext`."""
        self.emit(Event("progress", data={"done": done, "total": total, "unit": unit, "note": note}))

    def note(self, **facts: Any) -> None:
        """See `StageContext`."""
        self.emit(Event("note", data=facts))

    def warn(self, text: str) -> None:
        """See `StageContext`."""
        self.emit(Event("warning", data={"text": text}))

    def stopping(self) -> bool:
        """See `StageContext`."""
        return self._stop or self._stop_file.exists()


def end_with_parent(alive: Path) -> None:
    """Leave at once, with all that is forked from here, when the run, the only writer of this pipe, is gone."""
    descriptor = os.open(alive, os.O_RDONLY | os.O_NONBLOCK)
    os.set_blocking(descriptor, True)

    def watch() -> None:
        if os.read(descriptor, 1) == b"":
            shutil.rmtree(alive.parent, ignore_errors=True)  # nobody else is left to do it
            os._exit(ExitCode.STAGE_FAILED)

    def start() -> None:
        threading.Thread(target=watch, daemon=True, name="parent-watch").start()

    start()
    os.register_at_fork(after_in_child=start)  # a process left behind would hold the lock of the key


def rebuild(job: Job) -> Use[Any]:
    """The stage, validated here from the job; raises `RecipeError` if its key is not the parent's."""
    context = Validation(installed(tuple(job.disabled)).registry)
    use = Slot("stage").resolve(job.config, context)
    key = identity.key_of(identity.payload(use, job.seed, job.digests, job.sources))
    if key != job.key:
        raise RecipeError(
            f"this process makes key {key[:12]} of a stage that its parent calls {job.key[:12]}",
            next="parent and worker see different plugins or files: run again; if it stays, reinstall the plugins",
        )
    return use


def redirect(folder: Path, rank: int) -> None:
    """Send this rank's output, that of C libraries included, to a file of its own."""
    log = os.open(folder / "logs" / f"rank-{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (1, 2):
        os.dup2(log, stream)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")


def run(job: Job, rank: int, world_size: int) -> int:
    """Run one rank; a failure is left beside the channel for the parent to show."""
    try:
        use = rebuild(job)
        assert isinstance(use.config, StageConfig)
        with disk_errors("the stage cannot write"):
            use.build().run(Context(job, rank, world_size))
    except Interrupted:
        return ExitCode.INTERRUPTED
    except BaseException as error:
        shown = error.render() if isinstance(error, RecipeError) else ""
        failure = {"rank": rank, "time": time.time(), "shown": shown, "traceback": traceback.format_exc()}
        (Path(job.channel) / f"failure-{rank}.json").write_text(json.dumps(failure), encoding="utf-8")
        traceback.print_exc()
        return ExitCode.STAGE_FAILED
    return ExitCode.OK


def main(path: str) -> int:
    """The entry of the process."""
    job = Job(**read_json(Path(path)))
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    end_with_parent(Path(path).with_name("alive"))
    redirect(Path(job.folder), rank)
    return run(job, rank, world_size)


if __name__ == "__mp_main__":  # a process that a stage spawned
    end_with_parent(Path(sys.argv[1]).with_name("alive"))
if __name__ == "__main__":
    status = main(sys.argv[1])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # libraries' exit handlers and stray threads must not hold a finished stage
