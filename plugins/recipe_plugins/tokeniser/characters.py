"""Algorithms over characters, on the library `tokenizers`: a character that the training text lacks is `<|unk|>`.

`bpe` and `characters` give back any text of known characters as it was; `wordpiece` loses white space. All give the
same for the same texts in every process.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from recipe_plugins.tokeniser.config import UNKNOWN, BPEConfig, CharactersConfig, WordPieceConfig
from recipe_plugins.training.encoders import GPT2
from recipe_runner import RecipeError


class BPE:
    """BPE over characters, split by GPT-2's rule."""

    def __init__(self, config: BPEConfig) -> None:
        self.config = config

    def train(self, texts: Iterator[str], vocab_size: int, special_tokens: Sequence[str]) -> Tokenizer:
        """See `Algorithm`. Raises `RecipeError` where the characters alone are more than `vocab_size`."""
        tokenizer = Tokenizer(models.BPE(unk_token=UNKNOWN, fuse_unk=False))
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(GPT2), "isolated")
        tokenizer.decoder = decoders.Fuse()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=self.config.min_frequency,
            special_tokens=[*special_tokens, UNKNOWN],
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer)
        return _within(tokenizer, vocab_size)


class Characters:
    """An entry a character, the most frequent first; of equally frequent ones the lower code point."""

    def __init__(self, config: CharactersConfig) -> None:
        self.config = config

    def train(self, texts: Iterator[str], vocab_size: int, special_tokens: Sequence[str]) -> Tokenizer:
        """See `Algorithm`."""
        counts: Counter[str] = Counter()
        for text in texts:
            counts.update(text)
        special = [*special_tokens, UNKNOWN]
        frequent = sorted(counts, key=lambda character: (-counts[character], character))[: vocab_size - len(special)]
        vocabulary = {entry: number for number, entry in enumerate([*special, *frequent])}
        tokenizer = Tokenizer(models.WordLevel(vocab=vocabulary, unk_token=UNKNOWN))
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
        tokenizer.decoder = decoders.Fuse()
        tokenizer.add_special_tokens(special)
        return tokenizer


class WordPiece:
    """BERT's pieces, without its lower-casing: words and punctuation apart, `##` before what continues a word.

    The library numbers `##x` in the order of a hash table and breaks ties by number; so those are numbered first here.
    """

    def __init__(self, config: WordPieceConfig) -> None:
        self.config = config

    def train(self, texts: Iterator[str], vocab_size: int, special_tokens: Sequence[str]) -> Tokenizer:
        """See `Algorithm`; keeps the distinct words of the texts in memory. Raises `RecipeError` as `BPE` does."""
        splitter = pre_tokenizers.BertPreTokenizer()
        words = Counter(word for text in texts for word, _ in splitter.pre_tokenize_str(text))
        special = [*special_tokens, UNKNOWN]
        tokenizer = Tokenizer(
            models.WordPiece(
                vocab=self._vocabulary(words, vocab_size, special),
                unk_token=UNKNOWN,
                max_input_chars_per_word=self.config.max_word,
                continuing_subword_prefix="##",
            )
        )
        tokenizer.pre_tokenizer = splitter
        tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=False)
        tokenizer.add_special_tokens(special)
        return _within(tokenizer, vocab_size)

    def _vocabulary(self, words: Counter[str], vocab_size: int, special: list[str]) -> dict[str, int]:
        learner = Tokenizer(models.BPE(continuing_subword_prefix="##"))
        learner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=self.config.min_frequency,
            special_tokens=[*special, *sorted({f"##{character}" for word in words for character in word[1:]})],
            continuing_subword_prefix="##",
            show_progress=False,
        )
        learner.train_from_iterator(words.elements(), trainer)
        return learner.get_vocab(with_added_tokens=False)


def _within(tokenizer: Tokenizer, vocab_size: int) -> Tokenizer:
    """The tokenizer, if its alphabet left it as small as was asked for."""
    found = tokenizer.get_vocab_size()
    if found > vocab_size:
        raise RecipeError(
            f"the characters of the text and the special tokens alone are {found} entries; vocab_size is {vocab_size}",
            next="raise vocab_size, or choose byte-bpe, which needs 256 for any text",
        )
    return tokenizer
