"""A filter: it removes documents of few words, and says so in the ledger."""

from collections.abc import Sequence

from recipe_runner import Record, Verdict
from recipe_signum.config import MinWordsConfig


class MinWords:
    """Judges each document alone, by the words that white space divides; of a conversation, those of all turns."""

    def __init__(self, config: MinWordsConfig) -> None:
        self.words = config.words

    def judge(self, batch: Sequence[Record]) -> list[Verdict]:
        """One verdict a record, in order."""
        return [Verdict(True) if self._count(record) >= self.words else Verdict(False, "few-words") for record in batch]

    def _count(self, record: Record) -> int:
        texts = [record.text] if record.text is not None else [m.get("content") or "" for m in record.messages or ()]
        return sum(len(text.split()) for text in texts)
