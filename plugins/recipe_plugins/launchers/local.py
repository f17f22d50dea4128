"""N ranks on this machine, each a process in a session of its own, so that Ctrl-C reaches the parent alone.

The first rank that fails ends the others; the environment is the parent's, with the variables that
torch.distributed's `env://` reads.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from recipe_runner import Config, ExecutionConfig


class Local:
    """Implements `Launcher`."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def launch(self, job: Path, execution: ExecutionConfig, inherit: Sequence[int]) -> int:
        """Start `execution.processes` ranks, wait for them, and return the first status that is not 0."""
        shared = {**os.environ, "WORLD_SIZE": str(execution.processes), "HF_HUB_DISABLE_TELEMETRY": "1"}
        if execution.processes > 1:  # LOCAL_RANK makes accelerate wrap even a single rank in DDP
            shared |= {
                "LOCAL_WORLD_SIZE": str(execution.processes),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(_free_port()),
            }
        command = [sys.executable, "-m", "recipe_runner.worker", str(job)]
        ranks: list[subprocess.Popen[bytes]] = []
        try:
            for rank in range(execution.processes):
                environment = {**shared, "RANK": str(rank)}
                if execution.processes > 1:
                    environment["LOCAL_RANK"] = str(rank)
                ranks.append(
                    subprocess.Popen(
                        command, env=environment, pass_fds=tuple(inherit), start_new_session=True,
                        stdin=subprocess.DEVNULL,
                    )
                )  # fmt: skip
            return first_failure(ranks)
        finally:
            for process in ranks:
                process.kill()
                process.wait()


def first_failure(ranks: Sequence[subprocess.Popen[bytes]]) -> int:
    """0 when all ranks have ended well; else the status of the first that has not.

    Of ranks that fail together, one that a signal killed comes first: the others fail because it is gone.
    """
    while True:
        codes = [process.poll() for process in ranks]
        failed = [code for code in codes if code]
        if failed:
            time.sleep(0.5 if len(ranks) > 1 else 0)  # ranks that fail together leave their own word
            return min(failed) if min(failed) < 0 else failed[0]
        if all(code == 0 for code in codes):
            return 0
        if len(ranks) == 1:
            ranks[0].wait()
        else:
            time.sleep(0.05)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
