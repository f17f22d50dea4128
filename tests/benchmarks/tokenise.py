"""What encoding a corpus into the token store costs, beside the encoder alone, in the same run.

    python tests/benchmarks/tokenise.py [MEGABYTES]

Both sides encode the same documents, Python's own sources, with the same vocabulary and threads: the bare side asks the
library `tokenizers` for the ids of each batch and drops them; ours reads the corpus from disk, encodes, and writes the
store. They run in turns, five times, each with a copy of the encoder whose cache of words is empty; medians are
compared. Goal: at least 90 % of the bare throughput; exits 1 below.
"""

from __future__ import annotations

import json
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from functools import partial
from itertools import cycle
from pathlib import Path
from statistics import median

from recipe_plugins.tokeniser.algorithms import ByteBPE
from recipe_plugins.tokeniser.config import ByteBPEConfig
from recipe_plugins.training.store import build_store
from recipe_runner import Corpus
from recipe_runner.testing import LocalContext

GOAL, ROUNDS, VOCABULARY, BATCH = 0.9, 5, 8192, 1000


def sources(size: int) -> list[str]:
    """Python's own modules, again and again up to `size` bytes."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    texts = [file.read_text(encoding="utf-8", errors="replace") for file in files]
    found: list[str] = []
    for text in cycle(texts):
        found.append(text)
        size -= len(text.encode())
        if size <= 0:
            return found
    raise RuntimeError("no sources")


def written(folder: Path, texts: list[str]) -> Corpus:
    """A corpus of `texts`, as curation writes it."""
    path = folder / "train" / "code" / "00000.jsonl"
    path.parent.mkdir(parents=True)
    rows = ({"id": str(number), "text": text, "meta": {}} for number, text in enumerate(texts))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    entry = {"documents": len(texts), "bytes": path.stat().st_size}
    index = {"domains": {"code": {"train": {**entry, "shards": [{"file": "train/code/00000.jsonl", **entry}]}}}}
    (folder / "corpus.json").write_text(json.dumps(index), encoding="utf-8")
    return Corpus(folder, "", {})


def timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def main(megabytes: int = 12) -> int:
    """Print both throughputs and the ratio; 1 if it is below the goal."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    texts = sources(megabytes * 10**6)
    size = sum(len(text.encode()) for text in texts)
    backend = ByteBPE(ByteBPEConfig()).train(iter(texts[:200]), VOCABULARY, ["<|endoftext|>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>")
    times: dict[str, list[float]] = {"bare": [], "ours": []}
    with tempfile.TemporaryDirectory() as folder:
        corpus = written(Path(folder) / "corpus", texts)

        def bare(backend: Tokenizer) -> None:
            for first in range(0, len(texts), BATCH):
                for encoding in backend.encode_batch_fast(texts[first : first + BATCH], add_special_tokens=False):
                    encoding.ids  # noqa: B018  (the ids are what is asked for; making the list is part of the price)

        for number in range(ROUNDS):
            context = LocalContext(Path(folder) / str(number))
            fresh = Tokenizer.from_str(backend.to_str())
            times["bare"].append(timed(lambda fresh=fresh: bare(fresh)))
            stored = partial(build_store, context, corpus, tokenizer, ["code"], encoder="tokenizers", digest="")
            times["ours"].append(timed(stored))
    found = {name: median(values) for name, values in times.items()}
    for name, seconds in found.items():
        spread = f"{min(times[name]):.2f} to {max(times[name]):.2f} s"
        print(f"{name:<5} {size / seconds / 1e6:8.2f} MB/s   (median of {ROUNDS}: {seconds:.2f} s, {spread})")
    ratio = found["bare"] / found["ours"]
    print(f"ours / bare throughput {ratio:.3f} (goal {GOAL})")
    return int(ratio < GOAL)


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
