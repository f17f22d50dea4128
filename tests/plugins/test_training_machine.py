"""Which device a process runs on, and what it keeps of its memory."""

from __future__ import annotations

import resource
import sys

import pytest
import torch

from recipe_plugins.training import TrainingConfig
from recipe_plugins.training.machine import device, ready, told_memory
from recipe_runner import ExecutionConfig, RecipeError


@pytest.fixture
def two_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.mark.parametrize("asked", ["auto", "cuda"])
def test_each_rank_has_a_gpu_of_its_own(two_gpus, monkeypatch, asked):
    execution = ExecutionConfig(device=asked)
    assert device(execution) == torch.device("cuda", 0)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert device(execution) == torch.device("cuda", 1)


def test_more_ranks_than_gpus_are_an_error(two_gpus, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(RecipeError, match="rank 2 of this machine has no GPU: there are 2") as caught:
        device(ExecutionConfig(device="cuda"))
    assert "execution.processes to 2" in str(caught.value.next)


def test_a_device_that_is_not_there_is_an_error():
    if not torch.cuda.is_available():
        with pytest.raises(RecipeError, match="there is no cuda device here"):
            device(ExecutionConfig(device="cuda"))
    assert device(ExecutionConfig(device="cpu")) == torch.device("cpu")


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
def test_memory_that_a_step_frees_is_there_for_the_next_one():
    def faults() -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

    def step() -> None:
        for block in [torch.empty(2**22) for _ in range(4)]:
            block.fill_(1.0)

    ready(TrainingConfig.model_validate({"budget": {"steps": 1}, "batch_size": 1, "sequence_length": 8}))
    for _ in range(3):
        step()
    before = faults()
    for _ in range(10):
        step()
    assert faults() - before < 1000  # the ten touch 164,000 pages


def test_too_little_memory_is_an_error_that_says_what_takes_less():
    """Of a GPU, and of a machine; any other error stays what it is."""
    config = TrainingConfig.model_validate({"budget": {"steps": 1}, "batch_size": 8, "sequence_length": 16})
    for allocate in (lambda: torch.empty(2**60, dtype=torch.uint8), _no_gpu_memory):
        with (
            pytest.raises(RecipeError, match="out of memory with 4 x 16 tokens at once: ") as caught,
            told_memory(config, 4),
        ):
            allocate()
        assert caught.value.next.startswith(
            "set execution.micro_batch: 2 (the batch stays as it is), or gradient_check"
        )
    saving = config.model_copy(update={"gradient_checkpointing": True})
    with pytest.raises(RecipeError) as caught, told_memory(saving, 1):
        _no_gpu_memory()
    assert "micro_batch" not in caught.value.next
    assert "gradient_checkpointing" not in caught.value.next
    with pytest.raises(RuntimeError, match="another") as other, told_memory(config, 4):
        raise RuntimeError("another")
    assert not isinstance(other.value, RecipeError)


def _no_gpu_memory():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
