"""Starting the ranks of a stage."""

from __future__ import annotations

import signal
import subprocess

import pytest

from recipe_plugins.launchers.local import first_failure


@pytest.mark.parametrize("order", [1, -1])
def test_a_rank_that_was_killed_is_what_happened(order):
    """The others end with an error because it is gone; out of memory must not read like a defect of theirs."""
    commands = ["exit 1", "kill -9 $$"][::order]
    ranks = [subprocess.Popen(["sh", "-c", command]) for command in commands]
    for rank in ranks:
        rank.wait()
    assert first_failure(ranks) == -signal.SIGKILL
