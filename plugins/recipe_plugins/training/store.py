"""The token store: a corpus encoded once, and rows of equal length cut from it by a mixture of domains.

Each domain is one stream: its training documents in the corpus's order, each followed by the end token, in a memory map
of uint16 or uint32 with the ends of the documents beside it. Row `k` of a domain is the `k`-th stretch of
`sequence_length` tokens, the last one filled up from the start, so that nothing is left out; documents cross rows.

With `isolate`, a document never sees another one: positions start anew at each, and the first token of each has no
label. No split but `train` is ever read.

Limit: a document that crosses a row is two documents to attention.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from recipe_plugins.filters.rules.score import Where
from recipe_plugins.filters.rules.where import parsed
from recipe_plugins.training.config import Selection
from recipe_plugins.training.encoders import Encode
from recipe_plugins.training.encoding import COMPARED, BulkEncoder, chosen
from recipe_plugins.training.once import once
from recipe_runner import Corpus, RecipeError, Record, StageContext

_BATCH = 1000


@dataclass(frozen=True, slots=True)
class Domain:
    """What the store has of a domain."""

    documents: int
    tokens: int


@dataclass(frozen=True, slots=True)
class TokenStore:
    """An encoded corpus in `folder`."""

    folder: Path
    dtype: str
    domains: Mapping[str, Domain]

    @property
    def tokens(self) -> int:
        """Of all domains."""
        return sum(domain.tokens for domain in self.domains.values())

    def stream(self, domain: str) -> np.ndarray:
        """The tokens of a domain, 1-D, mapped from the file."""
        return np.memmap(self.folder / f"{self._number(domain)}.tokens", dtype=self.dtype, mode="r")

    def ends(self, domain: str) -> np.ndarray:
        """Where each of its documents ends in the stream (exclusive), 1-D int64."""
        return np.fromfile(self.folder / f"{self._number(domain)}.ends", dtype=np.int64)

    def _number(self, domain: str) -> int:
        return list(self.domains).index(domain)


def build_store(
    ctx: StageContext,
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerBase,
    domains: Sequence[str],
    select: Mapping[str, Selection] | None = None,
    encoder: str = "auto",
    *,
    digest: str,
) -> TokenStore:
    """Encode the training split of `domains` into `ctx.work/tokens`, or take what an earlier attempt encoded.

    A name of `select` stands for the documents that it chooses, `encoder` for the library that encodes them, which is
    noted, and `digest` is that of the tokeniser. Raises `RecipeError` for a domain that is not there, is empty, or
    holds conversations, for a document without the score that chooses, for a tokenizer without an end token, and for
    tokens there by another tokeniser.
    """

    def write(folder: Path) -> dict[str, Any]:
        if tokenizer.eos_token_id is None:
            raise RecipeError("the tokeniser has no end token, which is what separates documents")
        dtype = "uint16" if len(tokenizer) <= 2**16 else "uint32"
        library, choice = _library(corpus, tokenizer, domains, select or {}, encoder)
        found: dict[str, Any] = {}
        for number, domain in enumerate(domains):
            ctx.progress(number, len(domains), "domains", f"encoding {domain}")
            records = documents(corpus, domain, (select or {}).get(domain))
            bulk = BulkEncoder(tokenizer, library)
            found[domain] = asdict(_encode(records, domain, bulk, dtype, folder / str(number)))
        return {"dtype": dtype, "domains": found, "encoder": choice, "tokeniser": digest}

    folder, facts = once(ctx, "tokens", write)
    if facts.get("tokeniser") != digest:
        raise RecipeError(
            f"the tokens in {folder} were encoded by another tokeniser", next="begin anew with --restart STAGE"
        )
    ctx.note(encoder=facts["encoder"])
    for name, reason in facts["encoder"]["passed_over"].items():
        ctx.warn(f"{name} was not used to encode: {reason}")
    return TokenStore(folder, facts["dtype"], {name: Domain(**entry) for name, entry in facts["domains"].items()})


def documents(corpus: Corpus, name: str, selection: Selection | None) -> Iterator[Record]:
    """The training documents of a domain, or of what `selection` chooses."""
    there, domain = corpus.domains("train"), name if selection is None else selection.domain
    if domain not in there:
        raise RecipeError(f"the corpus has no domain {domain!r}", next=f"its domains: {', '.join(there)}")
    if selection is None:
        return corpus.read(domain, "train")
    if name in there:
        raise RecipeError(f"select.{name} has the name of a domain of the corpus", next="give it another name")
    judge = Where(parsed(selection.where))
    return (record for record in corpus.read(domain, "train") if judge.judge_one(record).keep)


def nth(records: Iterator[Record], number: int) -> Record:
    """Record `number`, from 0."""
    return next(islice(records, number, None))


def _library(
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerBase,
    domains: Sequence[str],
    select: Mapping[str, Selection],
    wanted: str,
) -> tuple[Encode | None, dict[str, Any]]:
    """What encodes these domains, tried on the first documents of each."""
    there, wholes = corpus.domains("train"), [select[name].domain if name in select else name for name in domains]
    size = sum(there[whole].bytes for whole in set(wholes) & set(there))
    firsts = (islice(documents(corpus, name, select.get(name)), COMPARED) for name in domains)
    sample = [record.text for records in firsts for record in records if record.text is not None]
    return chosen(tokenizer, wanted, size, sample)


def _encode(records: Iterator[Record], domain: str, encoder: BulkEncoder, dtype: str, path: Path) -> Domain:
    lengths: list[int] = []
    with open(path.with_suffix(".tokens"), "wb") as file:
        for texts in _texts(records, domain):
            for ids in encoder.encode(texts):
                file.write(np.asarray([*ids, encoder.tokenizer.eos_token_id], dtype=dtype).tobytes())
                lengths.append(len(ids) + 1)
    if not lengths:
        raise RecipeError(
            f"{domain!r} has no training document",
            next="look at the ledger of the corpus, or at what `select` asks for",
        )
    ends = np.cumsum(lengths, dtype=np.int64)
    ends.tofile(path.with_suffix(".ends"))
    return Domain(len(lengths), int(ends[-1]))


def _texts(records: Iterator[Record], domain: str) -> Iterator[list[str]]:
    while batch := list(islice(records, _BATCH)):
        if any(record.text is None for record in batch):
            raise RecipeError(
                f"domain {domain!r} holds conversations, which are for fine-tuning",
                next="leave it out of the mix, or read its source with `format: text`",
            )
        yield [record.text or "" for record in batch]


# ── rows ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Portion:
    """A domain's part of a mixture: rows of it, and how often each is read."""

    rows: int
    tokens: int
    repeats: float


class MixedRows:
    """`total` rows of `length` tokens from a store, each domain by its share; see `recipe_plugins.training.order.Rows`.

    Rows of one domain are taken in whole epochs, each a permutation of its own, so that none is read more than once
    more than another. `name` gives that of a document of a domain, by its number.
    """

    def __init__(
        self,
        store: TokenStore,
        portions: Mapping[str, Portion],
        *,
        length: int,
        isolate: bool,
        seed: Callable[[str, int], int],
        name: Callable[[str, int], str],
    ) -> None:
        self.length, self.isolate, self._name = length, isolate, name
        self._domains = list(portions)
        self._streams = [(store.stream(domain), store.ends(domain)) for domain in portions]
        self._firsts = np.cumsum([0, *(portion.rows for portion in portions.values())])
        self._epoch = lru_cache(maxsize=len(portions) + 1)(
            lambda number, epoch: np.random.default_rng(seed(self._domains[number], epoch)).permutation(
                rows_of(len(self._streams[number][0]), length)
            )
        )

    def __len__(self) -> int:
        return int(self._firsts[-1])

    def __getitem__(self, number: int) -> dict[str, np.ndarray]:
        """Row `number`: `input_ids`, `labels` and `position_ids`, 1-D int64."""
        domain, start = self._where(number)
        stream, ends = self._streams[domain]
        return cut(stream, ends, start, self.length, self.isolate)

    def _where(self, number: int) -> tuple[int, int]:
        """The domain of a row, and where it begins in the domain's stream."""
        domain = int(np.searchsorted(self._firsts, number, side="right")) - 1
        tokens = len(self._streams[domain][0])
        epoch, place = divmod(number - int(self._firsts[domain]), rows_of(tokens, self.length))
        return domain, int(self._epoch(domain, epoch)[place]) * self.length

    def documents(self, number: int) -> list[str]:
        """The names of the documents that stand in row `number`, wholly or in part."""
        domain, start = self._where(number)
        stream, ends = self._streams[domain]
        places = np.arange(start, start + self.length) % len(stream)
        found = dict.fromkeys(np.searchsorted(ends, places, side="right").tolist())
        return [self._name(self._domains[domain], document) for document in found]


def rows_of(tokens: int, length: int) -> int:
    """The rows of a stream; the last one may be filled up."""
    return -(-tokens // length)


def cut(stream: np.ndarray, ends: np.ndarray, start: int, length: int, isolate: bool) -> dict[str, np.ndarray]:
    """The row that begins at `start` of a stream, which goes on at its beginning."""
    places = np.arange(start, start + length) % len(stream)
    ids = stream[places].astype(np.int64)
    if not isolate:
        return {"input_ids": ids, "labels": ids.copy(), "position_ids": np.arange(length)}
    begins = (places == 0) | (ends[np.searchsorted(ends, places)] == places)  # where one ends, the next begins
    begins[0] = True
    numbers = np.arange(length)
    positions = numbers - np.maximum.accumulate(np.where(begins, numbers, 0))
    return {"input_ids": ids, "labels": np.where(begins, -100, ids), "position_ids": positions}


def divide(
    store: TokenStore, mix: Mapping[str, float] | None, rows: int, length: int, max_repeats: float
) -> dict[str, Portion]:
    """Divide `rows` among the domains by the weights of `mix`; by their tokens where there is none.

    Raises `RecipeError` where a domain would be read more than `max_repeats` times.
    """
    weights = mix or {name: float(domain.tokens) for name, domain in store.domains.items()}
    total = sum(weights.values())
    exact = {name: rows * weight / total for name, weight in weights.items()}
    counts = {name: int(share) for name, share in exact.items()}
    for name in sorted(exact, key=lambda name: counts[name] - exact[name])[: rows - sum(counts.values())]:
        counts[name] += 1  # the largest remainders first
    found = {
        name: Portion(count, count * length, round(count * length / store.domains[name].tokens, 3))
        for name, count in counts.items()
    }
    often = {name: share for name, share in found.items() if share.repeats > max_repeats}
    if often:
        shown = ", ".join(f"{name} {share.repeats:.1f} times" for name, share in often.items())
        raise RecipeError(
            f"this mix reads {shown}; at most max_repeats = {max_repeats:g} are allowed",
            next="lower the weight or the budget, bring more text, or raise max_repeats",
        )
    return found
