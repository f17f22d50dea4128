"""Settings of the stage `tokeniser`, and the protocol of its algorithms."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Protocol

from pydantic import Field, model_validator

from recipe_runner import (
    Config,
    Corpus,
    Count,
    Estimate,
    File,
    Input,
    Known,
    Model,
    RecipeError,
    Ref,
    Size,
    Slot,
    StageConfig,
    Tokeniser,
    Use,
)

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class Algorithm(Protocol):
    """How a vocabulary is made from text; a component of kind `algorithm`."""

    def train(self, texts: Iterator[str], vocab_size: int, special_tokens: Sequence[str]) -> Tokenizer:
        """A tokenizer of at most `vocab_size` entries, those of `special_tokens` first; the same for the same texts."""
        ...


END, PAD = "<|endoftext|>", "<|pad|>"
OWN = (END, PAD, "<|im_start|>", "<|im_end|>")
"""The special tokens that every tokeniser gets: the end of a document, padding, and around a turn."""

UNKNOWN = "<|unk|>"
"""The special token for what a vocabulary lacks; algorithms to which nothing is unknown have none."""


class BytesConfig(Config):
    """The 256 bytes (as ByT5: Xue et al. 2022, arXiv:2105.13626)."""

    least: ClassVar[int] = 256


class CharactersConfig(Config):
    """Characters, the most frequent ones if there are more than `vocab_size` has room for."""


class BPEConfig(Config):
    """Byte-pair encoding over characters (Sennrich et al. 2016, arXiv:1508.07909, section 3.2)."""

    min_frequency: Annotated[int, Field(ge=1, description="how often a pair must occur to be merged")] = 2


class WordPieceConfig(Config):
    """WordPiece's longest match first (Devlin et al. 2019, arXiv:1810.04805), its pieces learned by pair merges."""

    min_frequency: Annotated[int, Field(ge=1, description="how often a pair must occur to be merged")] = 2
    max_word: Annotated[int, Field(ge=1, description="longer words are unknown; characters")] = 100


class ByteBPEConfig(Config):
    """Byte-level byte-pair encoding (Radford et al. 2019, the GPT-2 report, section 2.2)."""

    least: ClassVar[int] = 256
    min_frequency: Annotated[int, Field(ge=1, description="how often a pair must occur to be merged")] = 2


class UnigramConfig(Config):
    """A unigram language model (Kudo 2018, arXiv:1804.10959, section 3.2) over bytes, as byte-level BPE has them."""

    least: ClassVar[int] = 256
    max_piece: Annotated[int, Field(ge=1, le=512, description="longest piece, bytes")] = 16


class TokeniserConfig(StageConfig):
    """A tokeniser trained on the training split of a corpus.

    The special tokens are `<|endoftext|>` (the end of a document), `<|pad|>`, `<|im_start|>` and `<|im_end|>` (around
    the turns of a conversation), and those of `special_tokens`. Algorithms that do not know every text add `<|unk|>`.
    """

    corpus: Annotated[Ref, Input((Corpus,))]
    algorithm: Annotated[Use[Algorithm], Slot("algorithm")] = "byte-bpe"  # type: ignore[assignment]
    vocab_size: Annotated[Count, Field(ge=6, description="entries in all, special tokens included")]
    sample: Annotated[
        Annotated[Size, Field(gt=0)] | None,
        Field(description="bytes of text to learn from, about, of every domain its share; left out: all of it"),
    ] = None
    special_tokens: Annotated[tuple[str, ...], Field(description="more of them")] = ()
    template: Annotated[
        str | None, File(), Field(description="a Jinja file with generation marks, in place of ChatML")
    ] = None

    reference: Annotated[
        Ref | None, Input((Tokeniser, Model)), Field(description="a tokeniser to compare with, on held-out text")
    ] = None

    @model_validator(mode="after")
    def _told_apart(self) -> TokeniserConfig:
        for number, token in enumerate(self.special_tokens):
            if not token or token in (*OWN, UNKNOWN) or token in self.special_tokens[:number]:
                why = "is there already" if token else "is no token"
                raise RecipeError(f"{token!r} {why}", next="leave it out", field=["special_tokens", number])
        return self

    @model_validator(mode="after")
    def _room(self) -> TokeniserConfig:
        needed = len(OWN) + len(self.special_tokens) + getattr(self.algorithm.config, "least", 2)
        if self.vocab_size < needed:
            raise ValueError(f"vocab_size {self.vocab_size} is too small: special tokens and bytes alone are {needed}")
        return self

    def produces(self) -> type[Tokeniser]:
        """A tokeniser."""
        return Tokeniser

    def estimate(self, known: Known) -> Estimate:
        """Later stages size their embeddings by `vocab_size`."""
        return Estimate(facts={"vocab_size": self.vocab_size})


class PretrainedTokeniserConfig(StageConfig):
    """Somebody's tokeniser, with more tokens and a chat template of one's choice.

    Added tokens go behind the others; a model that is trained on gives them rows at the mean of its old ones. Ids of
    the others stay. A corpus is read for the report only.
    """

    tokeniser: Annotated[Ref, Input((Tokeniser, Model))]
    tokens: Annotated[tuple[str, ...], Field(description="to add, as words that are never divided")] = ()
    special_tokens: Annotated[tuple[str, ...], Field(description="to add, which text never becomes")] = ()
    chat: Annotated[Literal["own", "chatml"], Field(description="its own template, or ChatML with its two tokens")] = (
        "own"
    )
    template: Annotated[str | None, File(), Field(description="a Jinja file with generation marks, in place of it")] = (
        None
    )
    corpus: Annotated[Ref | None, Input((Corpus,)), Field(description="to report on")] = None
    reference: Annotated[
        Ref | None, Input((Tokeniser, Model)), Field(description="a tokeniser to compare with; needs a corpus")
    ] = None

    @model_validator(mode="after")
    def _useful(self) -> PretrainedTokeniserConfig:
        if self.reference is not None and self.corpus is None:
            raise ValueError("reference needs a corpus to compare on")
        twice = {token for token in self.tokens if self.tokens.count(token) > 1} | (
            set(self.tokens) & set(self.special_tokens)
        )
        if twice:
            raise ValueError(f"{sorted(twice)[0]!r} is added twice")
        return self

    def produces(self) -> type[Tokeniser]:
        """A tokeniser."""
        return Tokeniser

    def estimate(self, known: Known) -> Estimate:
        """Later stages size their embeddings by `vocab_size`, known where the other tokeniser's is."""
        before = known.fact("tokeniser", "vocab_size")
        added = len(self.tokens) + len(self.special_tokens)
        return Estimate(facts={"vocab_size": before + added if before and self.chat == "own" else None})
