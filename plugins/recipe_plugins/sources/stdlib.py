"""The standard library as data: which modules there are, read from disk, nothing imported.

The one idea: everything made of one top-level module (`asyncio.events` belongs to `asyncio`, `_pydecimal` to
`decimal`) carries the same group, so that its code, its docstrings and questions on it fall on one side of the split.
Modules come in the order of a hash of their group, so that the first N bytes are a fair sample.
Limits: what a distribution has taken out of its Python (tests, tkinter) is not there; the revision says what was.
"""

from __future__ import annotations

import ast
import hashlib
import os
import platform
import re
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import xxhash

from recipe_runner import Piece, RecipeError

SKIPPED = frozenset(
    {
        "__pycache__", "site-packages", "dist-packages", "lib-dynload", "_bundled",     # not the library's own code
        "test", "tests", "idle_test",                                                  # tests
        "pydoc_data", "encodings",                                                     # data in the shape of code
    }
)  # fmt: skip
PIECE = 500_000
"""Bytes of code from which on a piece is closed."""


@dataclass(frozen=True, slots=True)
class Module:
    """A module of the standard library: dotted name, group, path below the library's folder, size in bytes."""

    name: str
    group: str
    path: str
    size: int

    def text(self) -> str:
        """Its source text."""
        return (library() / self.path).read_bytes().decode("utf-8").replace("\r\n", "\n")


def library() -> Path:
    """Where the standard library lies."""
    return Path(sysconfig.get_path("stdlib"))


def group_of(module: str) -> str:
    """The top-level name; `_pydatetime` and `_datetime` count as `datetime`, which they implement."""
    top = module.partition(".")[0]
    hidden = re.fullmatch(r"_(?:py)?([a-z]\w*)", top)
    return hidden[1] if hidden else top


@cache
def modules() -> tuple[Module, ...]:
    """All modules, in the order of a hash of their group, then by name."""
    found = sorted(_found(library()), key=lambda m: (xxhash.xxh3_64_intdigest(m.group.encode()), m.name))
    if not found:
        raise RecipeError(
            f"no standard library as .py files in {library()}",
            next="use a Python whose library is not zipped or stripped, or take the sources `jsonl` or `text`",
        )
    return tuple(found)


def _found(root: Path) -> Iterator[Module]:
    for folder, inner, files in os.walk(root):
        inner[:] = sorted(name for name in inner if name not in SKIPPED and not name.startswith("config-"))
        for file in sorted(files):
            # _sysconfigdata* tells how and where this Python was built: the machine, not the library.
            if file.endswith(".py") and not file.startswith("_sysconfigdata"):
                path = Path(folder, file)
                relative = path.relative_to(root)
                name = ".".join(relative.with_suffix("").parts).removesuffix(".__init__")
                yield Module(name, group_of(name), relative.as_posix(), path.stat().st_size)


@cache
def revision() -> str:
    """The interpreter and its version, and a digest of the modules' names and contents."""
    digest = hashlib.sha256()
    for module in modules():
        content = hashlib.sha256((library() / module.path).read_bytes()).hexdigest()
        digest.update(f"{module.path} {content}\n".encode())
    return f"{interpreter()}+{digest.hexdigest()[:16]}"


def interpreter() -> str:
    """`cpython-3.11.7`."""
    return f"{platform.python_implementation().lower()}-{platform.python_version()}"


def pieces() -> Sequence[Piece]:
    """Runs of modules of about `PIECE` bytes; the payload is their positions in `modules()`."""
    bounds, size = [0], 0
    for number, module in enumerate(modules()):
        size += module.size
        if size >= PIECE or number + 1 == len(modules()):
            bounds.append(number + 1)
            size = 0
    return [Piece(f"modules-{a:04d}", (a, b)) for a, b in zip(bounds, bounds[1:], strict=False)]


def parsed(piece: Piece) -> Iterator[tuple[Module, str, ast.Module]]:
    """Each module of a piece with its text and syntax tree; one that this Python cannot parse (a template) is left out."""
    start, end = piece.payload
    for module in modules()[start:end]:
        try:
            text = module.text()
            yield module, text, ast.parse(text)
        except (SyntaxError, UnicodeDecodeError):
            continue


class Library:
    """What the sources made from the standard library share."""

    def revision(self) -> tuple[str, bool]:
        """The interpreter's version and a digest of what is read."""
        return revision(), True

    def pieces(self) -> Sequence[Piece]:
        """Runs of modules."""
        return pieces()
