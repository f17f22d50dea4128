"""Answers with a judgement as rows to train on: pairs of a better and a worse one, or single ones, wanted or not.

A record says it in `meta.preference` (see the format `preference`). Everything is as in fine-tuning: the same ids, the
same masks, the end of turn learned; but of a conversation only the answer is learned, nothing of its prompt. Guarantee:
records read = kept + dropped, each with a reason; nothing is ever cut.

Where single answers are wanted, a pair is two of them, and each is stored with another prompt's answer after its own
prompt, from which the distance to the reference is estimated.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from recipe_plugins.training.answers import conversations
from recipe_plugins.training.conversations import Encoded, Renderer, Unusable
from recipe_plugins.training.log_probs import Document
from recipe_plugins.training.once import once
from recipe_plugins.training.preparation import Report, count, note_heldout, note_prepared, within, write_samples
from recipe_runner import Corpus, RecipeError, Record, StageContext


@dataclass(frozen=True, slots=True)
class Example:
    """What a row is made of: the chosen and the rejected conversation, or one and a mismatched one.

    Each of the two is a document (see `training.log_probs`).
    """

    first: Document
    second: Document
    desirable: bool = True


@dataclass(frozen=True, slots=True)
class Answer:
    """An encoded conversation, and the token that its answer starts at."""

    encoded: Encoded
    start: int
    desirable: bool

    @property
    def document(self) -> Document:
        """Ids and labels."""
        return self.encoded.input_ids, self.encoded.labels


def judged_answers(
    records: Iterable[Record], renderer: Renderer, *, paired: bool, sequence_length: int
) -> tuple[list[list[Answer]], Report]:
    """The answers of each record that is kept, the chosen and the rejected or its only one, and the account of all.

    Raises `RecipeError` for a record without a judgement, or with one answer where pairs are wanted.
    """
    report, kept = Report(renderer.method), []
    for found in _encoded(records, renderer, paired):
        report.read += 1
        usable = _usable(found, sequence_length, report)
        if isinstance(usable, Unusable):
            report.dropped[str(usable)] += 1
            continue
        report.kept += 1
        for answer in usable:
            count(answer.encoded, renderer.end_of_turn, report)
        kept.append(usable)
    return kept, report


def examples_of(kept: Sequence[Sequence[Answer]], *, paired: bool, sequence_length: int) -> list[Example]:
    """The rows: pairs as they are, or every answer with a mismatched one.

    Raises `RecipeError` where there is no other prompt whose answer fits.
    """
    if paired:
        return [Example(chosen.document, rejected.document) for chosen, rejected in kept]
    return _mismatched(kept, sequence_length)


def _encoded(records: Iterable[Record], renderer: Renderer, paired: bool) -> Iterator[list[Answer | Unusable]]:
    """For each record its answers: the chosen and the rejected one, or its only one."""
    asked = [(record, _conversations(record, paired)) for record in records]
    found = renderer.encode(talk for _, talks in asked for talk in talks)
    for record, talks in asked:
        good = [bool(record.meta["preference"].get("desirable", number == 0)) for number in range(len(talks))]
        yield [_answer(next(found), record, wanted) for wanted in good]


def _conversations(record: Record, paired: bool) -> list[Record]:
    judged = record.meta.get("preference")
    if not isinstance(judged, Mapping) or not record.messages:
        raise RecipeError(
            f"record {record.id} of the corpus has no judgement",
            next="read its source with `format: preference` or `format: unpaired-preference`",
        )
    if "rejected" in judged:
        other = [*record.messages[: judged["prompt"]], *judged["rejected"]]
        return [record, Record(record.id, messages=other, meta=record.meta)]
    if paired:
        raise RecipeError(
            f"record {record.id} of the corpus is a single answer, and this stage as it is set takes pairs",
            next="bring pairs with `format: preference`; single answers are for `preference` with `objective: kto`",
        )
    return [record]


def _answer(found: Encoded | Unusable, record: Record, desirable: bool) -> Answer | Unusable:
    """Only the answer learned: nothing before it, and no turn of it that is switched off."""
    if isinstance(found, Unusable):
        return found
    prompt = (record.messages or ())[: record.meta["preference"]["prompt"]]
    earlier = sum(message["role"] == "assistant" for message in prompt)
    start = found.spans[earlier][0]
    found.supervised[:start] = False
    for first, end in found.switched_off:
        found.supervised[first:end] = False
    found.spans = found.spans[earlier:]
    return Answer(found, start, desirable) if found.supervised.any() else Unusable("nothing-to-learn")


def _usable(found: list[Answer | Unusable], sequence_length: int, report: Report) -> list[Answer] | Unusable:
    answers = []
    for answer in found:
        if isinstance(answer, Unusable):
            return answer
        report.longest = max(report.longest, len(answer.encoded.input_ids))
        answers.append(answer)
    if any(len(answer.encoded.input_ids) > sequence_length for answer in answers):
        return Unusable("too-long")
    if len(answers) == 2 and np.array_equal(answers[0].encoded.input_ids, answers[1].encoded.input_ids):
        return Unusable("chosen-is-rejected")
    return answers


def _mismatched(kept: Sequence[Sequence[Answer]], sequence_length: int) -> list[Example]:
    """Each answer, and behind its prompt one of the next record with another prompt: of a pair the one in its place.

    So of pairs as many wanted as unwanted answers serve, as they would if a batch were shifted (Ethayarajh et al. 2024,
    arXiv:2402.01306, section 4.1).
    """
    examples = []
    for number, answers in enumerate(kept):
        for place, answer in enumerate(answers):
            prompt = answer.document[0][: answer.start]
            following = (kept[(number + step) % len(kept)] for step in range(1, len(kept)))
            others = (found[place % len(found)] for found in following)
            other = next((other for other in others if _fits(prompt, other, sequence_length)), None)
            if other is None:
                raise RecipeError(
                    f"record {answer.encoded.record.id}: no answer to another prompt fits behind its prompt",
                    next="raise sequence_length, or bring more than one prompt",
                )
            examples.append(Example(answer.document, _behind(answer, other), answer.desirable))
    return examples


def _fits(prompt: np.ndarray, other: Answer, sequence_length: int) -> bool:
    ids = other.document[0]
    length = len(prompt) + len(ids) - other.start
    return length <= sequence_length and not np.array_equal(prompt, ids[: other.start])


def _behind(answer: Answer, other: Answer) -> Document:
    """The prompt of `answer` with the answer of `other`."""
    (ids, labels), (others, learned) = answer.document, other.document
    head, tail = slice(answer.start), slice(other.start, None)
    return np.concatenate([ids[head], others[tail]]), np.concatenate([labels[head], learned[tail]])


@dataclass(frozen=True, slots=True)
class Heldout:
    """The held-out answers of one domain; `paired` says whether they are pairs or single answers."""

    records: Sequence[Record]
    answers: Sequence[Sequence[Answer]]
    paired: bool

    @property
    def documents(self) -> list[Document]:
        """The chosen and then the rejected conversations, or the single ones."""
        sides = range(2 if self.paired else 1)
        return [answers[side].document for side in sides for answers in self.answers]


def heldout_answers(
    ctx: StageContext, corpus: Corpus, renderer: Renderer, *, limit: int, sequence_length: int, only_pairs: bool = False
) -> dict[str, Heldout]:
    """Up to `limit` records of each domain, always the same ones; see `note_heldout` for those that cannot be used.

    Where not all records of a domain are pairs, each is a single answer; with `only_pairs` those that are not are none
    that can be used.
    """
    found, reports = {}, dict[str, Report]()
    for domain, records in conversations(corpus, "heldout", limit=limit).items():
        chosen = [record for record in records if not (only_pairs and _is_single(record))]
        paired = all("rejected" in record.meta.get("preference", {}) for record in chosen)
        answers, report = judged_answers(chosen, renderer, paired=paired, sequence_length=sequence_length)
        if len(chosen) < len(records):
            report.dropped["single-answer"] = len(records) - len(chosen)
            report.read = len(records)
        if answers:
            found[domain] = Heldout(chosen, answers, paired)
        if records:
            reports[domain] = report
    note_heldout(ctx, reports)
    return found


def _is_single(record: Record) -> bool:
    return "preference" in record.meta and "rejected" not in record.meta["preference"]


# ── on disk ──────────────────────────────────────────────────────────────────────────────────────────────────────


def write_examples(examples: Sequence[Example], folder: Path) -> None:
    """Store `examples` in `folder`: all documents one after the other, int32, and where each ends."""
    documents = [document for example in examples for document in (example.first, example.second)]
    np.save(folder / "input_ids.npy", np.concatenate([ids for ids, _ in documents]))
    np.save(folder / "labels.npy", np.concatenate([labels for _, labels in documents]))
    np.save(folder / "ends.npy", np.cumsum([len(ids) for ids, _ in documents], dtype=np.int64))
    np.save(folder / "desirable.npy", np.array([example.desirable for example in examples]))


def stored_examples(
    ctx: StageContext, corpus: Corpus, renderer: Renderer, *, paired: bool, sequence_length: int, max_dropped: float
) -> Path:
    """The folder of the training split's examples, made now or by an earlier attempt.

    Writes `preparation.json` and `samples.json` beside the payload, and notes the former as `preparation`. Raises
    `RecipeError` if more than the share `max_dropped` of the records is dropped.
    """
    records = chain.from_iterable(corpus.read(domain, "train") for domain in corpus.domains("train"))

    def write(folder: Path) -> dict[str, Any]:
        kept, report = judged_answers(records, renderer, paired=paired, sequence_length=sequence_length)
        within(report, sequence_length, max_dropped)
        examples = examples_of(kept, paired=paired, sequence_length=sequence_length)
        write_examples(examples, folder)
        write_samples(ctx, chain.from_iterable(map(_named, kept)), renderer.tokenizer)
        return {**report.as_json(), "examples": len(examples)}

    folder, report = once(ctx, "examples", write)
    note_prepared(ctx, report)
    return folder


def _named(answers: Sequence[Answer]) -> Iterator[tuple[str, Encoded]]:
    """The answers of a record, with whether each was the better one, or one that is wanted."""
    words = {True: "chosen", False: "rejected"} if len(answers) == 2 else {True: "wanted", False: "not wanted"}
    for answer in answers:
        yield f"{answer.encoded.record.id}, {words[answer.desirable]}", answer.encoded


class Documents(Sequence[Document]):
    """The documents of `write_examples`: those of example n are 2n and 2n + 1."""

    def __init__(self, folder: Path) -> None:
        self._ids = np.load(folder / "input_ids.npy", mmap_mode="r")
        self._labels = np.load(folder / "labels.npy", mmap_mode="r")
        self._ends = np.load(folder / "ends.npy")

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return [self[n] for n in range(*number.indices(len(self)))]
        start = self._ends[number - 1] if number else 0
        return self._ids[start : self._ends[number]], self._labels[start : self._ends[number]]


class ExampleRows:
    """Rows as `training.order.Rows`: `first` and `second`, `desirable`, and the `reference` of the two in nats."""

    def __init__(self, folder: Path, reference: np.ndarray) -> None:
        self.stored = Documents(folder)
        self._desirable, self._reference = np.load(folder / "desirable.npy"), reference

    def __len__(self) -> int:
        return len(self._desirable)

    def __getitem__(self, number: int) -> Mapping[str, Any]:
        first, second = 2 * number, 2 * number + 1
        return {
            "first": self.stored[first],
            "second": self.stored[second],
            "desirable": bool(self._desirable[number]),
            "reference": self._reference[first : second + 1],
        }
