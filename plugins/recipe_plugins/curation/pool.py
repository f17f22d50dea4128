"""Units of work in processes of their own, or in this one.

The one idea: work comes as chains; within a chain a unit starts when the one before it has ended, chains run side by
side. A unit is the name of a method and its arguments, called on an object that each process builds once. Results
never depend on which process ran what.
Guarantees: a worker ends at once when this process does, however it ends; a worker that dies is an error, not a wait.
"""

from __future__ import annotations

import multiprocessing as mp
import os
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

from recipe_runner import Interrupted, RecipeError

Unit = tuple[str, tuple[Any, ...]]
"""A method's name and its arguments."""
Chain = Generator[Unit, Any, None]
"""Yields a unit, is sent its result, yields the next."""
T = TypeVar("T")

PATIENCE = 0.25
"""Seconds between two looks at whether to stop."""


class Pool:
    """`setup()` is called once in each process; `stopping()`, and `told(ended, chains)`, between units."""

    def __init__(self, setup: Callable[[], Any], workers: int, stopping: Callable[[], bool]) -> None:
        self._setup, self._size, self._stopping = setup, workers, stopping
        self._workers: list[_Worker] = []
        self._here: Any = None

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.process.kill()  # what it was at is thrown away; nothing is half written
            worker.process.join()
            worker.pipe.close()
        self._workers = []

    def run(self, chains: Iterable[Chain], told: Callable[[int, int], None]) -> None:
        """Run all chains to their ends. Raises what a unit raised, and `Interrupted` when told to stop."""
        started = ((chain, next(chain, None)) for chain in chains)
        waiting = deque((chain, unit) for chain, unit in started if unit is not None)
        if self._size == 1 or len(waiting) < 2:
            self._run_here(waiting, told)
        else:
            self._run_there(waiting, told)

    def _run_here(self, waiting: deque[tuple[Chain, Unit]], told: Callable[[int, int], None]) -> None:
        self._here = self._here or self._setup()
        total = len(waiting)
        for number, (chain, first) in enumerate(waiting, 1):
            unit: Unit | None = first
            while unit is not None:
                self._halt()
                unit = _send(chain, getattr(self._here, unit[0])(*unit[1]))
                told(number - (unit is not None), total)

    def _run_there(self, waiting: deque[tuple[Chain, Unit]], told: Callable[[int, int], None]) -> None:
        total = len(waiting)
        idle = self._started(min(self._size, total))
        busy: dict[_Worker, Chain] = {}
        while waiting or busy:
            self._halt()
            while idle and waiting:
                chain, unit = waiting.popleft()
                worker = idle.pop()
                worker.give(unit)
                busy[worker] = chain
            for worker in _answering(busy):
                chain = busy.pop(worker)
                following = _send(chain, worker.take())
                idle.append(worker)
                if following is not None:
                    waiting.appendleft((chain, following))
                told(total - len(waiting) - len(busy), total)

    def _started(self, count: int) -> list[_Worker]:
        while len(self._workers) < count:
            self._workers.append(_Worker(self._setup))
        return self._workers[:count]

    def _halt(self) -> None:
        if self._stopping():
            raise Interrupted("interrupted; every finished piece is kept")


class _Worker:
    """A process and this end of the pipe to it."""

    def __init__(self, setup: Callable[[], Any]) -> None:
        context = mp.get_context("spawn")  # a fork would copy locks of threads that do not exist in the child
        self.pipe, there = context.Pipe()
        self.process = context.Process(target=_serve, args=(there, setup), daemon=True)
        self.process.start()
        there.close()
        self.unit: Unit = ("", ())

    def give(self, unit: Unit) -> None:
        """Send a unit of work."""
        self.unit = unit
        self.pipe.send(unit)

    def take(self) -> Any:
        """The unit's result, or its error raised here."""
        try:
            result, error = self.pipe.recv()
        except (EOFError, ConnectionResetError):
            self.process.join()
            raise RecipeError(
                f"a worker died at {self.unit[0]}{self.unit[1]} (exit status {self.process.exitcode})",
                next="-9 is often the machine out of memory: lower execution.workers; run again to continue",
            ) from None
        if error is not None:
            raise error
        return result


def _answering(busy: Iterable[_Worker]) -> list[_Worker]:
    by_pipe = {worker.pipe: worker for worker in busy}
    return [by_pipe[pipe] for pipe in wait(list(by_pipe), timeout=PATIENCE)]  # type: ignore[index]


def _send(chain: Generator[T, Any, None], result: Any) -> T | None:
    try:
        return chain.send(result)
    except StopIteration:
        return None


def _serve(pipe: Connection, setup: Callable[[], Any]) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the parent decides, and ends this process when it stops
    threading.Thread(target=_end_with_parent, daemon=True).start()
    worker, broken = _outcome(setup, ())
    while True:
        try:
            name, arguments = pipe.recv()
        except EOFError:
            return
        pipe.send((None, broken) if broken else _outcome(getattr(worker, name), arguments))


def _outcome(call: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[Any, Exception | None]:
    try:
        return call(*arguments), None
    except RecipeError as error:
        return None, error
    except Exception:
        return None, RuntimeError("in a worker:\n" + traceback.format_exc())


def _end_with_parent() -> None:
    parent = mp.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
