"""The trainer beside a bare PyTorch loop (`bare_loop.py`): tokens a second, and memory above what the imports take.

    python tests/benchmarks/pretrain.py [--seconds 60] [--rounds 5] [--sizes 1M,10M] [--threads 2] [--bf16]

Both train the same Llama on the same memory map of tokens, with the same fused AdamW, clipping, precision and
attention, 8 × 256 tokens a step, by turns: bare, ours, bare, ours. Ours is the stage `pretrain` in a process of its own
that tells each step through a pipe to this one, which writes the metrics, with checkpoints as they are by default; both
are timed from the tenth step to the last. Memory is the peak of the whole process, the last evaluation included.

Goals: in the paired median at least 97 % of the bare loop's tokens a second, at each size, and at most 1.05 times its
memory. With `--bf16` our bf16 with `torch.compile` runs too: at least 1.8 times our fp32, where the CPU has AVX512-BF16
or AMX; compiling is shown apart. Prints one line a measurement, and exits 1 if a goal is missed.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

VOCAB, BATCH, LENGTH, SKIPPED = 2048, 8, 256, 10
SIZES = {
    "1M": {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 352},
    "10M": {"hidden_size": 352, "num_hidden_layers": 6, "num_attention_heads": 8, "intermediate_size": 960},
}
SHARED = {"max_position_embeddings": LENGTH, "tie_word_embeddings": True, "rms_norm_eps": 1e-5}
GOALS = {"speed, of the bare loop's": 0.97, "memory, of the bare loop's": 1.05, "bf16 compiled, of our fp32": 1.8}
BARE = Path(__file__).with_name("bare_loop.py")


def prepare(folder: Path) -> Path:
    """A corpus, a tokeniser and the token store that both read; returns the store's memory map."""
    from recipe_plugins.training.loading import load_tokenizer
    from recipe_plugins.training.store import build_store
    from recipe_runner.testing import LocalContext, make

    sources = {"code": {"use": "python-source", "limit": "6MB"}}
    corpus = make("curation", {"sources": sources}, folder / "corpus")
    config = {"corpus": "corpus", "vocab_size": VOCAB}
    tokeniser = make("tokeniser", config, folder / "tokeniser", inputs={"corpus": corpus})
    for made in (corpus, tokeniser):  # a run's manifests have their digests
        manifest = {**made.manifest, "digest": made.digest}
        (made.path / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    context = LocalContext(folder / "store")
    build_store(context, corpus, load_tokenizer(context, tokeniser), ["code"], digest=tokeniser.digest)
    return context.work / "tokens" / "0.tokens"


# ── the two, each in a process ───────────────────────────────────────────────────────────────────────────────────


def bare(spec: Mapping[str, Any]) -> dict[str, Any]:
    """One run of the bare loop."""
    keys = {**SIZES[spec["size"]], **SHARED, "vocab_size": VOCAB}
    told = {**spec, "config": keys, "batch": BATCH, "length": LENGTH}
    done = subprocess.run([sys.executable, BARE, json.dumps(told)], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def ours(spec: Mapping[str, Any]) -> dict[str, Any]:
    """One run of the stage; what it tells is written here, as a run of a recipe would."""
    from recipe_runner.events import StageRecord
    from recipe_runner.run import Channel

    folder = Path(tempfile.mkdtemp(prefix="bench-", dir=spec["folder"]))
    for name in ("payload", "work", "logs"):
        (folder / name).mkdir()
    shutil.copytree(Path(spec["tokens"]).parent, folder / "work" / "tokens")
    record, ends, begun = StageRecord(folder), [], 0.0

    def hear(event: Any) -> None:
        nonlocal begun
        record(event)
        if event.kind == "metrics":
            ends.append(event.time)
        elif "training" in event.data:  # what is noted when all is built
            begun = event.time

    with Channel(hear, record.flush) as channel:
        told = {**spec, "run": str(folder), "channel": str(channel.folder)}
        command = [sys.executable, __file__, "--child", json.dumps(told)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        channel.drain()
    record.close()
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    shutil.rmtree(folder)
    return {"begun": begun, "ends": ends, **json.loads(done.stdout.splitlines()[-1])}


def child(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The process of `ours`."""
    import recipe_plugins.pretrain.stage
    import recipe_plugins.training.trainer  # noqa: F401  (imported before memory is measured, as all else is)
    from recipe_runner.testing import slot
    from recipe_runner.worker import Context, Job

    sys.path.insert(0, str(BARE.parent))
    from bare_loop import resident

    imported = resident()
    config = {
        "use": "pretrain", "corpus": "corpus", "tokeniser": "tokeniser", "mix": {"code": 1.0}, "isolate": False,
        "architecture": {"use": "llama", **SIZES[spec["size"]], **SHARED}, "optimizer": {"use": "adamw", "lr": 1e-3},
        "schedule": {"use": "wsd", "warmup": 10}, "batch_size": BATCH, "sequence_length": LENGTH,
        "budget": {"steps": spec["steps"]}, "max_repeats": 1000, "precision": spec["precision"],
        "compile": spec["compile"], "execution": {"device": spec["device"], "threads": spec["threads"]},
    }  # fmt: skip
    inputs = {name: {"path": f"{spec['folder']}/{name}"} for name in ("corpus", "tokeniser")}
    job = Job("base", config, "", 0, {}, {}, inputs, spec["run"], spec["channel"])
    slot("stage", config).build().run(Context(job, 0, 1))
    return {"imported": imported, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


# ── measuring ────────────────────────────────────────────────────────────────────────────────────────────────────


def rate(found: Mapping[str, Any]) -> float:
    """Tokens a second from the end of the `SKIPPED`-th step on."""
    ends = found["ends"][SKIPPED - 1 :]
    return (len(ends) - 1) * BATCH * LENGTH / (ends[-1] - ends[0])


def growth(found: Mapping[str, Any]) -> float:
    """Bytes above the imports, at the peak."""
    return found["peak"] - found["imported"]


def spread(values: list[float]) -> str:
    """Median, least and most."""
    return f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def measure(size: str, spec: dict[str, Any], arguments: argparse.Namespace) -> dict[str, list[float]]:
    """The ratios of each round, by goal."""
    trial = bare({**spec, "steps": SKIPPED + 10})
    steps = SKIPPED + max(10, round(arguments.seconds * rate(trial) / (BATCH * LENGTH)))
    found: dict[str, list[float]] = {}
    for number in range(arguments.rounds):
        one, other = bare({**spec, "steps": steps}), ours({**spec, "steps": steps})
        speed, memory = rate(other) / rate(one), growth(other) / growth(one)
        found.setdefault("speed, of the bare loop's", []).append(speed)
        found.setdefault("memory, of the bare loop's", []).append(memory)
        shown = f"bare {rate(one):9,.0f} tokens/s {growth(one) / 1e6:6,.0f} MB   "
        shown += (
            f"ours {rate(other):9,.0f} tokens/s {growth(other) / 1e6:6,.0f} MB   speed {speed:.3f} memory {memory:.3f}"
        )
        print(f"{size:>4} round {number + 1}, {steps} steps: {shown}", flush=True)
        if arguments.bf16:
            half = ours({**spec, "steps": steps, "precision": "bf16", "compile": True})
            found.setdefault("bf16 compiled, of our fp32", []).append(rate(half) / rate(other))
            first = half["ends"][SKIPPED - 1] - half["begun"] - SKIPPED * BATCH * LENGTH / rate(half)
            print(f"{size:>4} bf16 compiled {rate(half):9,.0f} tokens/s; starting and compiling took {first:.0f} s")
    return found


def has_bf16() -> bool:
    """Whether this CPU multiplies bf16 in hardware."""
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    return "avx512_bf16" in flags or "amx_bf16" in flags


def main() -> int:
    """Measure all sizes; 1 if a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sizes", default="1M,10M")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(child(json.loads(arguments.child))))
        return 0
    missed = False
    with tempfile.TemporaryDirectory(prefix="bench-pretrain-") as folder:
        tokens = prepare(Path(folder))
        spec = {
            "folder": folder, "tokens": str(tokens), "precision": "fp32", "compile": False,
            "threads": arguments.threads, "device": arguments.device,
        }  # fmt: skip
        for size in arguments.sizes.split(","):
            for goal, ratios in measure(size, {**spec, "size": size}, arguments).items():
                middle, wanted = statistics.median(ratios), GOALS[goal]
                met = middle <= wanted if goal.startswith("memory") else middle >= wanted
                if goal.startswith("bf16") and not has_bf16():
                    met = True
                missed |= not met
                print(f"{size:>4} {goal}: {spread(ratios)}; goal {wanted}: {'met' if met else 'MISSED'}", flush=True)
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
