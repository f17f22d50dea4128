"""The peers' side of the benchmark's jobs; runs in their environment and imports nothing of ours.

datatrove is used as its documentation says, with its defaults. With `words` and `sentences`, two regular expressions,
it gets our definitions of both in place of spaCy's, through the argument that it has for it.
"""

from __future__ import annotations

import json
import re
import shutil
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any

from work import answer, measured, rows

Job = dict[str, Any]
REASONS = {
    "dup_para_frac": "duplicate_paragraphs", "dup_para_char_frac": "duplicate_paragraph_characters",
    "dup_line_frac": "duplicate_lines", "dup_line_char_frac": "duplicate_line_characters",
    **{f"duplicated_{n}_n_grams": f"duplicate_{n}_grams" for n in range(5, 11)},
    "gopher_short_doc": "too_short", "gopher_long_doc": "too_long", "gopher_below_avg_threshold": "short_words",
    "gopher_above_avg_threshold": "long_words", "gopher_too_many_hashes": "hashes",
    "gopher_too_many_ellipsis": "ellipses", "gopher_too_many_bullets": "bullets",
    "gopher_too_many_end_ellipsis": "ellipsis_lines", "gopher_below_alpha_threshold": "few_letters",
    "gopher_enough_stop_words": "few_stop_words", "too_few_sentences": "few_sentences",
    "line_punct_ratio": "few_line_ends", "short_line_ratio": "short_lines", "char_dup_ratio": "duplicate_characters",
    "list_ratio": "list",
}  # fmt: skip
"""Their names of reasons in ours; the others are the same."""


def read(job: Job) -> Job:
    """JSON Lines to documents, by their reader."""
    from datatrove.pipeline.readers import JsonlReader

    file = Path(job["corpus"])

    def work() -> Job:
        reader = JsonlReader(str(file.parent), glob_pattern=file.name)
        return {"documents": sum(1 for _ in reader.run())}

    return measured(work)


def filters(job: Job) -> Job:
    """The chain on documents that are in memory."""
    from datatrove.data import Document
    from datatrove.pipeline.filters import (
        C4QualityFilter,
        FineWebQualityFilter,
        GopherQualityFilter,
        GopherRepetitionFilter,
    )
    from datatrove.utils.text import split_into_words

    language = _splitter(job["words"], job["sentences"]) if "words" in job else "eng"
    split_into_words("It is loaded before the clock starts.", language)
    steps = {
        "gopher-repetition": GopherRepetitionFilter(language=language),
        "gopher-quality": GopherQualityFilter(language=language),
        "c4": C4QualityFilter(language=language, filter_no_terminal_punct=False),
        "fineweb-quality": FineWebQualityFilter(language=language),
    }
    documents = [Document(text=row["text"], id=row["id"]) for row in rows(job["corpus"])]
    decisions: list[dict[str, str]] = []

    def work() -> Job:
        for found in documents:
            decisions.append({"id": found.id, **_decision(steps, found)})
        return {"kept": sum(not found["step"] for found in decisions)}

    answered = measured(work)
    Path(job["decisions"]).write_text("".join(json.dumps(row) + "\n" for row in decisions))
    return answered


def _decision(steps: dict[str, Any], found: Any) -> dict[str, str]:
    for name, step in steps.items():
        verdict = step.filter(found)
        if verdict is not True:
            return {"step": name, "reason": REASONS.get(verdict[1], verdict[1])}
    return {"step": "", "reason": sha256(found.text.encode()).hexdigest()}


def _splitter(words: str, sentences: str) -> Any:
    from datatrove.utils.word_tokenizers import WordTokenizer

    word, sentence = re.compile(words), re.compile(sentences)

    class Splitter(WordTokenizer):
        def word_tokenize(self, text: str) -> list[str]:
            return word.findall(text)

        def sent_tokenize(self, text: str) -> list[str]:
            return [part for part in sentence.split(text) if part]

        def span_tokenize(self, text: str) -> list[tuple[int, int]]:
            ends = [match.end() for match in sentence.finditer(text)]
            bounds = [0, *(end for end in ends if end < len(text)), len(text)]
            return [pair for pair in pairwise(bounds) if pair[0] < pair[1]]

    return Splitter("eng")


def datatrove(job: Job) -> Job:
    """MinHash in its four stages, from JSON Lines to JSON Lines."""
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupFilter
    from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupSignature
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers.jsonl import JsonlWriter
    from datatrove.utils.text import split_into_words

    split_into_words("It is loaded before the clock starts.", "eng")
    file, folder = Path(job["corpus"]), Path(job["folder"]) / "datatrove"
    shutil.rmtree(folder, ignore_errors=True)
    config = MinhashConfig(n_grams=5, num_buckets=14, hashes_per_bucket=8)

    def reader() -> Any:
        return JsonlReader(str(file.parent), glob_pattern=file.name)

    removed = JsonlWriter(str(folder / "removed"), compression=None)
    stages = [
        (1, [reader(), MinhashDedupSignature(output_folder=str(folder / "s"), config=config)]),
        (14, [MinhashDedupBuckets(input_folder=str(folder / "s"), output_folder=str(folder / "b"), config=config)]),
        (1, [MinhashDedupCluster(
            input_folder=str(folder / "b"), output_folder=str(folder / "c"), config=config, save_cluster_id=True,
        )]),
        (1, [
            reader(),
            MinhashDedupFilter(input_folder=str(folder / "c"), exclusion_writer=removed, load_cluster_ids=True),
            JsonlWriter(str(folder / "kept"), compression=None),
        ]),
    ]  # fmt: skip

    def work() -> Job:
        for number, (tasks, pipeline) in enumerate(stages):
            logs = str(folder / f"logs{number}")
            LocalPipelineExecutor(pipeline, tasks=tasks, workers=1, logging_dir=logs, skip_completed=False).run()
        return {}

    answered = measured(work)
    parts = {side: [row for f in sorted((folder / side).glob("*.jsonl")) for row in rows(str(f))]
             for side in ("kept", "removed")}  # fmt: skip
    labels: dict[str, Any] = {}
    for row in (row for side in parts.values() for row in side):
        label = row["metadata"]["minhash_cluster_id"]
        labels[row["id"]] = label if label >= 0 else f"alone {row['id']}"
    Path(job["clusters"]).write_text(json.dumps({"labels": labels, "links": []}))
    return {**answered, "kept": len(parts["kept"])}


def _shingles(text: str) -> list[str]:
    words = re.sub(r"[\W_]+", " ", text.lower()).split()
    return [" ".join(words[at : at + 5]) for at in range(max(1, len(words) - 4))]


def rensa(job: Job) -> Job:
    """Its MinHash and its LSH of 14 bands, with the simplest splitting there is."""
    from rensa import RMinHash, RMinHashLSH

    def work() -> Job:
        return _online(job, lambda: RMinHash(num_perm=112, seed=1), RMinHashLSH(0.7, 112, 14), lambda m, s: m.update(s))

    return _answered(job, measured(work))


def datasketch(job: Job) -> Job:
    """Its MinHash and its LSH of 14 bands of 8."""
    from datasketch import MinHash, MinHashLSH

    def work() -> Job:
        lsh = MinHashLSH(num_perm=112, params=(14, 8))
        return _online(job, lambda: MinHash(112), lsh, lambda m, s: m.update_batch([x.encode() for x in s]))

    return _answered(job, measured(work))


def _online(job: Job, new: Any, lsh: Any, update: Any) -> Job:
    """Each document against those before it; one that has a candidate joins the cluster of the first."""
    names: list[str] = []
    labels: list[int] = []
    with open(Path(job["folder"]) / "kept.jsonl", "w", encoding="utf-8") as file:
        for number, row in enumerate(rows(job["corpus"])):
            signature = new()
            update(signature, _shingles(row["text"]))
            met = lsh.query(signature)
            lsh.insert(number, signature)
            names.append(row["id"])
            labels.append(labels[min(met)] if met else number)
            if not met:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
    job["labels"] = dict(zip(names, labels, strict=True))
    return {"kept": sum(label == number for number, label in enumerate(labels))}


def _answered(job: Job, found: Job) -> Job:
    Path(job["clusters"]).write_text(json.dumps({"labels": job.pop("labels"), "links": []}))
    return found


if __name__ == "__main__":
    answer({"read": read, "filters": filters, "datatrove": datatrove, "rensa": rensa, "datasketch": datasketch})
