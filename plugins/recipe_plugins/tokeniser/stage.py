"""The stages `tokeniser`, a vocabulary from the training split, and `pretrained-tokeniser`, somebody's with more
tokens; each with special tokens and a chat template."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from hashlib import sha256
from itertools import chain
from typing import Any

from tokenizers import AddedToken
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from recipe_plugins.tokeniser.config import END, OWN, PAD, UNKNOWN, PretrainedTokeniserConfig, TokeniserConfig
from recipe_plugins.tokeniser.report import parts, report
from recipe_plugins.tokeniser.template import changes, template_of_file
from recipe_plugins.training.conversations import CHATML, TURN_END, TURN_START
from recipe_plugins.training.loading import load_tokenizer
from recipe_runner import Corpus, RecipeError, Ref, StageContext


class TokeniserStage:
    """See `recipe_plugins.tokeniser.config.TokeniserConfig`."""

    def __init__(self, config: TokeniserConfig) -> None:
        self.config = config

    def run(self, ctx: StageContext) -> None:
        """Train, give it the template, save, and measure it on held-out text."""
        corpus = ctx.open(self.config.corpus)
        assert isinstance(corpus, Corpus)
        special = [*OWN, *self.config.special_tokens]
        trained = self.config.algorithm.build().train(
            _texts(corpus, self.config.sample), self.config.vocab_size, special
        )
        unknown = {} if trained.token_to_id(UNKNOWN) is None else {"unk_token": UNKNOWN}
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=trained,
            eos_token=END,
            pad_token=PAD,
            extra_special_tokens=special[2:],
            clean_up_tokenization_spaces=False,
            **unknown,
        )
        own = self.config.template
        tokenizer.chat_template = CHATML if own is None else template_of_file(own, tokenizer)
        tokenizer.save_pretrained(ctx.payload)
        ctx.note(vocab_size=len(tokenizer))
        report(ctx, corpus, tokenizer, reference(ctx, self.config.reference))
        if len(tokenizer) < self.config.vocab_size:
            ctx.warn(f"the text gave {len(tokenizer)} entries only; {self.config.vocab_size} were asked for")


class PretrainedTokeniserStage:
    """See `recipe_plugins.tokeniser.config.PretrainedTokeniserConfig`."""

    def __init__(self, config: PretrainedTokeniserConfig) -> None:
        self.config = config

    def run(self, ctx: StageContext) -> None:
        """Load, add tokens, settle the template, save, and measure it on held-out text."""
        config = self.config
        tokenizer = load_tokenizer(ctx, ctx.open(config.tokeniser))
        if not tokenizer.is_fast:
            raise RecipeError(
                f"{config.tokeniser} has no tokenizer.json, without which tokens have no places in the text",
                next="convert it with AutoTokenizer.from_pretrained(…).save_pretrained(…), and name that folder",
            )
        before = len(tokenizer)
        self._add(tokenizer, config.tokens, special=False)
        self._add(tokenizer, config.special_tokens, special=True)
        if config.chat == "chatml":
            turns = [token for token in (TURN_START, TURN_END) if token not in tokenizer.get_vocab()]
            self._add(tokenizer, turns, special=True)
        tokenizer.chat_template = self._template(tokenizer)
        tokenizer.save_pretrained(ctx.payload)
        ctx.note(vocab_size=len(tokenizer), added=len(tokenizer) - before)
        if config.corpus is not None:
            corpus = ctx.open(config.corpus)
            assert isinstance(corpus, Corpus)
            report(ctx, corpus, tokenizer, reference(ctx, config.reference))

    def _add(self, tokenizer: PreTrainedTokenizerBase, tokens: Sequence[str], *, special: bool) -> None:
        known = sorted(set(tokens) & set(tokenizer.get_vocab()))
        if known:
            raise RecipeError(
                f"{self.config.tokeniser} has {', '.join(known[:3])} already", next="leave it out of the tokens to add"
            )
        tokenizer.add_tokens([AddedToken(token, special=special, normalized=False) for token in tokens])

    def _template(self, tokenizer: PreTrainedTokenizerBase) -> str | None:
        if self.config.template is not None:
            return template_of_file(self.config.template, tokenizer)
        if self.config.chat == "chatml":
            return CHATML
        own: Any = tokenizer.chat_template
        several = own.values() if isinstance(own, dict) else [own]  # by name, such as one for the use of tools
        if any(changes(template) for template in several if template):
            raise RecipeError(
                f"the chat template of {self.config.tokeniser} asks for the date, and so gives other tokens every day",
                next="set `chat: chatml`, or `template:` to a Jinja file",
            )
        return own


def reference(ctx: StageContext, ref: Ref | None) -> tuple[str, PreTrainedTokenizerBase] | None:
    """The tokenizer to compare with, and its name."""
    return None if ref is None else (ref.text, load_tokenizer(ctx, ctx.open(ref)))


def _texts(corpus: Corpus, sample: int | None) -> Iterator[str]:
    """The training texts; with `sample`, those of the share of documents that has about so many bytes.

    Which documents follows from the hash of their ids, so neither order nor what else there is moves it.
    """
    there = corpus.domains("train")
    share = 1.0 if sample is None else sample / max(1, sum(counts.bytes for counts in there.values()))
    records = chain.from_iterable(corpus.read(domain, "train") for domain in there)
    return chain.from_iterable(parts(record) for record in records if share >= 1 or _place(record.id) < share)


def _place(name: str) -> float:
    """A number in [0, 1) that a document's id decides."""
    return int.from_bytes(sha256(name.encode()).digest()[:8], "big") / 2**64
