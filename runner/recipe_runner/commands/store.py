"""What looks after a store: `recipe runs`, `verify` and `gc`."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from recipe_runner import identity
from recipe_runner.commands import answer
from recipe_runner.errors import ExitCode, StoreBusy
from recipe_runner.store import MANIFEST, Store, read_json, read_run, store_errors


def list_runs(root: Path, json: bool) -> None:
    """The runs of a store, oldest first."""
    facts = [{**(read_run(folder) or {}), "folder": str(folder)} for folder in Store(root).runs()]
    answer(json, f"runs in {root}", facts, "recipe, run, status, started, seconds")


def _folders(root: Path) -> list[Path]:
    """Everything that lies where artifacts do: complete, partial and set aside."""
    return sorted(path for path in root.glob("artifacts/*/*") if path.is_dir())


def verify(root: Path, paths: Sequence[Path], json: bool) -> None:
    """Hash artifacts again, all of the store's by default; exits 1 if one is damaged."""
    folders = list(paths) or [folder for folder in _folders(root) if "." not in folder.name]
    facts = [{"path": str(folder), "found": damage(folder) or "ok"} for folder in folders]
    answer(json, "artifacts", facts, "path, found")
    if any(fact["found"] != "ok" for fact in facts):
        raise SystemExit(ExitCode.STAGE_FAILED)


def damage(folder: Path) -> list[str]:
    """What is wrong with an artifact, in words."""
    manifest = read_json(folder / MANIFEST)
    if not isinstance(manifest, dict):
        return [f"{MANIFEST} is missing or torn"]
    lists = (manifest["files"], identity.folder_files(folder / "payload"))
    listed, found = ({entry["path"]: entry["sha256"] for entry in files} for files in lists)
    what = {path: "missing" if path not in found else "changed" if path in listed else "not listed in the manifest"
            for path in sorted({*listed, *found}) if listed.get(path) != found.get(path)}  # fmt: skip
    sound = identity.digest_of(manifest["files"]) == manifest["digest"]
    sound &= identity.key_of(manifest["identity"]) == manifest["key"]
    return [f"{path}: {word}" for path, word in what.items()] + [f"{MANIFEST}: changed"] * (not sound)


def collect(root: Path, keep_last: int, yes: bool, json: bool) -> None:
    """Remove what no kept run names; without `yes`, say what that would be."""
    store = Store(root)
    kept = wanted_keys(store, keep_last)
    facts = [{"path": str(path), "why": why, "bytes": _size(path), "outcome": _remove(store, path, yes)}
             for path in _folders(store.root) if (why := _why_removed(path, kept))]  # fmt: skip
    answer(json, "garbage" if yes else "garbage; --yes removes it", facts, "path, why, bytes, outcome")


def wanted_keys(store: Store, keep_last: int) -> set[str]:
    """Keys (12 digits) named by the newest `keep_last` finished runs of each recipe, and by every run after those.

    A run that was asked for a part of its recipe (`--until`, `--only`) is not a finished one.
    """
    finished: Counter[str] = Counter()
    kept: set[str] = set()
    for folder in reversed(store.runs()):
        run = read_json(folder / "run.json")
        if finished[folder.parent.name] < keep_last:
            kept |= {stage["key"][:12] for stage in run["stages"].values()}
        finished[folder.parent.name] += run["status"] == "finished" and _whole(folder, run)
    return kept


def _whole(folder: Path, run: Mapping[str, Any]) -> bool:
    """Whether a run went through every stage of its recipe."""
    recipe = yaml.safe_load((folder / "recipe.resolved.yaml").read_text(encoding="utf-8"))
    return set(recipe["stages"]) <= set(run["stages"])


def _why_removed(path: Path, kept: set[str]) -> str:
    key, _, state = path.name.partition(".")
    if state.startswith("old-"):
        return "set aside"
    return "" if key in kept else "left unfinished" if state else "no kept run names it"


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _remove(store: Store, path: Path, yes: bool) -> str:
    """Remove a folder under its key's lock; a locked one stays. Renamed first, so that a kill tears nothing."""
    key, now = path.name.partition(".")[0], datetime.now(UTC).isoformat(timespec="seconds")
    try:
        with store.lock(key, {"pid": os.getpid(), "recipe": "recipe gc", "stage": key, "since": now}, None):
            if yes:
                with store_errors(f"cannot remove {path}"):
                    shutil.rmtree(path if ".old-" in path.name else path.rename(path.with_name(f"{path.name}.old-gc")))
            return "removed" if yes else "would be removed"
    except StoreBusy:
        return "kept: a run is at work on it"
