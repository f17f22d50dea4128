"""What stages make: typed, immutable folders on disk, and torch-free handles to them.

A handle loads no tensor; it knows where the payload lies, its digest, and the manifest that was committed with it.
A model from the hub or from a path has no manifest of ours; its handle has an empty one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from recipe_runner.contract import Branch, Counts, Record


class Artifact:
    """A committed folder. `path` is the artifact, `payload` the part of it that the digest covers."""

    type: ClassVar[str] = "artifact"

    def __init__(self, path: Path, digest: str, manifest: Mapping[str, Any]) -> None:
        self.path, self.digest, self.manifest = path, digest, manifest

    @property
    def payload(self) -> Path:
        """The folder to load from: `payload/` of ours, the folder itself of a foreign one."""
        return self.path / "payload" if self.manifest else self.path

    @property
    def facts(self) -> Mapping[str, Any]:
        """What the stage noted about it."""
        return self.manifest.get("facts", {})

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r}, digest={self.digest[:12]!r})"


class Corpus(Artifact):
    """Documents or conversations by split and domain: `payload/<split>/<domain>/*.jsonl`, each domain apart.

    `payload/corpus.json` lists the shards in their stable order:
    `{"domains": {domain: {split: {"documents", "bytes", "shards": [{"file", "documents", "bytes"}]}}}}`.
    """

    type = "corpus"

    def _index(self) -> Mapping[str, Any]:
        with open(self.payload / "corpus.json", encoding="utf-8") as file:
            return json.load(file)["domains"]

    def domains(self, split: str = "train") -> Mapping[str, Counts]:
        """Documents and bytes of text of each domain in `split`, in the order of the recipe."""
        empty = {"documents": 0, "bytes": 0}
        found = {domain: splits.get(split, empty) for domain, splits in self._index().items()}
        return {domain: Counts(entry["documents"], entry["bytes"]) for domain, entry in found.items()}

    def read(self, domain: str, split: str = "train", start: int = 0) -> Iterator[Record]:
        """The records of a domain in their stable order, from the `start`-th on; whole shards before it are skipped."""
        for shard in self._index()[domain].get(split, {}).get("shards", ()):
            if start >= shard["documents"]:
                start -= shard["documents"]
                continue
            with open(self.payload / shard["file"], encoding="utf-8", newline="\n") as lines:
                for number, line in enumerate(lines):
                    if number >= start:
                        yield Record(**json.loads(line))
            start = 0


class Tokeniser(Artifact):
    """`payload/` loads with `AutoTokenizer`; the chat template is in it."""

    type = "tokeniser"


class Model(Artifact):
    """`payload/` loads with `AutoModelForCausalLM` and `AutoTokenizer`."""

    type = "model"

    def branch_point(self) -> Branch | None:
        """The state at the end of the stable phase, from which `anneal` goes on; `None` where none was kept."""
        found = self.path / "branch" / "branch.json"
        if not found.is_file():
            return None
        return Branch(path=found.parent, **json.loads(found.read_text(encoding="utf-8")))


class Adapter(Artifact):
    """`payload/` loads with `PeftModel`; `facts["base"]` has the base's digest."""

    type = "adapter"


class RewardModel(Artifact):
    """`payload/` loads with `AutoModelForSequenceClassification` (one label) and `AutoTokenizer`."""

    type = "reward-model"


class Evaluation(Artifact):
    """`payload/results.json`."""

    type = "evaluation"

    def results(self) -> Mapping[str, Any]:
        """The results, as the stage wrote them."""
        return json.loads((self.payload / "results.json").read_text(encoding="utf-8"))


TYPES: Mapping[str, type[Artifact]] = {
    cls.type: cls for cls in (Corpus, Tokeniser, Model, Adapter, RewardModel, Evaluation)
}
"""The artifact types, by the name that stands in a manifest."""
