"""A node of a run that was started on another machine: `python -m recipe_plugins.launchers.node ...`.

It reads the job from its input, gives its ranks a channel of their own, and leaves with them when the input ends, which
is when the first node is gone. What failing ranks leave behind is its output, a line each.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path


def command(nodes: int, number: int, ranks: int, address: str, port: int, job: Path) -> list[str]:
    """`torchrun` for the ranks of node `number`, in this Python; a rank that fails is not started again."""
    return [
        sys.executable, "-m", "torch.distributed.run", f"--nnodes={nodes}", f"--node-rank={number}",
        f"--nproc-per-node={ranks}", f"--master-addr={address}", f"--master-port={port}", "--max-restarts=0",
        "-m", "recipe_runner.worker", str(job),
    ]  # fmt: skip


def main(arguments: Sequence[str]) -> int:
    """Run the ranks of this node; their status."""
    nodes, number, ranks, port = (int(arguments[place]) for place in (0, 1, 2, 4))
    told = json.loads(sys.stdin.readline())
    with tempfile.TemporaryDirectory(prefix="recipe-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        job = folder / "job.json"
        job.write_text(json.dumps({**told, "channel": name}), encoding="utf-8")
        os.mkfifo(folder / "alive")
        alive = os.open(folder / "alive", os.O_RDWR)
        process = subprocess.Popen(
            command(nodes, number, ranks, arguments[3], port, job),
            stdin=subprocess.DEVNULL, stdout=sys.stderr, start_new_session=True,
        )  # fmt: skip

        def leave() -> None:
            sys.stdin.read()
            os.close(alive)  # the ranks end with it
            with suppress(ProcessLookupError):
                process.kill()

        threading.Thread(target=leave, daemon=True).start()
        status = process.wait()
        for path in sorted(folder.glob("failure-*.json")):
            print(path.read_text(encoding="utf-8"), flush=True)
    return status


if __name__ == "__main__":
    os._exit(main(sys.argv[1:]))  # without waiting for the thread that reads the input
