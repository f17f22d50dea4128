"""The benchmark's documents: made from what CPython carries, or given as JSON Lines.

Two kinds: prose, put together from the paragraphs of docstrings, comments and the language reference; and the library's
files as they are, cut at about 6 KB. The paragraphs are 2 MB, so each comes several times, in other company: good for
speed, where only size and kind of the words matter, but no sample of the web. `with_copies` adds edited copies of some
documents for the deduplication. All is decided by one seed.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import random
import re
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

PROSE, FILES = 30_000_000, 14_000_000
"""Bytes of each kind."""
Row = dict[str, str]


def made() -> list[Row]:
    """All documents, shuffled."""
    rng = random.Random(1)
    rows = [*_prose(rng, PROSE), *_files(rng, FILES)]
    rng.shuffle(rows)
    return rows


def given(path: str) -> list[Row]:
    """The `text` of each line of a file."""
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    texts = (json.loads(line)["text"] for line in lines if line.strip())
    return [{"id": f"d{number:07d}", "text": text} for number, text in enumerate(texts) if text]


def with_copies(rows: Sequence[Row]) -> list[Row]:
    """The documents, and of each tenth of 50 words or more a copy with 0.3 % to 9 % of its words replaced."""
    rng = random.Random(2)
    copies = [
        {"id": f"{row['id']}-copy", "text": " ".join(_edited(rng, row["text"].split()))}
        for row in rows[::10]
        if len(row["text"].split()) >= 50
    ]
    found = [*rows, *copies]
    rng.shuffle(found)
    return found


def first(rows: Iterable[Row], size: int) -> list[Row]:
    """The first documents of about so many bytes."""
    found: list[Row] = []
    for row in rows:
        found.append(row)
        size -= len(row["text"].encode())
        if size <= 0:
            break
    return found


def write(rows: Iterable[Row], file: Path) -> Path:
    """JSON Lines."""
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    file.write_text("".join(lines), encoding="utf-8")
    return file


def digest(file: Path) -> str:
    """SHA-256, its first 16 digits."""
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]


# ── what CPython carries ─────────────────────────────────────────────────────────────────────────────────────────


def _prose(rng: random.Random, size: int) -> Iterator[Row]:
    paragraphs = sorted(set(_paragraphs()))
    number = 0
    while size > 0:
        text = rng.choice(["\n", "\n\n"]).join(rng.sample(paragraphs, rng.randint(6, 30)))
        yield {"id": f"prose{number:06d}", "text": text}
        number, size = number + 1, size - len(text.encode())


def _paragraphs() -> Iterator[str]:
    from pydoc_data.topics import topics

    for text in topics.values():
        yield from _of_words(text)
    for _, source in _modules():
        for text in _docstrings(source):
            yield from _of_words(text)
        for block in re.findall(r"(?:^[ \t]*#.*\n)+", source, re.MULTILINE):
            yield from _of_words(re.sub(r"^[ \t]*#[#! ]*", "", block, flags=re.MULTILINE))


def _of_words(text: str) -> Iterator[str]:
    """The paragraphs that are sentences, each on a line."""
    for part in re.split(r"\n\s*\n", text):
        line = " ".join(part.split())
        letters = sum(character.isalpha() or character == " " for character in line)
        if len(line) >= 80 and line[-1] in ".!?" and letters > 0.85 * len(line) and "{" not in line:
            yield line


def _docstrings(source: str) -> Iterator[str]:
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node) or ""


def _modules() -> Iterator[tuple[str, str]]:
    """Path and text of every module, the library's tests too."""
    root = sysconfig.get_path("stdlib")
    for folder, inner, files in os.walk(root):
        inner[:] = sorted(name for name in inner if name not in ("site-packages", "__pycache__"))
        for name in sorted(file for file in files if file.endswith(".py")):
            path = Path(folder, name)
            yield path.relative_to(root).as_posix(), path.read_bytes().decode("utf-8", "replace").replace("\r\n", "\n")


def _files(rng: random.Random, size: int) -> Iterator[Row]:
    modules = list(_modules())
    rng.shuffle(modules)
    for path, source in modules:
        for number, text in enumerate(_cut(source)):
            if size <= 0:
                return
            size -= len(text.encode())
            yield {"id": f"{path}/{number}", "text": text}


def _cut(source: str) -> Iterator[str]:
    held: list[str] = []
    length = 0
    for line in source.splitlines():
        held.append(line)
        length += len(line) + 1
        if length >= 6_000:
            yield "\n".join(held)
            held, length = [], 0
    if "".join(held).strip():
        yield "\n".join(held)


def _edited(rng: random.Random, words: list[str]) -> list[str]:
    rate = rng.uniform(0.003, 0.06) if rng.random() < 0.9 else rng.uniform(0.06, 0.09)
    return [f"other{rng.randrange(10_000)}" if rng.random() < rate else word for word in words]
