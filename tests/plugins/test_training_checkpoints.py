"""Checkpoints: whole or not there."""

from __future__ import annotations

import errno
import json

import pytest

from recipe_runner import RecipeError

pytestmark = pytest.mark.slow


@pytest.fixture
def checkpoints():
    from recipe_plugins.training import checkpoints

    return checkpoints


def written(checkpoints, root, step, content=b"weights", flush=lambda: None):
    folder = checkpoints.fresh(root, step)
    (folder / "file").write_bytes(content)
    checkpoints.complete(folder, flush)
    return folder


def test_a_torn_checkpoint_is_skipped_for_the_one_before(tmp_path, checkpoints):
    assert checkpoints.latest(tmp_path) is None
    first, second, third = (written(checkpoints, tmp_path, step) for step in (2, 10, 30))
    assert checkpoints.latest(tmp_path) == third
    (third / "complete.json").unlink()  # killed before the mark
    assert checkpoints.latest(tmp_path) == second
    (second / "file").write_bytes(b"weig")  # cut short
    assert checkpoints.latest(tmp_path) == first
    (first / "complete.json").write_text('{"file": 7')  # a mark that is torn itself
    assert checkpoints.latest(tmp_path) is None


def test_events_are_out_before_the_mark(tmp_path, checkpoints):
    seen = []
    written(checkpoints, tmp_path, 5, flush=lambda: seen.append((tmp_path / "step-5" / "complete.json").exists()))
    assert seen == [False]


def test_the_last_whole_ones_are_kept(tmp_path, checkpoints):
    for step in (1, 2, 3, 4, 5):
        written(checkpoints, tmp_path, step)
    (tmp_path / "step-4" / "complete.json").unlink()
    checkpoints.prune(tmp_path, 2)
    assert list(checkpoints.steps_of(tmp_path)) == [3, 5]


def test_a_full_disk_says_so(checkpoints):
    full = "no space left on the disk while writing the checkpoint"
    with pytest.raises(RecipeError, match=full), checkpoints.writing("the checkpoint"):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(PermissionError), checkpoints.writing("the checkpoint"):
        raise PermissionError(errno.EACCES, "denied")


def test_every_generator_is_put_back(tmp_path, checkpoints):
    import random

    import numpy as np
    import torch

    def draw():
        return random.random(), np.random.rand(), torch.rand(1).item(), torch.randn(3).tolist()

    draw()
    torch.save(checkpoints.rng_state(), tmp_path / "rng.pt")
    expected = draw()
    draw()
    checkpoints.set_rng_state(checkpoints.load(tmp_path / "rng.pt"))
    assert draw() == expected


def test_weights_of_another_model_are_refused(tmp_path, checkpoints):
    import torch

    checkpoints.save_weights(checkpoints.trained(torch.nn.Linear(2, 2)), tmp_path / "weights.safetensors")
    with pytest.raises(RecipeError, match="is of another model: it differs in bias and 1 in all"):
        checkpoints.load_weights(torch.nn.Linear(2, 2, bias=False), tmp_path / "weights.safetensors")


def test_what_is_kept_appears_whole(tmp_path, checkpoints):
    folder = checkpoints.fresh(tmp_path, 3)
    for name in (checkpoints.WEIGHTS, "optimizer.pt"):
        (folder / name).write_bytes(name.encode())
    for lr in (1.0, 2.0):
        checkpoints.keep(folder, tmp_path / "branch", branch={"lr": lr})
    checkpoints.fresh(tmp_path, 3)  # the checkpoint goes, what was kept stays
    assert sorted(path.name for path in (tmp_path / "branch").iterdir()) == [
        "branch.json", "optimizer.pt", checkpoints.WEIGHTS,
    ]  # fmt: skip
    assert json.loads((tmp_path / "branch" / "branch.json").read_text()) == {"lr": 2.0}
    assert not (tmp_path / "branch.part").exists()
