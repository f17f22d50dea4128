"""`make bench-curation`: our curation beside datatrove, rensa and datasketch, the same work in one go.

    python tests/benchmarks/curation/bench.py [--corpus FILE.jsonl] [--peers PYTHON]

makes an environment of the peers' (`.venv-bench`, versions in requirements.txt) unless a Python that has them is named,
and a corpus of 44 MB from what CPython carries unless one is given, and prints tables in Markdown. Every job is a
process of its own; its time begins after imports and loading of models. Speeds are bytes of text by seconds on the
clock, and ratios are of processor time, which neighbours on the machine disturb less. The slow peers get the first
megabytes of the corpus, and we the same beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, islice
from pathlib import Path
from statistics import mean
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import corpus  # noqa: E402

from recipe_plugins.filters.rules.c4 import SENTENCE_END  # noqa: E402
from recipe_plugins.filters.splitting import UNICODE_WORD  # noqa: E402
from recipe_plugins.filters.text import plain  # noqa: E402

FEW, PART = 6_000_000, 8_000_000
"""Bytes for datatrove's filters as shipped, and for the slow deduplications."""
BINS = ((0.7, 0.8), (0.8, 0.9), (0.9, 1.01))
CLUSTER = 2_000
"""Pairs of a cluster that are looked at, at most."""
Found = dict[str, Any]


class Bench:
    """The files of a run, and how a job is started."""

    def __init__(self, folder: Path, peers: str, rows: Sequence[corpus.Row]) -> None:
        self.folder, self._peers = folder, peers
        parts = {"all": rows, "few": corpus.first(rows, FEW), "part": corpus.first(rows, PART)}
        parts["all with copies"] = corpus.with_copies(parts["all"])
        parts["part with copies"] = corpus.with_copies(parts.pop("part"))
        self.rows = parts
        self.files = {name: corpus.write(found, folder / f"{name}.jsonl") for name, found in parts.items()}

    def size(self, part: str) -> float:
        """Megabytes of text."""
        return sum(len(row["text"].encode()) for row in self.rows[part]) / 1e6

    def start(self, side: str, do: str, part: str, name: str = "job", **more: Any) -> subprocess.Popen[str]:
        """A job of `ours` or `peers`."""
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        job = {"do": do, "corpus": str(self.files[part]), "folder": str(folder), **more}
        (folder / "job.json").write_text(json.dumps(job))
        script, python = HERE / f"{side}.py", sys.executable if side == "ours" else self._peers
        environment = {key: value for key, value in os.environ.items() if side == "ours" or key != "PYTHONPATH"}
        words = [python, str(script), str(folder / "job.json")]
        return subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def run(self, side: str, do: str, part: str, **more: Any) -> Found:
        """A job's answer."""
        return answer(self.start(side, do, part, **more))


def answer(process: subprocess.Popen[str]) -> Found:
    """What a job says on its last line."""
    out, problems = process.communicate()
    if process.returncode:
        sys.exit(f"{process.args} failed:\n{problems[-3000:]}")
    return json.loads(out.strip().splitlines()[-1])


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Markdown."""
    print(f"\n**{title}**\n\n| {' | '.join(columns)} |\n|{' --- |' * len(columns)}")
    for row in rows:
        print(f"| {' | '.join(map(str, row))} |", flush=True)


def speed(size: float, found: Found) -> list[str]:
    """MB/s by the clock, MB a second of processor time, peak memory, and what of it came after the imports."""
    return [f"{size / found['seconds']:.2f}", f"{size / found['cpu']:.2f}",
            f"{found['peak'] / 1e6:.0f} MB", f"{found['above'] / 1e6:.0f} MB"]  # fmt: skip


SPEED = ("MB/s", "MB/CPU s", "peak", "above imports")


# ── reading and filters ──────────────────────────────────────────────────────────────────────────────────────────


def reading(bench: Bench) -> None:
    """JSON Lines."""
    size = bench.size("all")
    rows = [[side, *speed(size, bench.run(side, "read", "all"))] for side in ("ours", "peers")]
    table(f"Reading JSON Lines, {size:.0f} MB", ("", *SPEED), rows)


def filters(bench: Bench) -> None:
    """Gopher repetition and quality, C4, FineWeb quality."""
    given = {"words": UNICODE_WORD.pattern, "sentences": SENTENCE_END.pattern}
    rows = []
    for part, name, more in (("few", "as shipped", {}), ("all", "with our splitter", given)):
        ours, theirs = bench.folder / "ours.jsonl", bench.folder / "theirs.jsonl"
        mine = bench.run("ours", "filters", part, decisions=str(ours))
        peer = bench.run("peers", "filters", part, decisions=str(theirs), **more)
        size, count = bench.size(part), len(bench.rows[part])
        same = agreement(ours, theirs)
        rows.append([f"ours ({size:.0f} MB)", *speed(size, mine), f"{mine['kept']} of {count}", "", ""])
        rows.append([f"datatrove {name}", *speed(size, peer), f"{peer['kept']} of {count}",
                     f"{peer['cpu'] / mine['cpu']:.1f}×", f"{same} of {count}"])  # fmt: skip
    table("Filter chain", ("", *SPEED, "kept", "ratio", "same decision, reason and text"), rows)


def agreement(ours: Path, theirs: Path) -> int:
    """Documents on which two files of decisions say the same."""
    one, other = ({row["id"]: row for row in map(json.loads, file.open())} for file in (ours, theirs))
    return sum(row == other[name] for name, row in one.items())


# ── near duplicates ──────────────────────────────────────────────────────────────────────────────────────────────


def minhash(bench: Bench) -> None:
    """Speed, recall and false merges, on a part beside the slow peers, and on everything."""
    ours = {
        "ours, any candidate": {"threshold": 0},
        "ours, estimate ≥ 0.7": {"threshold": 0.7, "verify": False},
        "ours, verified ≥ 0.7 (default)": {"threshold": 0.7, "verify": True},
    }
    for part, peers in (("part with copies", ("datatrove", "rensa", "datasketch")), ("all with copies", ("rensa",))):
        size, truth = bench.size(part), Truth(bench.rows[part])
        clusters = bench.folder / "clusters.json"
        speeds, quality, first = [], [], None
        jobs = [(name, "ours", "minhash", {"config": config}) for name, config in ours.items()]
        for name, side, do, more in (*jobs, *((peer, "peers", peer, {}) for peer in peers)):
            found = bench.run(side, do, part, clusters=str(clusters), **more)
            first = first or found
            speeds.append([name, *speed(size, found), found["kept"], f"{found['cpu'] / first['cpu']:.1f}×"])
            quality.append([name, *truth.quality(json.loads(clusters.read_text()))])
        table(f"MinHash from file to file, 14×8, word 5-grams, {size:.0f} MB, {len(bench.rows[part])} documents",
              ("", *SPEED, "kept", "time of ours"), speeds)  # fmt: skip
        names = [f"[{low}, {min(high, 1)}{')' if high < 1 else ']'}" for low, high in BINS]
        promised = ["1 − (1 − s⁸)¹⁴", *truth.promised(), "", ""]
        table(f"Recall of {len(truth.pairs)} edited copies by true Jaccard index, and false merges (index below 0.5)",
              ("", *names, "pairs linked", "pairs in one cluster"), [promised, *quality])  # fmt: skip


class Truth:
    """The Jaccard index of sets of word 5-grams."""

    def __init__(self, rows: Sequence[corpus.Row]) -> None:
        self._texts = {row["id"]: row["text"] for row in rows}
        self._sets: dict[str, frozenset[int]] = {}
        copies = [name for name in self._texts if name.endswith("-copy")]
        self.pairs = [(name[: -len("-copy")], name) for name in copies]
        self._alike = {pair: self.jaccard(*pair) for pair in self.pairs}

    def jaccard(self, one: str, other: str) -> float:
        """Of two documents."""
        a, b = self._set(one), self._set(other)
        return len(a & b) / len(a | b)

    def _set(self, name: str) -> frozenset[int]:
        if name not in self._sets:
            words = plain(self._texts[name]).split()
            parts = [tuple(words[at : at + 5]) for at in range(max(1, len(words) - 4))]
            self._sets[name] = frozenset(map(hash, parts))
        return self._sets[name]

    def promised(self) -> list[str]:
        """What banding promises for the pairs of each bin."""
        return [
            f"{mean(1 - (1 - s**8) ** 14 for s in values):.3f}" for values in self._bins(lambda pair: True).values()
        ]

    def quality(self, clusters: Mapping[str, Any]) -> list[Any]:
        """Recall by bin, and false merges."""
        labels = clusters["labels"]
        hit = self._bins(lambda pair: labels[pair[0]] == labels[pair[1]])
        every = self._bins(lambda pair: True)
        recall = [f"{len(hit[each]) / len(every[each]):.3f} of {len(every[each])}" for each in BINS]
        linked = sum(self.jaccard(*pair) < 0.5 for pair in clusters["links"]) if clusters["links"] else "not told"
        return [*recall, linked, sum(self.jaccard(*pair) < 0.5 for pair in _together(labels))]

    def _bins(self, wanted: Any) -> dict[tuple[float, float], list[float]]:
        return {
            (low, high): [s for pair, s in self._alike.items() if low <= s < high and wanted(pair)]
            for low, high in BINS
        }


def _together(labels: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    clusters: dict[Any, list[str]] = defaultdict(list)
    for name, label in labels.items():
        clusters[label].append(name)
    for members in clusters.values():
        yield from islice(combinations(sorted(members), 2), CLUSTER)


# ── the whole stage ──────────────────────────────────────────────────────────────────────────────────────────────


def stage(bench: Bench) -> None:
    """Read, filter, deduplicate, mix, write: by one process, by two workers, and by two copies side by side."""
    size = bench.size("all")
    budget = int(size * 1e6 * 0.3)

    def start(name: str, workers: int) -> subprocess.Popen[str]:
        return bench.start("ours", "stage", "all", name, workers=workers, budget=budget)

    one = answer(start("one", 1))
    two = answer(start("two", 2))
    copies = [answer(process) for process in [start("left", 1), start("right", 1)]]
    slower = max(copies, key=lambda found: found["seconds"])
    both = {**slower, "cpu": sum(found["cpu"] for found in copies)}
    rows = [
        ["1 worker", *speed(size, one), ""],
        ["2 workers", *speed(size, two), f"{slower['seconds'] / 2 / two['seconds']:.2f}"],
        ["2 copies, 1 worker each", *speed(2 * size, both), ""],
    ]
    table(f"Whole stage: read, filter, dedup, mix, write; {size:.0f} MB in, {one['bytes'] / 1e6:.0f} MB out",
          ("", *SPEED, "of two copies"), rows)  # fmt: skip


# ── the run ──────────────────────────────────────────────────────────────────────────────────────────────────────


def environment(root: Path) -> str:
    """The Python of the peers' environment, made if it is not there."""
    python = root / ".venv-bench" / "bin" / "python"
    if not (root / ".venv-bench" / ".installed").is_file():
        subprocess.run([sys.executable, "-m", "venv", str(root / ".venv-bench")], check=True)
        install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*install, "-r", str(HERE / "requirements.txt")], check=True)
        (root / ".venv-bench" / ".installed").touch()
    return str(python)


def machine() -> str:
    """What it ran on."""
    kind = platform.processor() or platform.machine()
    cpus = [line for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    name = cpus[0].partition(":")[2].strip() if cpus else kind
    return f"{os.cpu_count()} × {name}, Python {platform.python_version()}, load {os.getloadavg()[0]:.1f} at the start"


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if os.path.exists(path) else []


def main() -> None:
    """Run all."""
    parser = argparse.ArgumentParser(description="our curation beside its peers")
    parser.add_argument("--corpus", help="JSON Lines with `text`; else one is made from what CPython carries")
    parser.add_argument("--peers", help="a Python that has requirements.txt; else .venv-bench is made")
    given = parser.parse_args()
    peers = given.peers or environment(HERE.parents[2])
    rows = corpus.given(given.corpus) if given.corpus else corpus.made()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), peers, rows)
        print(f"{len(rows)} documents, {bench.size('all'):.1f} MB, sha256 {corpus.digest(bench.files['all'])}…")
        print(f"{machine()}; {', '.join(islice(_pinned(), 9))}")
        for part in (reading, filters, minhash, stage):
            part(bench)


def _pinned() -> Iterator[str]:
    return (line.strip() for line in (HERE / "requirements.txt").read_text().splitlines() if "==" in line)


if __name__ == "__main__":
    main()
