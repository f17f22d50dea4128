"""`synthesise`: text that a model writes from templates and rows, to fill a gap that has a name.

The one idea: the requests are a list that the config alone decides: rounds over all pairs of a row and a template, each
round in the order of a hash, as many as `requests` says; each has a sampling seed of its own. An answer is kept in
`cache` under the hash of its request, before anything else is made of it: so a run that is killed, refused by its
server or done again asks only for what is not there, and an unchanged cache gives the same bytes.
Guarantees: never more than `requests` answers; every document's `meta` says which model, prompt and seed made it, and
documents of one row stand on one side of the split. An empty answer, or one cut off at `max_tokens`, is a bad row.
Limit: what a server samples is known only once it is in the cache; a revision of it is never pinned.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import xxhash

from recipe_plugins.sources.files import chunks, lines, matching, revision
from recipe_plugins.sources.synthesis.config import SynthesiseConfig
from recipe_plugins.sources.synthesis.models import Answer, Asked, Checkpoint, Request, Server
from recipe_runner import BadRow, Piece, RecipeError, Row, suggest

PIECE = 64
"""Requests of a piece."""
LINE = 16_000_000
BLANK = re.compile(r"\{(\w+)\}")


class Synthesise:
    """Requests in, documents out."""

    def __init__(self, config: SynthesiseConfig) -> None:
        self.config = config

    def revision(self) -> tuple[str, bool]:
        """A digest of the checkpoint's files; of a server only what it is called."""
        if self.config.checkpoint:
            return revision(matching(self.config.checkpoint), Path(self.config.checkpoint))
        return f"{self.config.model} at {self.config.server}", False

    def pieces(self) -> Sequence[Piece]:
        """Runs of requests."""
        starts = range(0, self.config.requests, PIECE)
        return [Piece(f"requests-{at:07d}", (at, min(at + PIECE, self.config.requests))) for at in starts]

    def read(self, piece: Piece) -> Iterator[Row | BadRow]:
        """One row a request, in their order; what the cache lacks is asked for first."""
        numbers = range(*piece.payload)
        requests = {number: self._request(number) for number in numbers}
        missing = [request for request in requests.values() if not self._file(request).is_file()]
        self._ask(missing)
        for number, request in requests.items():
            yield self._row(number, request, json.loads(self._file(request).read_text(encoding="utf-8"))["answer"])

    def _ask(self, requests: Sequence[Request]) -> None:
        """Some at once, each kept as soon as it is answered; nothing more is asked for after a failure."""
        if not requests:
            return
        step = self._model.parallel
        with ThreadPoolExecutor(step) as pool:
            for at in range(0, len(requests), step):
                list(pool.map(self._keep, requests[at : at + step]))

    @cached_property
    def _model(self) -> Asked:
        return Server(self.config) if self.config.server else Checkpoint(self.config)

    # ── requests ─────────────────────────────────────────────────────────────────────────────────────────────────

    @cached_property
    def _pairs(self) -> list[tuple[str, str]]:
        """Template and row of every pair, in their order."""
        return [(name, row) for row in self._rows for name in self.config.templates]

    @cached_property
    def _rows(self) -> dict[str, dict[str, Any]]:
        """What fills the templates, by id."""
        if self.config.rows is None:
            return {"-": {}}
        file = Path(self.config.rows)
        found = {}
        for number, (line, _) in enumerate(lines(chunks(file), LINE), 1):
            if line is None or line.strip():
                row = _parsed(line, file, number)
                found[str(row.get("id", number))] = row
        if not found:
            raise RecipeError(f"{file} holds no row", next="give a row a line, or leave `rows` out")
        return found

    def _place(self, number: int) -> tuple[int, str, str]:
        """Round, template and row of a request."""
        turn, at = divmod(number, len(self._pairs))
        return turn, *self._order(turn)[at]

    def _order(self, turn: int) -> list[tuple[str, str]]:
        if turn not in self._orders:
            key = lambda pair: _hash(self.config.seed, "order", turn, *pair)  # noqa: E731
            self._orders[turn] = sorted(self._pairs, key=key)
        return self._orders[turn]

    @cached_property
    def _orders(self) -> dict[int, list[tuple[str, str]]]:
        return {}

    def _request(self, number: int) -> Request:
        turn, template, row = self._place(number)
        config = self.config
        return {
            "who": [config.server, config.model] if config.server else [self.revision()[0]],
            "prompt": self._filled(template, row),
            "system": config.system,
            "ask": config.ask,
            "max_tokens": config.max_tokens,
            "temperature": config.temperature,
            "top_p": config.top_p,
            "seed": _hash(config.seed, "sampling", turn, template, row) >> 33,  # 31 bits: what servers take
        }

    def _filled(self, template: str, row: str) -> str:
        values = self._rows[row]

        def value(match: re.Match[str]) -> str:
            if match[1] not in values:
                raise RecipeError(
                    f"templates.{template} wants {{{match[1]}}}, and row {row} has no such column",
                    next=suggest(match[1], values, noun="columns") if values else "name a file of `rows`",
                )
            return str(values[match[1]])

        return BLANK.sub(value, self.config.templates[template])

    # ── answers ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _file(self, request: Request) -> Path:
        digest = sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()
        return Path(self.config.cache) / digest[:2] / f"{digest}.json"

    def _keep(self, request: Request) -> None:
        answer = self._model.answer(request)
        file = self._file(request)
        file.parent.mkdir(parents=True, exist_ok=True)
        half = file.with_suffix(f".{os.getpid()}.tmp")
        half.write_text(json.dumps({"request": request, "answer": answer}, ensure_ascii=False), encoding="utf-8")
        half.replace(file)

    def _row(self, number: int, request: Request, answer: Answer) -> Row | BadRow:
        turn, template, row = self._place(number)
        name = f"{template}/{row}/{turn}"
        if answer["finish"] == "length":
            return BadRow(name, f"cut off at max_tokens ({self.config.max_tokens})")
        if not answer["text"].strip():
            return BadRow(name, "an empty answer")
        made = {"model": answer["model"], "prompt": request["prompt"], "seed": request["seed"]}
        content: dict[str, Any] = {"text": answer["text"]}
        if self.config.answer == "messages":
            turns = (("user", request["prompt"]), ("assistant", answer["text"]))
            content = {"messages": [{"role": role, "content": text} for role, text in turns]}
        return {"id": name, **content, "meta": {"group": row, "template": template, **made}}


def _parsed(line: bytes | None, file: Path, number: int) -> dict[str, Any]:
    try:
        text = (line or b"\xff").decode("utf-8")
        row = json.loads(text) if ".json" in "".join(file.suffixes[-2:]) else {"line": text.strip()}
    except ValueError:
        row = None
    if not isinstance(row, dict):
        raise RecipeError(f"{file}:{number}: not a JSON object or a line of UTF-8", next="repair the rows")
    return row


def _hash(seed: int, *words: str | int) -> int:
    return xxhash.xxh3_64_intdigest("\0".join(map(str, words)).encode("utf-8", "surrogatepass"), seed=seed % 2**64)
