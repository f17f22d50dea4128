"""The standard library as data: which modules there are, read from disk, nothing imported.

The one idea: everything made of one top-level module (`asyncio.events` belongs to `asyncio`, `_pydecimal` to
`decimal`) carries the same group, so that its code, its docstrings and questions on it fall on one side of the split.
So do modules that were copied from each other (`bz2` and `lzma`): they are one group, named after the first.
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
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import TypeVar

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
TELLING = 40
"""Characters from which on a line that stands in two texts counts as copied."""
COPIED = 6
"""Copied lines from which on two modules are of one family."""
T = TypeVar("T")


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


@cache
def library() -> Path:
    """Where the standard library lies."""
    return Path(sysconfig.get_path("stdlib"))


def group_of(module: str) -> str:
    """The top-level name; `_pydatetime` and `_datetime` count as `datetime`, which they implement."""
    top = module.partition(".")[0]
    hidden = re.fullmatch(r"_(?:py)?([a-z]\w*)", top)
    return hidden[1] if hidden else top


@cache
def files() -> tuple[Module, ...]:
    """All modules by path, each in the group of its own top-level name."""
    found = tuple(_found(library()))
    if not found:
        raise RecipeError(
            f"no standard library as .py files in {library()}",
            next="use a Python whose library is not zipped or stripped, or take the sources `jsonl` or `text`",
        )
    return found


@cache
def modules() -> tuple[Module, ...]:
    """All modules in their groups, in the order of a hash of the group, then by name.

    The hash is another than that of the held-out rule: with one for both, the first N bytes would all be held out.
    """
    family = families((module.group, module.text()) for module in files())
    found = [replace(module, group=family[module.group]) for module in files()]
    return tuple(sorted(found, key=lambda m: (xxhash.xxh3_64_intdigest(f"order {m.group}".encode()), m.name)))


def families(texts: Iterable[tuple[str, str]]) -> dict[str, str]:
    """From each group to the first of its family: groups that share `COPIED` or more telling lines are of one."""
    owners: dict[str, set[str]] = {}
    home: dict[str, str] = {}
    for group, text in texts:
        home[group] = group
        for line in telling(text):
            owners.setdefault(line, set()).add(group)

    shared = Counter(pair for groups in owners.values() for pair in combinations(sorted(groups), 2))
    for (a, b), lines in sorted(shared.items()):
        if lines >= COPIED:
            first, second = sorted((root(home, a), root(home, b)))
            home[second] = first
    return {group: root(home, group) for group in home}


def telling(text: str) -> set[str]:
    """The lines of a text that are long enough to give away where they come from, with white space run together."""
    plain = {" ".join(line.split()) for line in text.splitlines()}
    return {line for line in plain if len(line) >= TELLING}


def root(home: Mapping[T, T], member: T) -> T:
    """The end of the chain that starts at `member`."""
    while home[member] != member:
        member = home[member]
    return member


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
    for module in files():
        content = hashlib.sha256((library() / module.path).read_bytes()).hexdigest()
        digest.update(f"{module.path} {content}\n".encode())
    return f"{interpreter()}+{digest.hexdigest()[:16]}"


def interpreter() -> str:
    """`cpython-3.11.7`."""
    return f"{platform.python_implementation().lower()}-{platform.python_version()}"


def pieces() -> Sequence[Piece]:
    """Runs of modules of about `PIECE` bytes; the payload is the modules."""
    runs: list[list[Module]] = [[]]
    for module in modules():
        if sum(other.size for other in runs[-1]) >= PIECE:
            runs.append([])
        runs[-1].append(module)
    return [Piece(f"modules-{number:04d}", run) for number, run in enumerate(runs)]


def parsed(piece: Piece) -> Iterator[tuple[Module, str, ast.Module]]:
    """Each module of a piece with its text and syntax tree; what this Python cannot parse (a template) is left out."""
    for module in piece.payload:
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
