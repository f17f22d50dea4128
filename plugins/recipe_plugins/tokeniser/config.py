"""Settings of the stage `tokeniser`, and the protocol of its algorithms."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Protocol

from pydantic import Field

from recipe_runner import Config, Corpus, Count, Estimate, File, Input, Known, Ref, Slot, StageConfig, Tokeniser, Use

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class Algorithm(Protocol):
    """How a vocabulary is made from text; a component of kind `algorithm`."""

    def train(self, texts: Iterator[str], vocab_size: int, special_tokens: Sequence[str]) -> Tokenizer:
        """A tokenizer of at most `vocab_size` entries, those of `special_tokens` first; the same for the same texts."""
        ...


class ByteBPEConfig(Config):
    """Byte-level byte-pair encoding (Radford et al. 2019, the GPT-2 report, section 2.2)."""

    min_frequency: Annotated[int, Field(ge=1, description="how often a pair must occur to be merged")] = 2


class TokeniserConfig(StageConfig):
    """A tokeniser trained on the training split of a corpus.

    The special tokens are `<|endoftext|>` (the end of a document), `<|pad|>`, `<|im_start|>` and `<|im_end|>` (around
    the turns of a conversation), and those of `special_tokens`.
    """

    corpus: Annotated[Ref, Input((Corpus,))]
    algorithm: Annotated[Use[Algorithm], Slot("algorithm")] = "byte-bpe"  # type: ignore[assignment]
    vocab_size: Annotated[Count, Field(ge=264, description="entries in all, special tokens included")]
    special_tokens: Annotated[tuple[str, ...], Field(description="more of them")] = ()
    template: Annotated[
        str | None, File(), Field(description="a Jinja file with generation marks, in place of ChatML")
    ] = None

    def produces(self) -> type[Tokeniser]:
        """A tokeniser."""
        return Tokeniser

    def estimate(self, known: Known) -> Estimate:
        """Later stages size their embeddings by `vocab_size`."""
        return Estimate(facts={"vocab_size": self.vocab_size})
