"""How well a tokeniser fits a corpus: bytes a token and unknown tokens of each domain's held-out text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from transformers import PreTrainedTokenizerBase

from recipe_plugins.training.encoding import BulkEncoder
from recipe_runner import Corpus, Record, StageContext

_BATCH = 256


def parts(record: Record) -> list[str]:
    """The texts of a record: one, or one a turn."""
    return [record.text] if record.text is not None else [str(turn["content"]) for turn in record.messages or ()]


def report(
    ctx: StageContext,
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerBase,
    reference: tuple[str, PreTrainedTokenizerBase] | None = None,
) -> None:
    """Note `bytes_per_token` (of UTF-8) of each domain, `unknown_tokens` where the vocabulary has such a token, the
    same of `reference` (a name and its tokenizer), and a table; domains without held-out text are left out.

    Warns of unknown tokens, as they hide bytes.
    """
    found = {domain: _counts(corpus, domain, tokenizer) for domain in corpus.domains("heldout")}
    found = {domain: counts for domain, counts in found.items() if counts[1]}
    bytes_per_token = {domain: round(size / tokens, 4) for domain, (size, tokens, _) in found.items()}
    facts: dict[str, Any] = {"bytes_per_token": bytes_per_token}
    rows: list[list[Any]] = [
        [domain, size, tokens, bytes_per_token[domain], unknown] for domain, (size, tokens, unknown) in found.items()
    ]
    columns = ["domain", "bytes", "tokens", "bytes a token", "unknown"]
    if reference is not None:
        name, other = reference
        theirs = {domain: _counts(corpus, domain, other) for domain in found}
        beside = {domain: round(size / tokens, 4) for domain, (size, tokens, _) in theirs.items() if tokens}
        unknown_to_it = {domain: unknown for domain, (_, _, unknown) in theirs.items()}
        known = {} if other.unk_token_id is None else {"unknown_tokens": unknown_to_it}
        facts["reference"] = {"name": name, "vocab_size": len(other), "bytes_per_token": beside, **known}
        rows = [[*row, beside.get(row[0]), theirs[row[0]][1] / row[2], unknown_to_it[row[0]]] for row in rows]
        columns += [f"bytes a token of {name}", "its tokens / ours", f"unknown to {name}"]
    ctx.note(**facts, tables=[{"title": "tokeniser, on held-out text", "columns": columns, "rows": rows}])
    if tokenizer.unk_token_id is not None:
        _unknown(ctx, {domain: unknown for domain, (_, _, unknown) in found.items()})


def _unknown(ctx: StageContext, unknown: dict[str, int]) -> None:
    ctx.note(unknown_tokens=unknown)
    if total := sum(unknown.values()):
        ctx.warn(f"{total} tokens of held-out text are unknown; bits per byte will be too low by them")


def _counts(corpus: Corpus, domain: str, tokenizer: PreTrainedTokenizerBase) -> tuple[int, int, int]:
    """Bytes, tokens and unknown tokens of a domain's held-out text."""
    encoder, size, tokens, unknown = BulkEncoder(tokenizer), 0, 0, 0
    for texts in _batches(corpus, domain):
        encoded = encoder.encode(texts)
        size += sum(len(text.encode()) for text in texts)
        tokens += sum(map(len, encoded))
        if tokenizer.unk_token_id is not None:
            unknown += sum(ids.count(tokenizer.unk_token_id) for ids in encoded)
    return size, tokens, unknown


def _batches(corpus: Corpus, domain: str) -> Iterator[list[str]]:
    batch: list[str] = []
    for record in corpus.read(domain, "heldout"):
        batch += parts(record)
        if len(batch) >= _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch
