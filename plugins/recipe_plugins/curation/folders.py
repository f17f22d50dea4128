"""Folders and files that are either whole or not there.

A folder is filled under another name and renamed; `sizes.json` in it says how long its files were then. So one that a
kill left half written is not there, and one that a crash of the machine left torn is not whole; both are made again.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SIZES = "sizes.json"


@contextmanager
def whole(folder: Path) -> Iterator[Path]:
    """A new folder to fill; it takes its name when the block ends without an error."""
    temporary = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    yield temporary
    files = [file for file in temporary.rglob("*") if file.is_file()]
    write_json(temporary / SIZES, {file.relative_to(temporary).as_posix(): file.stat().st_size for file in files})
    shutil.rmtree(folder, ignore_errors=True)
    os.rename(temporary, folder)


def is_whole(folder: Path) -> bool:
    """Whether a folder is there with all its files at their sizes."""
    try:
        return all((folder / name).stat().st_size == size for name, size in read_json(folder / SIZES).items())
    except (OSError, ValueError):
        return False


def write_json(file: Path, data: Any) -> None:
    """A JSON file, whole or not there."""
    temporary = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(data, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, file)


def read_json(file: Path) -> Any:
    """What `write_json` wrote."""
    return json.loads(file.read_text(encoding="utf-8"))


def is_json(file: Path, data: Any) -> bool:
    """Whether a file holds just this."""
    try:
        return bool(read_json(file) == data)
    except ValueError:
        return False


def link(source: Path, target: Path) -> None:
    """The file under a second name; a copy, where the file system knows no hard links."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
