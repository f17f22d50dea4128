"""Running a recipe: stage by stage, each in processes of its own, each result committed whole or gone on from.

`run` again *is* resume. The parent holds the lock of the key it works on, hands its descriptor to the workers, reads
their events, and alone writes files of the run. Its death ends the workers; a signal to it lets them save and leave.
"""

from __future__ import annotations

import os
import secrets
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import FrameType
from typing import Any

import yaml

from recipe_runner import identity
from recipe_runner.artifacts import Artifact
from recipe_runner.channel import Channel
from recipe_runner.components import Use, written
from recipe_runner.contract import Event, Launcher
from recipe_runner.errors import ExitCode, Interrupted, RecipeError, StageFailed, StoreError, UsageError
from recipe_runner.events import Listener, Listeners, RunLog, StageRecord
from recipe_runner.hookspecs import hookimpl
from recipe_runner.plan import Outlook, Reason
from recipe_runner.plugins import Plugins
from recipe_runner.recipe import Recipe
from recipe_runner.store import SCHEMA, Store, describe, store_errors, write_json
from recipe_runner.worker import Job

LIBRARIES = ("torch", "transformers", "peft", "trl", "datasets", "tokenizers", "safetensors", "accelerate", "numpy")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the command line says about a run, beyond the recipe."""

    until: str = ""
    only: str = ""
    force: tuple[str, ...] = ()
    restart: tuple[str, ...] = ()
    wait: bool = True
    allow_remote_code: bool = False


@dataclass(slots=True)
class StageResult:
    """What became of a stage in this run. `status` is `cached`, `built`, `failed` or `interrupted`."""

    status: str
    key: str = ""
    path: str = ""
    reasons: list[str] = field(default_factory=list)
    seconds: float = 0.0


class Run:
    """One run of a recipe in a store."""

    def __init__(
        self, recipe: Recipe, store: Store, plugins: Plugins, options: Options, listeners: Sequence[Listener] = ()
    ) -> None:
        self.recipe, self.store, self.plugins, self.options = recipe, store, plugins, options
        self.outlook = Outlook(recipe, store)
        self.id = f"{datetime.now(UTC):%Y%m%dT%H%M%S-%f}{secrets.token_hex(2)}"
        self.folder = store.root / "runs" / recipe.name / self.id
        self.results: dict[str, StageResult] = {}
        self.made: dict[str, Artifact] = {}
        self.status = "running"
        self._restarted: set[str] = set()
        self._given = list(listeners)
        self._started = time.time()
        self._stop: Callable[[], None] | None = None
        self._signalled = False

    # ── the whole ────────────────────────────────────────────────────────────────────────────────────────────────

    def execute(self) -> Mapping[str, Artifact]:
        """Run what is to run; raises the first failure. `run.json` tells the state at any time."""
        if os.name == "nt":
            raise UsageError("recipe run needs Linux or macOS", next="check, plan and show work here; run it in WSL")
        names = self._wanted()
        trackers = [use.build().on_event for use in self.recipe.trackers.values()]
        with store_errors(f"cannot write to the store {self.store.root}"):
            self.folder.mkdir(parents=True)
            log = RunLog(self.folder)
            resolved = yaml.safe_dump(self.recipe.resolved(), sort_keys=False, allow_unicode=True)
            (self.folder / "recipe.resolved.yaml").write_text(resolved, encoding="utf-8")
        self.tell = Listeners([log, *self._given, *trackers, *self.plugins.listeners()])
        try:
            with self._signals():
                self._save("running")
                self.tell(Event("run-started", data={"recipe": self.recipe.name, "run": self.id}))
                for name in names:
                    self._stage(name)
            self._save("finished")
        except BaseException as error:
            with suppress(StoreError):  # the first error is the one to show
                self._save("interrupted" if isinstance(error, (Interrupted, KeyboardInterrupt)) else "failed")
            raise
        finally:
            seconds = round(time.time() - self._started, 1)
            self.tell(Event("run-finished", data={"status": self.status, "seconds": seconds}))
            log.close()
        return self.made

    def _wanted(self) -> list[str]:
        """The stages to go through, in order; raises `UsageError` for a name that is no stage, or not among them."""
        options, again = self.options, (*self.options.force, *self.options.restart)
        last = options.only or options.until
        self.recipe.require((*([last] if last else ()), *again))
        needed = {last} if last else set(self.recipe.stages)
        for name in reversed(self.recipe.stages):
            if name in needed:
                needed |= set(self.recipe.upstream(name))
        left_out = [name for name in again if name not in ({options.only} if options.only else needed)]
        if left_out or (options.only and options.until):
            what = f"--force or --restart {left_out[0]}" if left_out else "--only and --until"
            raise UsageError(f"{what}: this run does not get to that", next="leave one of the options out")
        return [name for name in self.recipe.stages if name in needed]

    def _save(self, status: str) -> None:
        self.status = status
        stages = {name: asdict(result) for name, result in self.results.items()}
        started = datetime.fromtimestamp(self._started, UTC).isoformat(timespec="seconds")
        run = {
            "schema": SCHEMA, "recipe": self.recipe.name, "file": str(self.recipe.file), "run": self.id,
            "overrides": list(self.recipe.overrides), "started": started, "status": status,
            "seconds": round(time.time() - self._started, 1), "stages": stages,
        }  # fmt: skip
        with store_errors(f"cannot write to the store {self.store.root}"):
            write_json(self.folder / "run.json", run)

    # ── one stage ────────────────────────────────────────────────────────────────────────────────────────────────

    def _stage(self, name: str) -> None:
        self._leave_if_asked()
        use = self.recipe.stages[name]
        payload = self.outlook.payload(name, self.made)
        assert payload is not None, "stages run after their inputs"
        key = identity.key_of(payload)
        found = self.store.find(use.component.name, key)
        if found.artifact and name not in self.options.force:
            self._cached(name, key, found.artifact)
            return
        if self.options.only and name != self.options.only:
            raise UsageError(
                f"stage {name!r} is not built, and --only {self.options.only} needs it",
                next=f"--until {self.options.only} builds it too",
            )
        with self._locked(name, key) as lock:
            again = self.store.find(use.component.name, key)
            if again.artifact and not found.artifact:  # the run that was waited for has built it
                self._cached(name, key, again.artifact)
                return
            if name in self.options.restart:
                self.store.discard(use.component.name, key)
                self._restarted.add(name)
            reasons = self.outlook.reasons(name, payload, again.why, name in self.options.force)
            self._build(name, use, payload, reasons, lock)

    def _cached(self, name: str, key: str, artifact: Artifact) -> None:
        self.made[name] = artifact
        self.results[name] = StageResult("cached", key, str(artifact.path))
        self._save("running")
        self.tell(Event("stage-cached", name, {"path": str(artifact.path), "key": key}))

    def _locked(self, name: str, key: str) -> AbstractContextManager[int]:
        since = datetime.now(UTC).isoformat(timespec="seconds")
        holder = {"pid": os.getpid(), "recipe": self.recipe.name, "stage": name, "run": self.id, "since": since}
        said = ""

        def wait(other: Mapping[str, Any]) -> None:
            nonlocal said
            self._leave_if_asked()
            if describe(other) != said:
                said = describe(other)
                self.tell(Event("stage-waiting", name, {"holder": said}))

        return self.store.lock(key, holder, wait if self.options.wait else None)

    def _build(
        self, name: str, use: Use[Any], payload: Mapping[str, Any], reasons: Sequence[Reason], lock: int
    ) -> None:
        key, started = identity.key_of(payload), time.monotonic()
        told = [str(reason) for reason in reasons]
        result = self.results[name] = StageResult("running", key, reasons=told)
        self._save("running")  # so that gc knows, whatever ends this process
        result.status = "failed"
        manifest = None  # there already if a kill came between it and the rename
        if not self.store.unfinished_commit(use.component.name, key):
            partial = self.store.prepare(use.component.name, key, self._execution(name))
            self.tell(Event("stage-started", name, {"reason": ", ".join(told), "key": key, "path": str(partial)}))
            record = self._work(name, use, payload, partial, lock)
            manifest = lambda: self._manifest(name, use, payload, record, started)  # noqa: E731
        artifact = self.store.commit(use.component.name, key, manifest)
        seconds = round(time.monotonic() - started, 2)
        self.made[name] = artifact
        self.results[name] = StageResult("built", key, str(artifact.path), told, seconds)
        self._save("running")
        self.tell(Event("stage-finished", name, {"path": str(artifact.path), "seconds": seconds}))

    def _work(self, name: str, use: Use[Any], payload: Mapping[str, Any], partial: Path, lock: int) -> StageRecord:
        """Have the stage make its payload, inside the plugins' hooks; what it told is on disk however it ends."""
        with store_errors(f"stage {name}: its record cannot be written"):
            record = StageRecord(partial)
        try:
            self._through_hooks(name, use, lambda: self._launch(name, use, payload, partial, record, lock))
        except (Interrupted, KeyboardInterrupt):
            self.results[name].status = "interrupted"
            self.tell(Event("stage-interrupted", name))
            raise
        except Exception as error:
            shown = error.render() if isinstance(error, RecipeError) else repr(error)
            self.tell(Event("stage-failed", name, {"error": shown}))
            raise
        finally:
            with store_errors(f"stage {name}: its record cannot be written"):
                record.close()
        return record

    def _through_hooks(self, name: str, use: Use[Any], action: Callable[[], None]) -> None:
        """Call the stage inside the plugins' `run_stage` wrappers."""

        class Core:
            @hookimpl
            def run_stage(self, stage: str, use: str) -> bool:
                action()
                return True

        core = Core()
        self.plugins.manager.register(core)
        try:
            self.plugins.hook.run_stage(stage=name, use=use.component.identity)
        finally:
            self.plugins.manager.unregister(core)

    def _execution(self, name: str) -> dict[str, Any]:
        return {"execution": self.recipe.config(name).execution.model_dump(mode="json"), "cpus": os.cpu_count()}

    def _manifest(
        self, name: str, use: Use[Any], payload: Mapping[str, Any], record: StageRecord, started: float
    ) -> dict[str, Any]:
        folder = self.store.partial(use.component.name, identity.key_of(payload))
        files = identity.folder_files(folder / "payload")
        return {
            "schema": SCHEMA, "type": self.recipe.config(name).produces().type, "use": use.component.identity,
            "key": identity.key_of(payload), "digest": identity.digest_of(files), "identity": payload,
            "config": written(use), "files": files, "facts": record.facts, "warnings": record.warnings,
            "execution": self._execution(name), "versions": versions(self.plugins),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - started, 2),
        }  # fmt: skip

    # ── the processes of a stage ─────────────────────────────────────────────────────────────────────────────────

    def _launch(
        self, name: str, use: Use[Any], payload: Mapping[str, Any], partial: Path, record: StageRecord, lock: int
    ) -> None:
        with Channel(lambda event: self._heard(event, record), record.flush) as channel:
            job = Job(
                stage=name, config=written(use), key=identity.key_of(payload), seed=self.recipe.seed_of(name),
                digests=payload["inputs"], sources=payload["sources"], inputs=self._inputs(name, payload["inputs"]),
                folder=str(partial), channel=str(channel.folder), disabled=self.plugins.disabled,
                allow_remote_code=self.options.allow_remote_code,
            )  # fmt: skip
            write_json(channel.folder / "job.json", asdict(job))
            execution = self.recipe.config(name).execution
            launcher: Launcher = execution.launcher.build()
            self._stop = channel.stop
            if self._signalled:
                channel.stop()
            try:
                status = launcher.launch(channel.folder / "job.json", execution, (lock,))
            finally:
                self._stop = None
            channel.drain()
            failure = channel.failure()
        self._judge(name, status, failure, partial)

    def _heard(self, event: Event, record: StageRecord) -> None:
        record(event)
        self.tell(event)

    def _inputs(self, name: str, digests: Mapping[str, str]) -> dict[str, dict[str, str]]:
        refs = identity.inputs(self.recipe.config(name))
        return {
            ref.text: {"path": str(self.made[ref.text].path)} if ref.where == "stage" else {"digest": digests[path]}
            for path, ref in refs.items()
        }

    def _judge(self, name: str, status: int, failure: Mapping[str, Any] | None, partial: Path) -> None:
        again = f"to continue: {self.command()}"
        if status == 0:
            if not any(path.is_file() for path in (partial / "payload").rglob("*")):
                raise StageFailed(f"stage {name} ended without a word in its payload", next="it is its plugin's defect")
            return
        if failure is None and (status == ExitCode.INTERRUPTED or self._signalled):
            raise Interrupted(f"stage {name} was interrupted; what it saved is kept", next=again)
        if failure is None or status < 0:  # what others say of a rank that was killed is not what happened
            how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status} and no word"
            what = f": a worker {how}"
        else:
            what = (
                f": {failure['shown']}"
                if failure["shown"]
                else f" failed on rank {failure['rank']}:\n{failure['traceback']}"
            )
        raise StageFailed(f"stage {name}{what}", next=f"logs: {partial / 'logs'}\n{again}")

    def command(self) -> str:
        """The command that continues this run.

        A stage that was restarted goes on from what it has made since; those that the run did not get to are named.
        """
        import shlex

        options, words = self.options, ["recipe"]
        for name in self.plugins.disabled:
            words += ["-p", f"no:{name}"]
        words += ["run", str(self.recipe.file), *self.recipe.overrides]
        store = "" if self.store.root == Path.cwd() / ".recipe" else str(self.store.root)
        forced = [("--force", name) for name in options.force if name not in self.made]
        fresh = [("--restart", name) for name in options.restart if name not in {*self.made, *self._restarted}]
        for flag, value in [("--store", store), ("--until", options.until), ("--only", options.only), *forced, *fresh]:
            words += [flag, value] if value else []
        words += ["--no-wait"] * (not options.wait) + ["--trust-remote-code"] * options.allow_remote_code
        return shlex.join(words)

    def _leave_if_asked(self) -> None:
        if self._signalled:
            raise Interrupted("interrupted between stages", next=f"to continue: {self.command()}")

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """The first SIGINT or SIGTERM lets the stage save and leave; the second leaves at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def on_signal(number: int, frame: FrameType | None) -> None:
            if self._signalled:
                raise KeyboardInterrupt
            self._signalled = True
            os.write(2, b"stopping: the stage saves its state; again to leave at once\n")  # print cannot be re-entered
            if self._stop:
                self._stop()

        before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def versions(plugins: Plugins) -> dict[str, str]:
    """Versions of Python, of the libraries that numbers depend on, and of the active plugins."""
    found = {"python": sys.version.split()[0], **plugins.versions()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
