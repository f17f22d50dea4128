"""Our side of the benchmark's jobs (`work.py` says how a job is told)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any

from work import Row, answer, measured, rows

import recipe_plugins.curation.stage  # noqa: F401  (imported here, so that no measurement pays for it)
from recipe_plugins.curation.documents import BATCH_DOCUMENTS, Document, batches, document
from recipe_plugins.filters.copies import Seen, components
from recipe_runner import Piece, Record, batched
from recipe_runner.testing import make, slot

Job = dict[str, Any]
CHAIN = {
    "gopher-repetition": {"preset": "datatrove"},
    "gopher-quality": {"preset": "datatrove"},
    "c4": {"preset": "datatrove", "need_end_mark": False},
    "fineweb-quality": {"preset": "datatrove"},
}
"""FineWeb's filters in its order."""


def read(job: Job) -> Job:
    """JSON Lines to rows, by the source."""

    def work() -> Job:
        source = slot("source", {"use": "jsonl", "path": job["corpus"]}).build()
        found = (row for piece in source.pieces() for row in source.read(Piece(piece.key, piece.payload)))
        return {"documents": sum(1 for _ in found)}

    return measured(work)


def filters(job: Job) -> Job:
    """The chain on documents that are in memory; `decisions` gets one line a document."""
    memory: dict[str, Any] = {}
    steps = [(use, slot("filter", {"use": use, **config}).build()) for use, config in CHAIN.items()]
    for _, step in steps:
        if hasattr(step, "share"):
            step.share(memory)
    judges = [(use, batched(step).judge) for use, step in steps]
    documents = list(_documents(job))
    decisions: list[Row] = []

    def work() -> Job:
        for batch in batches(documents):
            decisions.extend(_through(judges, [found.record for found in batch]))
        return {"kept": sum(not found["step"] for found in decisions)}

    found = measured(work)
    Path(job["decisions"]).write_text("".join(json.dumps(row) + "\n" for row in decisions))
    return found


def _through(judges: list[tuple[str, Any]], records: list[Record]) -> Iterator[Row]:
    for use, judge in judges:
        verdicts = judge(records)
        kept = []
        for record, verdict in zip(records, verdicts, strict=True):
            if not verdict.keep:
                yield {"id": record.id, "step": use, "reason": verdict.reason}
            else:
                kept.append(record if verdict.text is None else Record(record.id, verdict.text))
        records = kept
    for record in records:
        text = str(record.text)
        yield {"id": record.id, "step": "", "reason": sha256(text.encode()).hexdigest()}


def minhash(job: Job) -> Job:
    """From JSON Lines to the kept documents; `clusters` gets each document's label, `links` the pairs."""
    found = slot("filter", {"use": "minhash-dedup", **job["config"]}).build()
    folder = Path(job["folder"])

    def work() -> Job:
        sketches = (found.sketch([record for record, _ in batch]) for batch in _lines(job))
        seen = Seen(folder)
        left, right = found.links(sketches, seen, folder)  # as `decide` does it, but the pairs are kept for a look
        labels = components(len(seen.keys), left, right)
        state = seen.decide(labels)
        kept = 0
        with open(folder / "kept.jsonl", "wb") as file:
            for batch in _lines(job):
                verdicts = found.judge([record for record, _ in batch], state)
                lines = [line for (_, line), verdict in zip(batch, verdicts, strict=True) if verdict.keep]
                file.writelines(lines)
                kept += len(lines)
        job["pairs"], job["labels"] = list(zip(left.tolist(), right.tolist(), strict=True)), labels.tolist()
        return {"kept": kept}

    answered = measured(work)
    names = [row["id"] for row in rows(job["corpus"])]
    clusters = {"labels": dict(zip(names, job["labels"], strict=True))}
    pairs = [(names[a], names[b]) for a, b in job["pairs"]]
    Path(job["clusters"]).write_text(json.dumps({**clusters, "links": pairs}))
    return answered


def stage(job: Job) -> Job:
    """Read, filter, deduplicate, mix and write: one `curation`."""
    config = {
        "sources": {"bench": {"use": "jsonl", "path": job["corpus"]}},
        "steps": {**{use: {"use": use, **config} for use, config in CHAIN.items()}, "alike": "minhash-dedup"},
        "mix": {"budget": job["budget"]},
        "execution": {"workers": job["workers"]},
    }
    folder = Path(job["folder"]) / "out"
    shutil.rmtree(folder, ignore_errors=True)

    def work() -> Job:
        written = make("curation", config, folder).domains()["bench"]
        return {"kept": written.documents, "bytes": written.bytes}

    return measured(work)


def _lines(job: Job) -> Iterator[list[tuple[Record, bytes]]]:
    """Batches of records, each with its line."""
    with open(job["corpus"], "rb") as file:
        while lines := list(islice(file, BATCH_DOCUMENTS)):
            rows = map(json.loads, lines)
            yield [(Record(row["id"], row["text"]), line) for row, line in zip(rows, lines, strict=True)]


def _documents(job: Job) -> Iterator[Document]:
    return (document(Record(row["id"], row["text"])) for row in rows(job["corpus"]))


if __name__ == "__main__":
    answer({"read": read, "filters": filters, "minhash": minhash, "stage": stage})
