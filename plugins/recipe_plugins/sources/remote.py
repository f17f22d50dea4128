"""Files at a URL: `http` and `https` by Python alone, every other scheme by the file system that fsspec has for it.

The one idea: a remote file is what it is called, how large it is and what its server says of its content; opened, it is
a stream that can be sought in. Over HTTP a folder is what its index page links to below it, as Apache, nginx and
Python's server write one. Credentials are those that fsspec finds (its configuration, each provider's own files and
variables); over HTTP the headers that its configuration has, which are not sent on where a server redirects to.
Guarantees: a file that cannot be opened, or ends before its size, is an error and never a shorter file. Limits: its
content is known by its ETag, checksum or time of change, not by a digest of ours; `?` is no wildcard over HTTP; a
server that knows no ranges sends the file from its beginning.
"""

from __future__ import annotations

import http.client
import io
import os
import re
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import PurePosixPath
from typing import IO, Any
from urllib.parse import unquote, urljoin, urlsplit

from recipe_runner import RecipeError

TIMEOUT = 60.0
"""Seconds that a server may be silent."""
BUFFER = 1 << 20
PAGES = 10_000
"""Index pages of a folder over HTTP, at most; a server may make them up without end."""
KNOWN = ("sha256", "md5", "ETag", "etag", "checksum", "mtime", "LastModified", "last_modified", "updated", "created")
"""What file systems call that by which a content is known, the surest first."""


@dataclass(frozen=True, slots=True)
class Remote:
    """`relative` is its name below the folder or glob that led to it; `content` changes with its content, or is ""."""

    url: str
    relative: str
    size: int
    content: str

    def __str__(self) -> str:
        return self.url

    @property
    def name(self) -> str:
        """The last part of its path."""
        return PurePosixPath(urlsplit(self.url).path).name

    @property
    def suffix(self) -> str:
        """Of its name."""
        return PurePosixPath(self.name).suffix


def is_remote(path: str) -> bool:
    """Whether a path is a URL."""
    return "://" in path


def listed(url: str, suffixes: Sequence[str]) -> list[Remote]:
    """The files that a URL, a folder or a glob there stands for, as `matching` finds them on this machine."""
    with _told(url):
        found = _at_http(url, suffixes) if _http(url) else _at_fsspec(url, suffixes)
    if not found:
        listing = "; over HTTP a folder's files are the links of its page" if _http(url) else ""
        raise RecipeError(f"no file at {url}", next=f"check the URL, and what the files' names end in{listing}")
    return sorted(found, key=lambda file: file.relative)


@contextmanager
def opened(file: Remote) -> Iterator[IO[bytes]]:
    """A stream of its bytes that can be sought in; what goes wrong while it is read is a `RecipeError` too."""
    with _told(file.url):
        if _http(file.url):
            with io.BufferedReader(_Fetched(file), BUFFER) as stream:
                yield stream
            return
        import fsspec

        with fsspec.open(file.url, "rb") as stream:
            yield stream


@contextmanager
def _told(url: str) -> Iterator[None]:
    try:
        yield
    except urllib.error.HTTPError as error:
        raise RecipeError(
            f"{error.url or url}: {error.code} {error.reason}",
            next="check the URL and whether it may be read; a run goes on from the pieces that are whole",
        ) from None
    except ImportError as error:
        raise RecipeError(f"{url}: {error}", next="install the package that fsspec needs for this scheme") from None
    except RecipeError:
        raise
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise RecipeError(f"{url}: {error}", next="check the URL; run again to go on") from None


# ── fsspec ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _at_fsspec(url: str, suffixes: Sequence[str]) -> list[Remote]:
    import fsspec

    system, path = fsspec.core.url_to_fs(url)
    if any(sign in path for sign in "*?["):
        root = path[: min(path.index(sign) for sign in "*?[" if sign in path)].rpartition("/")[0]
        found = system.glob(path, detail=True)
    elif system.isfile(path):
        return [_remote(system, system.info(path), path.rpartition("/")[0])]
    else:
        root, inside = path.rstrip("/"), system.find(path, detail=True)
        found = {name: info for name, info in inside.items() if not suffixes or name.endswith(tuple(suffixes))}
    files = (_remote(system, info, root) for info in found.values() if info["type"] == "file")
    return [file for file in files if not any(part.startswith(".") for part in file.relative.split("/"))]


def _remote(system: Any, info: Mapping[str, Any], root: str) -> Remote:
    name = str(info["name"])
    content = next((f"{key}={info[key]}" for key in KNOWN if info.get(key)), "")
    return Remote(system.unstrip_protocol(name), os.path.relpath(name, root or "/"), int(info["size"]), content)


# ── HTTP ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _http(url: str) -> bool:
    return urlsplit(url).scheme in ("http", "https")


def _at_http(url: str, suffixes: Sequence[str]) -> list[Remote]:
    path = urlsplit(url).path
    if "*" in path:
        from fsspec.utils import glob_translate

        root = url[: url.index("*")].rpartition("/")[0] + "/"
        pattern = unquote(url.removeprefix(root))
        wanted = re.compile(glob_translate(pattern))
        found = _below(root, None if "**" in pattern else pattern.count("/"))
        found = {name: link for name, link in found.items() if wanted.match(name)}
    elif not path.endswith("/") and (file := _headed(url, PurePosixPath(path).name)):
        return [file]
    else:
        found = _below(url if path.endswith("/") else f"{url}/", None)
        found = {name: link for name, link in found.items() if not suffixes or name.endswith(tuple(suffixes))}
    return [file for name, link in found.items() if (file := _headed(link, name))]


def _below(root: str, depth: int | None) -> dict[str, str]:
    """Names below a folder, and their URLs; of folders in it at most `depth` deep. Hidden ones are left out."""
    found: dict[str, str] = {}
    waiting = [root]
    for number, page in enumerate(waiting):
        if number == PAGES:
            raise RecipeError(f"{root}: more than {PAGES:,} folders", next="name a folder or a glob further in")
        for link in _links(page):
            name = unquote(link.removeprefix(root))
            if any(part.startswith(".") for part in name.split("/")):
                continue
            if not name.endswith("/"):
                found[name] = link
            elif link not in waiting and (depth is None or name.count("/") <= depth):
                waiting.append(link)
    return found


def _links(page: str) -> list[str]:
    """What a page links to below itself."""
    with _asked(page) as response:
        if response.headers.get_content_type() != "text/html":
            return []
        text = response.read().decode("utf-8", "replace")
    parser = _Links()
    parser.feed(text)
    absolute = (urljoin(page, link) for link in parser.found)
    return [
        link for link in absolute if link.startswith(page) and link != page and not set(link[len(page) :]) & set("?#")
    ]


class _Links(HTMLParser):
    """The addresses that a page's links have."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value for name, value in attrs if tag == "a" and name == "href" and value]


def _headed(url: str, name: str) -> Remote | None:
    """What a server says of a file; None if it says that this is a folder, by redirecting to one."""
    with _asked(url, method="HEAD") as response:
        headers = response.headers
        if urlsplit(response.url).path.endswith("/"):
            return None
    if "Content-Length" not in headers:
        raise RecipeError(f"{url}: its server does not say how large it is", next="fetch it, and give its path")
    return Remote(url, name, int(headers["Content-Length"]), headers["ETag"] or headers["Last-Modified"] or "")


def _asked(url: str, method: str = "GET", **headers: str) -> Any:
    """The response to a request with the headers that fsspec's configuration has for HTTP."""
    from fsspec.config import conf

    request = urllib.request.Request(url, headers=headers, method=method)
    for scheme in ("http", "https"):  # fsspec's file system of the two takes both
        given = conf.get(scheme, {})
        for name, value in {**given.get("client_kwargs", {}).get("headers", {}), **given.get("headers", {})}.items():
            request.add_unredirected_header(name, value)
    return urllib.request.urlopen(request, timeout=TIMEOUT)


class _Fetched(io.RawIOBase):
    """A file over HTTP: one request for as long as it is read on, a new one where it is sought."""

    def __init__(self, file: Remote) -> None:
        super().__init__()
        self._file, self._at = file, 0
        self._response: Any = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._file.size}[whence]
        if at != self._at:
            self.forget()
            self._at = at
        return at

    def readinto(self, buffer: Any) -> int:
        if self._at >= self._file.size:
            return 0
        if self._response is None:
            self._response = self._requested()
        data = self._response.read(min(len(buffer), self._file.size - self._at))
        if not data:
            raise RecipeError(
                f"{self._file.url}: ends at byte {self._at:,} of {self._file.size:,}", next="run again to go on"
            )
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def _requested(self) -> Any:
        """The response, at where reading goes on."""
        response = _asked(self._file.url, **({"Range": f"bytes={self._at}-"} if self._at else {}))
        left = self._at if response.status == 200 else 0  # without ranges it starts over
        while left > 0 and (passed := response.read(min(left, BUFFER))):
            left -= len(passed)
        return response

    def forget(self) -> None:
        """End the request under way."""
        if self._response is not None:
            self._response.close()
            self._response = None

    def close(self) -> None:
        self.forget()
        super().close()
