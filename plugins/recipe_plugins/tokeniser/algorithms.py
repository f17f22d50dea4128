"""Algorithms over bytes, on the library `tokenizers`: no text is unknown to them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from recipe_plugins.tokeniser.config import ByteBPEConfig, BytesConfig


class ByteBPE:
    """BPE over bytes, split by GPT-2's rule; all 256 bytes are in the vocabulary, so nothing is unknown."""

    def __init__(self, config: ByteBPEConfig) -> None:
        self.config = config

    def train(self, texts: Iterator[str], vocab_size: int, special_tokens: Sequence[str]) -> Tokenizer:
        """See `Algorithm`."""
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=True)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=self.config.min_frequency,
            special_tokens=list(special_tokens),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer)
        return tokenizer


class Bytes:
    """A token a byte, after the special tokens and in the order of GPT-2's letters for bytes; it learns nothing."""

    def __init__(self, config: BytesConfig) -> None:
        self.config = config

    def train(self, texts: Iterator[str], vocab_size: int, special_tokens: Sequence[str]) -> Tokenizer:
        """See `Algorithm`; `vocab_size` beyond the special tokens and 256 is not used."""
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        vocabulary = {entry: number for number, entry in enumerate([*special_tokens, *alphabet])}
        tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.add_special_tokens(list(special_tokens))
        return tokenizer
