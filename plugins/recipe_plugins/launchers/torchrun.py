"""Ranks on several nodes: `torchrun` on each, started from the first over a remote shell.

The other nodes get the job through the shell's input and end when it does, so that a run that is killed leaves nothing
behind. The first node that fails ends all, and what its ranks said is shown as if they had run here.

Limit: a node that is lost without a word is noticed when the collectives time out.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from recipe_plugins.launchers.config import TorchrunConfig
from recipe_plugins.launchers.local import first_failure
from recipe_plugins.launchers.node import command
from recipe_runner import ExecutionConfig, RecipeError


class Torchrun:
    """Implements `Launcher`."""

    def __init__(self, config: TorchrunConfig) -> None:
        self.config = config

    def launch(self, job: Path, execution: ExecutionConfig, inherit: Sequence[int]) -> int:
        """Start all nodes, wait for them, and return the first status that is not 0."""
        nodes = 1 + len(self.config.hosts)
        ranks, rest = divmod(execution.processes, nodes)
        if rest or not ranks:
            raise RecipeError(
                f"{execution.processes} processes cannot be divided among {nodes} nodes",
                next=f"make execution.processes a multiple of {nodes}",
            )
        started: list[subprocess.Popen[bytes]] = []
        try:
            started.append(self._first(nodes, ranks, job, inherit))
            started += [self._other(nodes, number, ranks, job) for number in range(1, nodes)]
            return first_failure(started)
        finally:
            for process in started:
                _end(process, job.parent)

    def _first(self, nodes: int, ranks: int, job: Path, inherit: Sequence[int]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            command(nodes, 0, ranks, self.config.address, self.config.port, job),
            pass_fds=tuple(inherit), stdin=subprocess.DEVNULL, start_new_session=True,
            env={**os.environ, "HF_HUB_DISABLE_TELEMETRY": "1"},
        )  # fmt: skip

    def _other(self, nodes: int, number: int, ranks: int, job: Path) -> subprocess.Popen[bytes]:
        config = self.config
        told = [sys.executable, "-m", "recipe_plugins.launchers.node"]
        told += map(str, (nodes, number, ranks, config.address, config.port))
        process = subprocess.Popen(
            [*config.shell, config.hosts[number - 1], shlex.join(told)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        assert process.stdin is not None
        process.stdin.write((json.dumps(json.loads(job.read_text(encoding="utf-8"))) + "\n").encode())
        process.stdin.flush()
        return process


def _end(process: subprocess.Popen[bytes], channel: Path) -> None:
    """End a node, and put what its ranks left where a rank of this machine would have."""
    if process.stdin is None:
        process.kill()
        process.wait()
        return
    said, _ = process.communicate()  # which closes its input
    for line in said.decode(errors="replace").splitlines():
        try:
            failure = json.loads(line)
            (channel / f"failure-{failure['rank']}.json").write_text(line, encoding="utf-8")
        except (ValueError, TypeError, KeyError):
            continue  # what the shell says is no failure
