"""How a piece of work is told and measured, the same for our side and for the peers' (imports nothing but Python).

A job is a JSON file: `{"do": name, "corpus": JSON Lines, "folder": scratch, …}`; its answer goes to standard output's
last line. `measured` times the work alone, after imports; memory is the process's peak, and what of it came after them.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

Row = dict[str, str]


def rows(path: str) -> Iterator[Row]:
    """The documents of a file."""
    with open(path, encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def measured(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What the work returns, with `seconds`, `cpu` (seconds of all its processes), `peak` and `above` (bytes)."""
    before, cpu, start = peak(), _cpu(), time.perf_counter()
    found = work()
    seconds = time.perf_counter() - start
    return {**found, "seconds": seconds, "cpu": _cpu() - cpu, "peak": peak(), "above": peak() - before}


def peak() -> int:
    """Bytes of the largest of this process and its children so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return max(_own(unit), unit * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)


def _own(unit: int) -> int:
    # Linux counts into a process's ru_maxrss what the one that started it had; VmHWM starts with the program.
    if sys.platform != "linux":
        return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with open("/proc/self/status", encoding="ascii") as status:
        return 1024 * next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))


def _cpu() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def answer(jobs: dict[str, Callable[[dict[str, Any]], dict[str, Any]]]) -> None:
    """Do the job of the file named on the command line."""
    with open(sys.argv[1], encoding="utf-8") as file:
        job = json.load(file)
    print("\n" + json.dumps(jobs[job["do"]](job)))
