"""Checkpoints that are whole or not there.

A checkpoint is a folder `step-N` whose completion mark, `complete.json`, is written last, after every file is on the
disk; it lists the files and their sizes. What has no mark, or not the files the mark lists, is torn, and skipped for
the one before it. Weights are safetensors, the rest loads with `weights_only=True`.

Limit: sizes are compared, not contents.
"""

from __future__ import annotations

import errno
import json
import os
import random
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from recipe_plugins.training.sharding import like
from recipe_runner import RecipeError

MARK = "complete.json"
WEIGHTS = "trained.safetensors"
STATE = "state.json"


@contextmanager
def writing(what: str) -> Iterator[None]:
    """Turn a full disk into an error that says what was being written."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise RecipeError(
            f"no space left on the disk while writing {what}",
            next="free some space and run the same command again: it goes on from the last complete checkpoint",
        ) from error


def sync(path: Path) -> None:
    """Force a file or folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def complete(folder: Path, flush: Callable[[], None] = lambda: None) -> None:
    """Mark `folder` complete: its files go to the disk, `flush` is called, then the mark is written."""
    files = sorted(path for path in folder.iterdir() if path.name != MARK)
    for path in files:
        sync(path)
    sync(folder)
    flush()
    unfinished = folder / (MARK + ".part")
    unfinished.write_text(json.dumps({path.name: path.stat().st_size for path in files}), encoding="utf-8")
    sync(unfinished)
    unfinished.rename(folder / MARK)
    sync(folder)


def is_complete(folder: Path) -> bool:
    """Whether `folder` has its mark and every file that the mark lists, at its size."""
    try:
        listed = json.loads((folder / MARK).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return all((folder / name).is_file() and (folder / name).stat().st_size == size for name, size in listed.items())


def steps_of(root: Path) -> dict[int, Path]:
    """The folders under `root` that are checkpoints, torn or not, by step, in order."""
    found = {int(match[1]): path for path in root.glob("step-*") if (match := re.fullmatch(r"step-(\d+)", path.name))}
    return dict(sorted(found.items()))


def latest(root: Path) -> Path | None:
    """The last complete checkpoint under `root`."""
    return next((path for _, path in sorted(steps_of(root).items(), reverse=True) if is_complete(path)), None)


def state(root: Path, step: int) -> dict[str, Any]:
    """What the loop remembered at `step`, without tensors."""
    found: dict[str, Any] = json.loads((root / f"step-{step}" / STATE).read_text(encoding="utf-8"))
    return found


def fresh(root: Path, step: int) -> Path:
    """An empty folder for the checkpoint of `step`."""
    folder = root / f"step-{step}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def prune(root: Path, keep: int, *, besides: int | None = None) -> None:
    """Delete all but the last `keep` complete checkpoints and that of step `besides`, and what is torn."""
    kept = [path for path in steps_of(root).values() if is_complete(path)][-keep:]
    for step, path in steps_of(root).items():
        if path not in kept and step != besides:
            (path / MARK).unlink(missing_ok=True)  # torn first, so that a kill in between leaves no half of one
            shutil.rmtree(path)


def keep(folder: Path, target: Path, **notes: Mapping[str, Any]) -> None:
    """Keep the weights and optimizer of checkpoint `folder` as `target`, with `notes` as `<name>.json` beside them.

    The files are linked where the file system can. `target` appears whole, replacing what was there.
    """
    unfinished = target.with_name(target.name + ".part")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    for name in (WEIGHTS, "optimizer.pt"):
        try:
            os.link(folder / name, unfinished / name)
        except OSError:  # no links here, such as on some network file systems
            shutil.copyfile(folder / name, unfinished / name)
    for name, facts in notes.items():
        (unfinished / f"{name}.json").write_text(json.dumps(facts), encoding="utf-8")
    for path in unfinished.iterdir():
        sync(path)
    shutil.rmtree(target, ignore_errors=True)
    unfinished.rename(target)
    sync(target.parent)


# ── what is in one ───────────────────────────────────────────────────────────────────────────────────────────────


def trained(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """The parameters that training changes, by name; tied ones once."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def save_weights(weights: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write whole tensors as safetensors, in their own dtypes."""
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}, path)


def load_weights(model: torch.nn.Module, path: Path) -> None:
    """Copy saved parameters into `model`, sharded or not. Raises `RecipeError` if it trains others."""
    saved, parameters = load_file(path), trained(model)
    if saved.keys() != parameters.keys():
        other = sorted(saved.keys() ^ parameters.keys())
        raise RecipeError(f"{path} is of another model: it differs in {', '.join(other[:3])} and {len(other)} in all")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(like(saved[name], parameter))


def rng_state() -> dict[str, Any]:
    """The states of the global generators of Python, NumPy, torch and its accelerators."""
    kind, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(np.array(keys)), position, has_gauss, cached),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "mps": torch.mps.get_rng_state() if torch.backends.mps.is_available() else None,
    }


def set_rng_state(state: Mapping[str, Any]) -> None:
    """Put back what `rng_state` returned."""
    random.setstate(state["python"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy(), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
    if state["mps"] is not None:
        torch.mps.set_rng_state(state["mps"])


def load(path: Path, *, mapped: bool = False) -> Any:
    """Load what `torch.save` wrote, refusing anything but tensors and plain values.

    If `mapped`, tensors are read from the disk when they are looked at: ranks that take a part of each hold no copies.
    """
    return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
