"""A stage in a process of its own that kills itself at a set moment; run by `test_resume.py`.

    python killable.py SPEC...    SPEC is JSON: use, config, inputs {name: folder}, folder, kill {step | flush | stop}

Several are run one after another, each in a fork that has the libraries imported already, or in as many as
`processes` says; their exit statuses are printed as a list, of several ranks the first that is not 0.
Rows of metrics go to `rows.jsonl`, written and cut as the runner would. `kill: {step: 7}` is after the metrics of
step 7 are out; `kill: {flush: 2}` is in the second checkpoint, with all its files there and no mark; `stop` is no kill,
but what a signal does.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import sys
import traceback
from pathlib import Path

from recipe_runner.artifacts import TYPES
from recipe_runner.testing import LocalContext
from recipe_runner.testing.local import slot


class Killable(LocalContext):
    """Keeps its rows in a file, and kills this process when told to."""

    def __init__(self, folder: Path, kill: dict, **rest) -> None:
        super().__init__(folder, **rest)
        self.kill, self.flushes, self.file = kill, 0, folder / "rows.jsonl"

    def metrics(self, step, **values):
        if self.rank:
            return
        with open(self.file, "a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        if step == self.kill.get("step"):
            os.kill(os.getpid(), signal.SIGKILL)
        if step == self.kill.get("stop"):
            self.stop = True

    def flush(self):
        self.flushes += 1
        if self.flushes == self.kill.get("flush"):
            os.kill(os.getpid(), signal.SIGKILL)

    def resume_from(self, step):
        text = self.file.read_text() if self.file.exists() else ""
        rows = [line for line in text.splitlines() if json.loads(line)["step"] <= step]
        self.file.write_text("".join(row + "\n" for row in rows))


def main(spec: dict) -> None:
    folder = Path(spec["folder"])
    opened = {}
    for name, path in spec["inputs"].items():
        manifest = json.loads((Path(path) / "manifest.json").read_text())
        opened[name] = TYPES[manifest["type"]](Path(path), f"digest of {name}", manifest)
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    context = Killable(folder, spec.get("kill", {}), inputs=opened, rank=rank, world_size=world_size)
    slot("stage", {"use": spec["use"], **spec["config"]}).build().run(context)
    (folder / f"facts-{rank}.json").write_text(json.dumps(context.facts))


def several(specs: list[dict]) -> list[int]:
    """The exit statuses; negative for a signal."""
    for spec in specs:
        slot("stage", {"use": spec["use"], **spec["config"]}).build()  # imports, and starts no thread
    gc.freeze()  # what was imported is no garbage: each fork would look through it, and copy it by doing so
    return [run(spec) for spec in specs]


def run(spec: dict) -> int:
    """The status of one."""
    count = spec.get("processes", 1)
    shared = {"WORLD_SIZE": str(count)}
    if count > 1:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        shared |= {"LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks = [
        forked(spec, {**shared, "RANK": str(n), **({"LOCAL_RANK": str(n)} if count > 1 else {})}) for n in range(count)
    ]
    statuses = [os.waitstatus_to_exitcode(os.waitpid(rank, 0)[1]) for rank in ranks]
    return next((status for status in statuses if status), 0)


def forked(spec: dict, environment: dict) -> int:
    """The process that runs one rank."""
    child = os.fork()
    if child:
        return child
    try:
        os.environ.update(environment)
        main(spec)
        os._exit(0)
    finally:
        traceback.print_exc()
        os._exit(1)


if __name__ == "__main__":
    given = [json.loads(text) for text in sys.argv[1:]]
    if len(given) == 1:
        main(given[0])
    else:
        print(json.dumps(several(given)))
