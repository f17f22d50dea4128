"""Unigram pieces over bytes: scores learned by the library `sentencepiece`, used by a model of `tokenizers`.

The one idea: words, split by GPT-2's rule and written in its letters for bytes, are counted, and the counts are what is
learned from. So no text is unknown, every text comes back, and the order of the texts does not matter. The trainer of
`tokenizers` is not used: it sums in the order of a hash table, so its scores differ from process to process, with one
thread and sorted words too (tried with tokenizers 0.23).

Limit: the distinct words of the texts are kept in memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from recipe_plugins.tokeniser.config import UnigramConfig
from recipe_runner import RecipeError

try:
    from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
except ImportError as error:
    raise RecipeError(
        "the algorithm unigram needs sentencepiece, which is not installed",
        next="pip install 'recipe-runner[sentencepiece]'",
    ) from error

_NEVER = -1e6
"""The score of a special token: no way through a text is as bad, so text never becomes one."""

_ABSENT = 10.0
"""What a byte that the texts lack scores below the worst piece; sentencepiece's own penalty of the unknown."""


class Unigram:
    """A unigram language model over pieces of words; all 256 bytes are in the vocabulary."""

    def __init__(self, config: UnigramConfig) -> None:
        self.config = config

    def train(self, texts: Iterator[str], vocab_size: int, special_tokens: Sequence[str]) -> Tokenizer:
        """See `Algorithm`."""
        splitter = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=True)
        words = Counter(word for text in texts for word, _ in splitter.pre_tokenize_str(text))
        absent = sorted(set(pre_tokenizers.ByteLevel.alphabet()) - {letter for word in words for letter in word})
        pieces = self._pieces(words, vocab_size - len(special_tokens) - len(absent))
        least = min((score for _, score in pieces), default=0.0) - _ABSENT
        entries = [(token, _NEVER) for token in special_tokens]
        entries += [(piece, score) for piece, score in pieces if piece not in special_tokens]
        entries += [(letter, least) for letter in absent if letter not in special_tokens]
        tokenizer = Tokenizer(models.Unigram(entries, unk_id=None, byte_fallback=False))
        tokenizer.pre_tokenizer = splitter
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.add_special_tokens(list(special_tokens))
        return tokenizer

    def _pieces(self, words: Mapping[str, int], room: int) -> list[tuple[str, float]]:
        """At most `room` pieces, the likeliest first, and their log-probabilities; every letter of `words` is one."""
        if not words:
            return []
        model = BytesIO()
        SentencePieceTrainer.train(
            sentence_iterator=(f"{word}\t{count}" for word, count in sorted(words.items())),
            input_format="tsv",
            model_writer=model,
            model_type="unigram",
            vocab_size=room + 1,  # with an unknown token, which is left out below
            unk_id=0,
            bos_id=-1,
            eos_id=-1,
            pad_id=-1,
            hard_vocab_limit=False,
            character_coverage=1.0,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            split_by_whitespace=False,
            split_by_unicode_script=False,
            split_by_number=False,
            split_digits=False,
            max_sentencepiece_length=self.config.max_piece,
            max_sentence_length=2**30,  # a longer word would be left out; this is the most that it takes
            seed_sentencepiece_size=1_000_000,
            shrinking_factor=0.75,
            num_sub_iterations=2,
            input_sentence_size=0,
            shuffle_input_sentence=False,
            num_threads=1,
            minloglevel=2,
        )
        found = SentencePieceProcessor(model_proto=model.getvalue())
        return [(found.id_to_piece(number), found.get_score(number)) for number in range(1, found.get_piece_size())]
