"""The launcher `torchrun`: two nodes, the second of which is this machine again, behind a shell."""

from __future__ import annotations

import socket

import pytest

from recipe_runner import RecipeError
from recipe_runner.errors import StageFailed

pytestmark = pytest.mark.slow

SHELL = """["sh", "-c", 'eval "$1"']"""


@pytest.fixture
def spread(bench):
    """A recipe whose stage is spread over two nodes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    launcher = f"{{use: torchrun, hosts: [other], port: {port}, shell: {SHELL}}}"
    return bench.write(
        f"  train:\n    use: toy-train\n    steps: 6\n    execution: {{processes: 2, launcher: {launcher}}}\n"
    )


def test_a_stage_runs_on_two_nodes(spread):
    spread.run()
    made = spread.artifact("train")
    assert spread.steps(made) == [1, 2, 3, 4, 5, 6]
    assert sorted(path.name for path in (made / "logs").iterdir()) == ["rank-0.txt", "rank-1.txt"]


def test_what_fails_on_another_node_is_shown_once(spread):
    with pytest.raises(StageFailed) as caught:
        spread.run("stages.train.fail_at=3", "stages.train.fail_rank=1", "stages.train.pause=0.3")
    assert caught.value.what.count("Traceback") == 1
    assert "a defect on rank 1" in caught.value.what


def test_processes_are_divided_evenly(spread):
    with pytest.raises(RecipeError, match="3 processes cannot be divided among 2 nodes"):
        spread.run("stages.train.execution.processes=3")
