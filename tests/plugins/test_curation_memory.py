"""Curation's memory does not grow with the corpus; what must grow stays within the bound that its module states."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from recipe_plugins.curation import runs
from recipe_plugins.filters import substring
from recipe_plugins.filters.copies import packed
from recipe_plugins.filters.lines import ENTRY
from recipe_plugins.sources.files import lines
from recipe_runner import Record
from recipe_runner.testing.local import slot

STEPS = {
    "rules": {"use": "gopher-quality", "min_stop_words": 0},
    "equal": "exact-dedup",
    "alike": {"use": "minhash-dedup", "verify": True},
    "evaluation": {"use": "decontaminate", "files": ["evaluation.txt"]},
    "model": {"use": "quality-classifier", "keep": "all", "head": 200, "examples": 50,
              "positives": {"files": ["evaluation.txt"]}, "negatives": {"domains": ["web"]}},
}  # fmt: skip
RUN = """
import json, resource, sys
from pathlib import Path
from recipe_plugins.curation import documents, runs, stage
from recipe_plugins.filters import classifier, minhash, words
from recipe_runner.testing import make
# What is held at once, a 256th of what it is, so that a corpus is many times as large.
stage.SHARD, runs.RUN, documents.BATCH_BYTES, words.Words.HELD = 250_000, 125_000, 16_000, 32_000
minhash.PART, minhash.BLOCK, classifier.SAMPLE = 4_000, 32, 40
config, folder = json.loads(sys.argv[1]), Path(sys.argv[2])
def peak():
    with open("/proc/self/status") as status:
        return 1024 * next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
before = peak()
make("curation", config, folder)
print(peak() - before)
"""


def above_imports(folder: Path, size: int) -> int:
    """Peak of a curation of `size` bytes in a process of its own, less what it had after its imports."""
    rng = random.Random(1)
    words = [f"{rng.choice('abcdefgh')}{rng.randrange(3_000)}x" for _ in range(3_000)]
    folder.mkdir()
    (folder / "evaluation.txt").write_text("".join(" ".join(rng.choices(words, k=20)) + "\n" for _ in range(20)))
    with open(folder / "web.jsonl", "w") as file:
        for number in range(size // 2_000):
            file.write(json.dumps({"id": f"d{number}", "text": " ".join(rng.choices(words, k=330))}) + "\n")
    steps = json.loads(json.dumps(STEPS).replace("evaluation.txt", str(folder / "evaluation.txt")))
    config = {
        "sources": {"web": {"use": "jsonl", "path": str(folder / "web.jsonl")}},
        "steps": steps,
        "mix": {"budget": size // 2},
        "execution": {"workers": 1},
    }
    words_of = [sys.executable, "-c", RUN, json.dumps(config), str(folder / "out")]
    done = subprocess.run(words_of, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    return int(done.stdout.strip().splitlines()[-1])


def test_lines_to_be_sorted_are_held_up_to_a_run(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "RUN", 1_000)
    made = runs.Runs(tmp_path / "lines")
    for key in range(95):
        made.add(key, b"x" * 99 + b"\n")
    made.close()
    assert list(np.load(tmp_path / "lines.runs.npy")) == [*range(0, 91, 10), 95]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads a process's peak from /proc")
def test_ten_times_the_corpus_takes_no_more_memory(tmp_path):
    one, ten = above_imports(tmp_path / "one", 1_200_000), above_imports(tmp_path / "ten", 12_000_000)
    print(f"{one / 1e6:.1f} MB, {ten / 1e6:.1f} MB")
    assert ten <= 1.2 * one


def peak_of(decide: Callable[[], object]) -> int:
    tracemalloc.start()
    decide()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_a_signature_is_less_than_a_kilobyte_on_disk_and_little_in_memory(tmp_path):
    step, rng = slot("filter", {"use": "minhash-dedup", "verify": False}).build(), np.random.default_rng(3)
    text = " ".join(f"word{n}" for n in range(2_000))
    assert len(step.sketch([Record(f"document-{n:07d}", text) for n in range(100)])) < 1_000 * 100

    def decide(batches: int) -> int:
        names = (range(at, at + 500) for at in range(0, 500 * batches, 500))
        rows = rng.integers(0, 1 << 32, (500, 112), dtype=np.uint32)
        return peak_of(
            lambda: step.decide((packed([Record(f"d{n}", "") for n in own], rows + own[0]) for own in names), tmp_path)
        )

    few, many = decide(40), decide(120)
    assert (many - few) / (80 * 500) < 110  # bytes a document, of a signature of 448


def test_repeated_lines_take_sixty_bytes_each(tmp_path):
    rng = np.random.default_rng(0)
    sketches = []
    for _ in range(20):
        entries = np.zeros(10_000, ENTRY)
        entries["line"], entries["key"] = rng.integers(0, 100_000, 10_000), rng.integers(0, 1 << 60, 10_000)
        sketches.append(entries.tobytes())
    step = slot("filter", "line-dedup").build()
    assert 20 * 200_000 < peak_of(lambda: step.decide(iter(sketches), tmp_path)) < 60 * 200_000


def test_a_run_of_one_character_takes_no_more_memory_than_is_allowed(tmp_path, monkeypatch):
    monkeypatch.setattr(substring, "BLOCK", 1 << 16)
    found = slot("filter", {"use": "substring-dedup", "memory": "4MB"}).build()
    sketch = found.sketch([Record("a", "x" * 1_000_000)])
    assert peak_of(lambda: found.decide([sketch], tmp_path)) < 30_000_000
    assert found.judge([Record("a", "x" * 1_000_000)], tmp_path / "spans.json")[0].text == "x" * 200


def test_a_line_of_a_gigabyte_is_told_and_never_held():
    block = b"x" * (1 << 20)
    blocks = (block for _ in range(1_000))
    found: list = []
    peak = peak_of(lambda: found.extend(lines(_around(blocks), 256_000)))
    assert found == [(b"before", 7), (None, 1_000 * (1 << 20) + 1), (b"after", 6)]
    assert peak < 20e6


def _around(blocks):
    yield b"before\n"
    yield from blocks
    yield b"\nafter\n"
