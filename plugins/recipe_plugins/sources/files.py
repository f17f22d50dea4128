"""Files as sources see them: found by path or glob, read in chunks, split into lines, known by their content.

Guarantees: a compressed file that ends early is an error and not a shorter file; a line longer than a limit is
reported and never held in memory; equal contents under equal relative names have one revision wherever they lie.
A path with a scheme (`s3://`, `https://`) is a file elsewhere (`remote`).
Limit: an archive of several members (.zip, .tar) is not opened.
"""

from __future__ import annotations

import glob
import hashlib
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, ClassVar, Generic, TypeVar

import zstandard

from recipe_plugins.sources.config import FilesConfig
from recipe_plugins.sources.remote import Remote, is_remote, listed, opened
from recipe_runner import Piece, RecipeError, suggest

CHUNK = 1 << 20
SIP = 1 << 10
Found = Path | Remote
"""A file of this machine, or at a URL."""
C = TypeVar("C", bound=FilesConfig)


def matching(path: str, suffixes: Sequence[str] = ()) -> Sequence[Found]:
    """The files that a path, a folder or a glob stands for, sorted; in a folder, those that end in `suffixes`.

    Hidden files are left out. Raises `RecipeError` where there is none.
    """
    if is_remote(path):
        return listed(path, suffixes)
    if os.path.isfile(path):
        return [Path(path)]
    inside = f"{glob.escape(path)}/**/*" if os.path.isdir(path) else path
    found = sorted(Path(name) for name in glob.glob(inside, recursive=True) if os.path.isfile(name))
    if os.path.isdir(path) and suffixes:
        found = [file for file in found if file.name.endswith(tuple(suffixes))]
    if found:
        return found
    if os.path.isdir(path):
        wanted = f" ending in {', '.join(suffixes)}" if suffixes else ""
        raise RecipeError(f"no file{wanted} in the folder {path}", next=f"it holds {_held(path)}")
    raise RecipeError(f"no file at {path}", next=_nearby(path))


def _held(folder: str, most: int = 8) -> str:
    names = sorted(os.listdir(folder))
    return ", ".join(names[:most]) + (", …" if len(names) > most else "") if names else "nothing"


def _nearby(path: str) -> str:
    folder, name = os.path.split(path)
    if not os.path.isdir(folder):
        return f"there is no folder {folder} either"
    return suggest(name, os.listdir(folder), noun=f"in {folder}")


def root_of(path: str) -> Path:
    """What names are relative to: the folder, the file's folder, or the glob's part without a wildcard; no URL's."""
    if os.path.isdir(path):
        return Path(path)
    if os.path.isfile(path):  # whatever signs its folders' names have
        return Path(path).parent
    parts = Path(path).parts
    fixed = next((n for n, part in enumerate(parts) if glob.has_magic(part)), len(parts) - 1)
    return Path(*parts[:fixed])


def named(file: Found, root: Path) -> str:
    """The name of a file below `root`; a remote one knows its own."""
    return file.relative if isinstance(file, Remote) else file.relative_to(root).as_posix()


def size_of(file: Found) -> int:
    """Bytes, as they are stored."""
    return file.size if isinstance(file, Remote) else file.stat().st_size


def packed(path: Found) -> bool:
    """Whether a file is compressed, by its name."""
    return path.suffix in (".gz", ".zst")


# ── content ──────────────────────────────────────────────────────────────────────────────────────────────────────


def revision(files: Sequence[Found], root: Path) -> tuple[str, bool]:
    """A digest of relative names, sizes and contents; pinned unless the server of one tells nothing of its content."""
    digest = hashlib.sha256()
    for file in files:
        content = file.content if isinstance(file, Remote) else _digested(file)
        digest.update(f"{named(file, root)}\0{size_of(file)}\0{content}\n".encode())
    return f"sha256:{digest.hexdigest()}", all(file.content for file in files if isinstance(file, Remote))


def _digested(file: Path) -> str:
    stat = file.stat()
    return _content(os.fspath(file), stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=100_000)
def _content(path: str, size: int, modified: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ── bytes and lines ──────────────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def stream(file: Found) -> Iterator[IO[bytes]]:
    """A file, open to be read."""
    with opened(file) if isinstance(file, Remote) else open(file, "rb") as found:
        yield found


def chunks(path: Found, start: int = 0) -> Iterator[bytes]:
    """The bytes of a file from `start` on, unpacked if it is compressed (then from its beginning)."""
    with stream(path) as file:
        if packed(path):
            yield from _unpacked(path, file)
            return
        file.seek(start)
        while block := file.read(CHUNK):
            yield block


def _unpacked(path: Found, file: IO[bytes]) -> Iterator[bytes]:
    """Blocks of a chunk or a little more, however well the file is packed."""
    held: list[bytes] = []
    size = 0
    for out in _sipped(path, file):
        held.append(out)
        size += len(out)
        if size >= CHUNK:
            yield b"".join(held)
            held, size = [], 0
    if size:
        yield b"".join(held)


def _sipped(path: Found, file: IO[bytes]) -> Iterator[bytes]:
    """Unpacked `SIP` bytes at a time: of gzip they become a megabyte at most, of Zstandard thirty."""
    new = _gzip if path.suffix == ".gz" else _zstd
    unpacker, started = new(), False
    while block := file.read(CHUNK):
        at = 0
        while at < len(block):
            sip, started = block[at : at + SIP], True
            at += len(sip)
            try:
                out = unpacker.decompress(sip)
            except (zlib.error, zstandard.ZstdError) as error:
                raise RecipeError(f"{path}: damaged: {error}", next="fetch or pack the file again") from None
            if unpacker.eof:  # one member ends; the next, if any, starts afresh
                at -= len(unpacker.unused_data)
                unpacker, started = new(), False
            yield out
    if started:
        raise RecipeError(f"{path}: the compressed data ends early", next="fetch or pack the file again")


def _gzip() -> Any:
    return zlib.decompressobj(zlib.MAX_WBITS | 16)


def _zstd() -> Any:
    return zstandard.ZstdDecompressor().decompressobj()


def lines(blocks: Iterator[bytes], longest: int) -> Iterator[tuple[bytes | None, int]]:
    """Each line without its end, and its length with it; a line longer than `longest` bytes comes as None."""
    parts: list[bytes] = []
    length = 0
    for block in blocks:
        *ended, rest = block.split(b"\n")
        for line in ended:
            length += len(line)
            yield (b"".join((*parts, line)) if length <= longest else None), length + 1
            parts, length = [], 0
        length += len(rest)
        parts = [*parts, rest] if length <= longest else []
    if length:
        yield (b"".join(parts) if length <= longest else None), length


class Placed(dict[str, Any]):
    """A row that knows where it stands, should it turn out bad; `where` costs nothing until it is asked for."""

    __slots__ = ("_line", "_place")

    def __init__(self, values: Any, place: Callable[[int], str], line: int) -> None:
        super().__init__(values)
        self._place, self._line = place, line

    @property
    def where(self) -> str:
        """`file:line`."""
        return self._place(self._line)


class FileSource(Generic[C]):
    """What the sources of files share: which they are, how they are known. A file is a piece, unless they say more."""

    suffixes: ClassVar[Sequence[str]] = ()  # what is taken of a folder; everything, if none are given

    def __init__(self, config: C) -> None:
        self.config = config

    def files(self) -> Sequence[Found]:
        """The files, in the order of their names. Raises `RecipeError` where there is none."""
        return matching(self.config.path, self.suffixes)

    def name(self, file: Found) -> str:
        """A file's name, relative to what was asked for."""
        return named(file, root_of(self.config.path))

    def revision(self) -> tuple[str, bool]:
        """A digest of names, sizes and contents."""
        return revision(self.files(), root_of(self.config.path))

    def pieces(self) -> Sequence[Piece]:
        """Files, in the order of their names."""
        return [Piece(self.name(file), file) for file in self.files()]
