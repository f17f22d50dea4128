"""Which conversations are trained on, and an account of those that are not.

Guarantee: rows read = rows kept + rows dropped, each with a reason. An answer is never cut: a conversation that is too
long keeps the answers that fit whole. Where that, or dropping, takes more rows than the recipe allows, preparation
fails before anything is trained, and names the setting.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby, islice
from typing import TYPE_CHECKING, Any

from recipe_plugins.training.conversations import IGNORED, Encoded, Renderer, Unusable
from recipe_runner import RecipeError, Record, StageContext, exact

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


SAMPLES = 4
"""Decoded rows that are kept to look at."""

PREPARED = ("preparation.json", "samples.json")
"""What lies beside the payload from before the first step: the report, and decoded rows."""

SHOWN = 400
"""Characters of a part of a row that is shown."""


@dataclass(slots=True)
class Report:
    """What preparation did: rows read = kept + dropped; a truncated row is kept without its last turns.

    `stops` counts the answers whose end-of-turn token is learned, `ends` the end-of-turn tokens of each role by whether
    they are; `lengths` the rows that are kept by the least power of two that their tokens are no more than.
    """

    method: str
    read: int = 0
    kept: int = 0
    truncated: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    tokens: int = 0
    supervised: int = 0
    answers: int = 0
    stops: int = 0
    longest: int = 0
    ends: Counter[tuple[str, bool]] = field(default_factory=Counter)
    lengths: Counter[int] = field(default_factory=Counter)

    def as_json(self) -> dict[str, Any]:
        """The report, with the share of supervised tokens."""
        return {
            "rows": {"read": self.read, "kept": self.kept, "truncated": self.truncated},
            "dropped": dict(sorted(self.dropped.items())),
            "mask": self.method,
            "tokens": self.tokens,
            "supervised_tokens": self.supervised,
            "supervised_share": round(self.supervised / max(1, self.tokens), 6),
            "answers": self.answers,
            "end_of_turn_supervised": self.stops,
            "end_of_turn": {
                role: {"learned": self.ends[role, True], "not_learned": self.ends[role, False]}
                for role in sorted({role for role, _ in self.ends})
            },
            "longest": self.longest,
            "lengths": {str(length): rows for length, rows in sorted(self.lengths.items())},
        }


def prepare(
    records: Iterable[Record], renderer: Renderer, *, sequence_length: int, train_on: str, max_dropped: float
) -> tuple[list[Encoded], Report]:
    """Encode `records`, and supervise their answers (`assistant`), the last one (`last-turn`) or every token (`all`).

    Raises `RecipeError` if more than the share `max_dropped` of the rows is dropped or loses an answer, or if no row
    is left.
    """
    report, kept = Report(renderer.method), []
    for encoded in renderer.encode(records):
        report.read += 1
        if isinstance(encoded, Encoded):
            encoded = _fitting(encoded, sequence_length, report)
        if isinstance(encoded, Encoded):
            encoded = _learning(encoded, train_on)
        if isinstance(encoded, Unusable):
            report.dropped[str(encoded)] += 1
            continue
        kept.append(encoded)
        report.kept += 1
        count(encoded, renderer.end_of_turn, report)
    within(report, sequence_length, max_dropped)
    return kept, report


def _fitting(encoded: Encoded, sequence_length: int, report: Report) -> Encoded | Unusable:
    """The conversation up to the last answer that is whole within `sequence_length`."""
    report.longest = max(report.longest, len(encoded.input_ids))
    if len(encoded.input_ids) <= sequence_length:
        return encoded
    fitting = [end for _, end in encoded.spans if end <= sequence_length]
    if not fitting:
        return Unusable("too-long")
    report.truncated += fitting[-1] != encoded.spans[-1][1]
    return encoded.until(fitting[-1])


def _learning(encoded: Encoded, train_on: str) -> Encoded | Unusable:
    """What is asked for, supervised; never a turn that is switched off, nor what a tool says."""
    if train_on == "all":
        if any(message["role"] == "tool" for message in encoded.record.messages or ()):
            return Unusable("tool-output-under-train_on-all")  # where it stands is the template's to know
        encoded.supervised[:] = True
    elif train_on == "last-turn":
        encoded.supervised[: encoded.spans[-1][0]] = False
    for start, end in encoded.switched_off:
        encoded.supervised[start:end] = False
    return encoded if (encoded.labels != IGNORED).any() else Unusable("nothing-to-learn")


def count(encoded: Encoded, end_of_turn: int, report: Report) -> None:
    """Add a conversation that is kept to `report`: its tokens, answers and stops."""
    report.tokens += len(encoded.input_ids)
    report.supervised += int((encoded.labels != IGNORED).sum())
    report.answers += len(encoded.spans)
    report.stops += sum(int(encoded.labels[end - 1]) == end_of_turn for _, end in encoded.spans)
    report.lengths[1 << (len(encoded.input_ids) - 1).bit_length()] += 1
    report.ends.update(_ends(encoded, end_of_turn))


def _ends(encoded: Encoded, end_of_turn: int) -> Iterator[tuple[str, bool]]:
    """Whose turn each end-of-turn token ends, and whether it is learned.

    Where a template writes others than one a turn, those that end no answer are of `others`.
    """
    learned, answers = encoded.labels != IGNORED, {end - 1 for _, end in encoded.spans}
    places = (encoded.input_ids == end_of_turn).nonzero()[0].tolist()
    roles = [str(message["role"]) for message in encoded.record.messages or ()]
    whole = len(places) <= len(roles)  # the last turns may have been left out
    one_a_turn = whole and all(roles[n] == "assistant" for n, place in enumerate(places) if place in answers)
    for number, place in enumerate(places):
        role = roles[number] if one_a_turn else "assistant" if place in answers else "others"
        yield role, bool(learned[place])


def within(report: Report, sequence_length: int, max_dropped: float) -> None:
    """Raises `RecipeError` where too many rows are lost."""
    lost = report.truncated + sum(report.dropped.values())
    reasons = [f"{count} {reason}" for reason, count in sorted(report.dropped.items())]
    reasons += [f"{report.truncated} truncated before an answer"] if report.truncated else []
    why = ", ".join(reasons) or "the corpus has none to train on"
    long = report.truncated + report.dropped["too-long"]
    mend = f"set sequence_length to {report.longest} (it is {sequence_length})" if long else "mend the data"
    if not report.kept:
        raise RecipeError(f"no conversation is left of {report.read} read: {why}", next=mend)
    if lost > exact(max_dropped) * report.read:
        raise RecipeError(
            f"{lost} of {report.read} conversations ({lost / report.read:.1%}) are dropped or lose an answer, "
            f"more than max_dropped: {max_dropped:.1%}: {why}",
            next=f"{mend}, or raise max_dropped",
        )


def note_heldout(ctx: StageContext, reports: Mapping[str, Report]) -> None:
    """Note as `heldout` how many records of each domain are measured, and why the others are not.

    Warns of a domain of which none is.
    """
    dropped = {domain: dict(sorted(report.dropped.items())) for domain, report in reports.items()}
    ctx.note(heldout={d: {"read": r.read, "kept": r.kept, "dropped": dropped[d]} for d, r in reports.items()})
    for domain, report in reports.items():
        if not report.kept:
            why = ", ".join(f"{count} {reason}" for reason, count in dropped[domain].items())
            ctx.warn(
                f"nothing is measured on the held-out records of {domain}: none of {report.read} is usable ({why})"
            )


def note_prepared(ctx: StageContext, report: Mapping[str, Any]) -> None:
    """Note the report as `preparation`, and write it."""
    ctx.note(preparation=report)
    if ctx.rank == 0:
        _write(ctx, PREPARED[0], report)


def write_samples(ctx: StageContext, rows: Iterable[tuple[str, Encoded]], tokenizer: PreTrainedTokenizerBase) -> None:
    """Keep the first of the rows, each of which has a name, decoded."""
    _write(ctx, PREPARED[1], [{"id": name, **sample(row, tokenizer)} for name, row in islice(rows, SAMPLES)])


def _write(ctx: StageContext, name: str, value: Any) -> None:
    (ctx.folder / name).write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def sample(encoded: Encoded, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """A decoded row for people to look at: its text in parts, each with whether it is learned."""
    learned = encoded.labels != IGNORED
    runs = groupby(range(len(learned)), key=lambda place: bool(learned[place]))
    parts = [(on, encoded.input_ids[list(run)].tolist()) for on, run in runs]
    return {"parts": [{"learned": on, "text": tokenizer.decode(ids)} for on, ids in parts]}


def prepared_tables(ctx: StageContext, *, scored: bool = False) -> list[dict[str, Any]]:
    """What preparation did, for people: how long rows are, whose end of turn is learned, and some rows, marked.

    Where answers are `scored` as wholes, none of their tokens is learned.
    """
    report, samples = (json.loads((ctx.folder / name).read_text(encoding="utf-8")) for name in PREPARED)
    ends = [[role, found["learned"], found["not_learned"]] for role, found in report["end_of_turn"].items()]
    rows = [
        [row["id"], {"marked": [[_short(part["text"]), part["learned"]] for part in row["parts"]]}] for row in samples
    ]
    lengths = list(report["lengths"].items())
    marked = f"text, marked where it is {'scored' if scored else 'learned'}"
    return [
        {"title": "rows by length", "columns": ["tokens, up to", "rows"], "rows": lengths},
        *([] if scored else [{"title": "ends of turn", "columns": ["role", "learned", "not learned"], "rows": ends}]),
        {"title": "rows as they are trained on", "columns": ["row", marked], "rows": rows},
    ]


def _short(text: str) -> str:
    """The beginning and the end of a long text."""
    return text if len(text) <= SHOWN else f"{text[: SHOWN // 2]} … {text[-SHOWN // 2 :]}"
