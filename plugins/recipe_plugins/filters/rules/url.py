"""Documents by the address they came from (RefinedWeb, Penedo et al. 2023, appendix G.1; FineWeb).

In this order: host in the list, address in the list, a word, enough soft words, a part of the run-together letters.
"""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from recipe_plugins.filters.rules.config import UrlConfig
from recipe_plugins.filters.rules.lists import entries
from recipe_runner import RecipeError, Record, Verdict

NOT_WORD = re.compile(r"[^a-z0-9]+")
SCHEME = re.compile(r"^[a-z][a-z0-9+.-]*://")
HOST = re.compile(r"[\w.-]+|[0-9a-f:]+")


class Url:
    """Removes documents from addresses that hold what they may not."""

    def __init__(self, config: UrlConfig) -> None:
        self.config = config
        self._domains = {_host(entry, config.domains) for entry in entries(config.domains)} if config.domains else set()
        self._urls = {_bare(entry) for entry in entries(config.urls)} if config.urls else set()
        words = (config.words, config.soft_words, config.parts)
        self._words, self._soft, self._parts = (frozenset(map(str.lower, found)) for found in words)

    def judge_one(self, record: Record) -> Verdict:
        """Raises `RecipeError` for a record without an address, if that is an error."""
        url = record.meta.get(self.config.field)
        if not isinstance(url, str) or not url:
            return self._missing(record)
        reason = self._reason(url.lower())
        return Verdict(not reason, reason)

    def _missing(self, record: Record) -> Verdict:
        if self.config.missing == "error":
            held = ", ".join(sorted(record.meta))
            raise RecipeError(
                f"{record.id}: its meta has no address under {self.config.field!r}; it has {held or 'nothing'}",
                next="name the `field`, keep the column in the source's format, or say `missing: keep` or `remove`",
            )
        keep = self.config.missing == "keep"
        return Verdict(keep, "" if keep else "no_url")

    def _reason(self, url: str) -> str:
        if self._domains and any(part in self._domains for part in _domains(url)):
            return "domain"
        if _bare(url) in self._urls:
            return "url"
        words = set(NOT_WORD.split(url))
        if words & self._words:
            return "word"
        if len(words & self._soft) >= self.config.min_soft_words:
            return "soft_words"
        letters = NOT_WORD.sub("", url)
        return "part" if any(part in letters for part in self._parts) else ""


def _bare(url: str) -> str:
    """An address without scheme, `www.` and a slash at its end."""
    return SCHEME.sub("", url).removeprefix("www.").rstrip("/")


def _host(entry: str, file: str) -> str:
    """A list's host; raises `RecipeError` for what no address can have as its host, since it would remove nothing."""
    host = _bare(entry).removeprefix("*.").strip(".")
    if not HOST.fullmatch(host):
        raise RecipeError(
            f"{file}: {entry!r} is no host, such as `bad.example`", next="whole addresses go into the list of `urls`"
        )
    return host


def _domains(url: str) -> list[str]:
    """The host of an address and all domains above it."""
    try:
        host = urlsplit(url if "://" in url else f"//{url}").hostname or ""
    except ValueError:  # such as a broken IPv6 host
        return []
    labels = host.rstrip(".").split(".")
    return [".".join(labels[at:]) for at in range(len(labels))]
