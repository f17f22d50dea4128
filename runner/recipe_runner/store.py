"""Where artifacts live: folders addressed by key, committed whole or not at all.

Guarantees: a folder `artifacts/<use>/<key12>` exists exactly when its stage is complete; it is never changed after.
A stage writes `<key12>.partial/`, which is kept when it ends early and gone on from. Commit = every file synced, the
manifest written last, `work/` removed, the folder renamed; a kill between these steps is finished by the next run.
A key has one lock, an OS file lock that lives as long as any process of its stage. Nothing is deleted but by `gc`.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TextIO

from recipe_runner import identity
from recipe_runner.artifacts import TYPES, Adapter, Artifact, Model
from recipe_runner.components import Ref
from recipe_runner.errors import RecipeError, StoreBusy, StoreError, UsageError

MANIFEST = "manifest.json"
SCHEMA = 1


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file so that it is either whole or absent, and on disk when this returns."""
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "w", encoding="utf-8", errors="backslashreplace") as file:  # JSON writes lone surrogates so
        json.dump(value, file, indent=1, ensure_ascii=False, allow_nan=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync_folder(path.parent)


def read_json(path: Path) -> Any:
    """The value of a JSON file; `None` where it is absent or torn."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def sync_folder(folder: Path) -> None:
    """Make renames and new files in a folder durable."""
    if os.name == "nt":  # a folder cannot be opened there
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def disk_errors(doing: str) -> Iterator[None]:
    """Turn a full or read-only disk into an error for people; any other `OSError` is left as it is."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise
        with store_errors(doing):
            raise


@contextmanager
def store_errors(doing: str) -> Iterator[None]:
    """Turn whatever the file system refuses to the store into an error for people."""
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"{doing}: {error.strerror or error} ({error.filename or 'no path'})",
            next="nothing is lost: free space or fix permissions, then run the same command again; or use --store DIR",
        ) from error


@dataclass(frozen=True, slots=True)
class Found:
    """What a look-up gives: the artifact, or `why` there is none (`no-artifact`, `missing-files`)."""

    artifact: Artifact | None
    why: str = ""


class Store:
    """A folder of artifacts and runs."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()

    def folder(self, use: str, key: str) -> Path:
        """Where the artifact of a key lies, or would."""
        return self.root / "artifacts" / use / key[:12]

    def partial(self, use: str, key: str) -> Path:
        """Where a stage works until it commits."""
        folder = self.folder(use, key)
        return folder.with_name(folder.name + ".partial")

    def find(self, use: str, key: str) -> Found:
        """The committed artifact of a key; every listed file must be there at its size."""
        folder = self.folder(use, key)
        if not folder.is_dir():
            return Found(None, "no-artifact")
        manifest = whole_manifest(folder, key)
        return Found(artifact_at(folder, manifest)) if manifest else Found(None, "missing-files")

    def prepare(self, use: str, key: str, execution: Mapping[str, Any]) -> Path:
        """The partial folder of a key, made or found, with a record of how it runs.

        Raises `UsageError` for one that other ranks have begun: what they saved is theirs.
        """
        partial = self.partial(use, key)
        record = {"key": key, **execution}
        before = read_json(partial / "execution.json") or record
        if before.get("key", key) != key:  # another key with the same first digits
            self.discard(use, key)
        elif (ranks := before["execution"]["processes"]) != record["execution"]["processes"] and any(
            partial.glob("work/*")
        ):
            raise UsageError(
                f"{partial} was begun by {ranks} processes, which alone can go on with it",
                next=f"set execution.processes={ranks} as before, or give it up with --restart STAGE",
            )
        with store_errors(f"cannot write to the store {self.root}"):
            for name in ("payload", "work", "logs"):
                (partial / name).mkdir(parents=True, exist_ok=True)
            write_json(partial / "execution.json", record)
        return partial

    def discard(self, use: str, key: str) -> None:
        """Set a partial aside, for `--restart`; `gc` removes it."""
        partial = self.partial(use, key)
        if partial.is_dir():
            os.replace(partial, _free_name(partial.with_name(partial.name.removesuffix(".partial") + ".old")))

    def unfinished_commit(self, use: str, key: str) -> bool:
        """Whether a kill came between the manifest and the rename."""
        return whole_manifest(self.partial(use, key), key) is not None

    def commit(self, use: str, key: str, manifest: Callable[[], Mapping[str, Any]] | None) -> Artifact:
        """Finish a partial: sync, manifest, remove `work/`, rename. `None` finishes an interrupted commit."""
        partial, folder = self.partial(use, key), self.folder(use, key)
        with store_errors(f"cannot commit {folder}"):
            if manifest is not None:
                for path in partial.iterdir():
                    if path.is_dir() and path.name != "work":
                        _sync_tree(path)
                write_json(partial / MANIFEST, manifest())
            shutil.rmtree(partial / "work", ignore_errors=True)
            if folder.exists():
                os.replace(folder, _free_name(folder.with_name(folder.name + ".old")))
            os.replace(partial, folder)
            sync_folder(folder.parent)
        found = self.find(use, key).artifact
        assert found is not None
        return found

    def artifacts(self) -> Iterator[Path]:
        """The folders of all committed artifacts, set-aside ones not among them."""
        for manifest in sorted(self.root.glob(f"artifacts/*/*/{MANIFEST}")):
            if "." not in manifest.parent.name:
                yield manifest.parent

    def runs(self, recipe: str = "*") -> list[Path]:
        """The folders of runs, oldest first."""
        return sorted((path.parent for path in self.root.glob(f"runs/{recipe}/*/run.json")), key=lambda p: p.name)

    @contextmanager
    def lock(
        self, key: str, holder: Mapping[str, Any], wait: Callable[[Mapping[str, Any]], None] | None
    ) -> Iterator[int]:
        """Hold the lock of a key; gives the descriptor that the stage's processes must inherit.

        While it must wait, `wait` is called with the other holder every now and then; without it, raises `StoreBusy`.
        """
        folder = self.root / "locks"
        with store_errors(f"cannot write to the store {self.root}"):
            folder.mkdir(parents=True, exist_ok=True)
            file = open(folder / f"{key[:12]}.lock", "a+", encoding="utf-8")  # noqa: SIM115  (closed below)
        with file:
            _acquire(file, folder / f"{key[:12]}.json", wait)
            with store_errors(f"cannot write to the store {self.root}"):
                write_json(folder / f"{key[:12]}.json", holder)
            try:
                yield file.fileno()
            finally:
                (folder / f"{key[:12]}.json").unlink(missing_ok=True)


def read_run(folder: Path) -> dict[str, Any] | None:
    """`run.json` of a run's folder; a run that says `running` and holds its event log no more was `killed`."""
    run = read_json(folder / "run.json")
    if run and run["status"] == "running" and not _is_held(folder / "events.jsonl"):
        run["status"] = "killed"
    return run


def hold(file: IO[Any]) -> None:
    """Hold the OS lock of an open file, as long as it is open."""
    import fcntl

    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _is_held(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            hold(file)
    except BlockingIOError:
        return True
    except (OSError, ImportError):  # there is no such file, or this system has no such locks
        return False
    return False


def _acquire(file: TextIO, beside: Path, wait: Callable[[Mapping[str, Any]], None] | None) -> None:
    while True:
        try:
            hold(file)
            return
        except BlockingIOError:
            holder = read_json(beside) or {}
            if wait is None:
                raise StoreBusy(
                    f"another run is at work on this stage: {describe(holder)}",
                    next="leave out --no-wait to wait for it",
                ) from None
            wait(holder)
            time.sleep(0.1)


def describe(holder: Mapping[str, Any]) -> str:
    """Who holds a lock, for people."""
    if not holder:
        return "a run that is starting or ending"
    return "process {pid} running {recipe!r}, stage {stage!r}, since {since}".format_map(holder)


def whole_manifest(folder: Path, key: str) -> Mapping[str, Any] | None:
    """The manifest of a folder that holds this key and every file it lists, each at its size.

    Raises `StoreError` for one that another version of this project wrote.
    """
    manifest = read_json(folder / MANIFEST)
    if not isinstance(manifest, dict) or manifest.get("key") != key:
        return None
    if manifest.get("schema") != SCHEMA:
        what = f"{folder} has format {manifest.get('schema')}, which this version of recipe-runner does not read"
        raise StoreError(what, next="upgrade recipe-runner, or use another --store")
    files = manifest["files"]
    return manifest if all(_has_size(folder / "payload" / f["path"], f["size"]) for f in files) else None


def _has_size(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size
    except OSError:
        return False


def _free_name(base: Path) -> Path:
    number = 1
    while (path := base.with_name(f"{base.name}-{number}")).exists():
        number += 1
    return path


def _sync_tree(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
        else:
            sync_folder(path)
    sync_folder(folder)


# ── artifacts that are not of this store ─────────────────────────────────────────────────────────────────────────


def artifact_at(folder: Path, manifest: Mapping[str, Any]) -> Artifact:
    """The typed handle of a committed folder."""
    return TYPES.get(manifest["type"], Artifact)(folder, manifest["digest"], manifest)


def artifact_type(folder: Path) -> type[Artifact] | None:
    """What a folder is by its manifest; `None` for one that no stage has made."""
    manifest = read_json(folder / MANIFEST)
    return TYPES.get(manifest.get("type", "")) if isinstance(manifest, dict) else None


def foreign_digest(ref: Ref, cache: Path) -> str:
    """The digest of an input from outside the recipe: a revision, a manifest's digest, or that of the files.

    Raises `RecipeError` when a path does not exist.
    """
    if ref.where == "hub":
        return f"hub:{ref.text}"
    folder = Path(ref.text)
    if not folder.is_dir():
        raise RecipeError(f"there is no folder {folder}", next="a model, tokeniser or adapter is given as its folder")
    manifest = read_json(folder / MANIFEST)
    if isinstance(manifest, dict) and "digest" in manifest:
        return str(manifest["digest"])
    return identity.digest_of(
        [_cached_digest(path, folder, cache) for path in sorted(folder.rglob("*")) if path.is_file()]
    )


def _cached_digest(path: Path, folder: Path, cache: Path) -> dict[str, str]:
    """A file's digest, remembered by its path, size and time of change."""
    status = path.stat()
    name = identity.sha256(f"{path.resolve()}\0{status.st_size}\0{status.st_mtime_ns}")[:32]
    digest = read_json(cache / name)
    if digest is None:
        digest = identity.file_digest(path)
        with suppress(OSError):  # only to save time, and `plan` works on a store that cannot be written
            cache.mkdir(parents=True, exist_ok=True)
            write_json(cache / name, digest)
    return {"path": path.relative_to(folder).as_posix(), "sha256": digest}


def open_foreign(ref: Ref, digest: str) -> Artifact:
    """The artifact behind a path or a hub name; the latter comes at its revision, from the hub or its cache."""
    folder = Path(ref.text) if ref.where == "path" else _fetched(ref)
    manifest = read_json(folder / MANIFEST)
    if isinstance(manifest, dict) and "digest" in manifest:
        return artifact_at(folder, manifest)
    wanted = ref.types or (Model,)
    is_adapter = (folder / "adapter_config.json").is_file()
    cls = Adapter if is_adapter and Adapter in wanted else next(t for t in (*wanted, Model) if t is not Adapter)
    return cls(folder, digest, {})


def _fetched(ref: Ref) -> Path:
    from huggingface_hub import snapshot_download

    name, _, revision = ref.text.partition("@")
    try:
        return Path(snapshot_download(name, revision=revision or None))
    except Exception as error:  # the hub's client raises many families; each is the same news to a user
        raise RecipeError(
            f"{ref.text} cannot be fetched: {error}",
            next="check the name and the network, or give the path of a local copy",
        ) from error
