"""Algorithms that make a vocabulary, on the library `tokenizers`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from recipe_plugins.tokeniser.config import ByteBPEConfig


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
