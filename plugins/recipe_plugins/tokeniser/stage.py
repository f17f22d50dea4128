"""The stage `tokeniser`: a vocabulary from the training split, special tokens, a chat template."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerFast

from recipe_plugins.tokeniser.config import UNKNOWN, TokeniserConfig
from recipe_plugins.training.conversations import CHATML, TURN_END, TURN_START
from recipe_plugins.training.loading import PLAIN
from recipe_runner import Corpus, RecipeError, Record, StageContext

END, PAD = "<|endoftext|>", "<|pad|>"
_TURNS = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"}]


class TokeniserStage:
    """See the module's text."""

    def __init__(self, config: TokeniserConfig) -> None:
        self.config = config

    def run(self, ctx: StageContext) -> None:
        """Train, give it the template, save, and measure it on held-out text."""
        corpus = ctx.open(self.config.corpus)
        assert isinstance(corpus, Corpus)
        special = [END, PAD, TURN_START, TURN_END, *self.config.special_tokens]
        trained = self.config.algorithm.build().train(_texts(corpus, "train"), self.config.vocab_size, special)
        unknown = {} if trained.token_to_id(UNKNOWN) is None else {"unk_token": UNKNOWN}
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=trained,
            eos_token=END,
            pad_token=PAD,
            extra_special_tokens=special[2:],
            clean_up_tokenization_spaces=False,
            **unknown,
        )
        tokenizer.chat_template = self._template(tokenizer)
        tokenizer.save_pretrained(ctx.payload)
        ctx.note(vocab_size=len(tokenizer), bytes_per_token=bytes_per_token(corpus, tokenizer))
        if unknown:
            _note_unknown(ctx, corpus, tokenizer)
        if len(tokenizer) < self.config.vocab_size:
            ctx.warn(f"the text gave {len(tokenizer)} entries only; {self.config.vocab_size} were asked for")

    def _template(self, tokenizer: PreTrainedTokenizerFast) -> str:
        """The chat template. Raises `RecipeError` where it asks the date, or marks no answer."""
        if self.config.template is None:
            return CHATML
        text = Path(self.config.template).read_text(encoding="utf-8")
        if "strftime_now" in text:
            raise RecipeError(f"{self.config.template}: a template that asks for the date gives other tokens every day")
        try:
            rendered: Any = tokenizer.apply_chat_template(
                _TURNS, chat_template=text, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
            )
        except TemplateError as error:
            raise RecipeError(f"{self.config.template}: {error}") from error
        if not any(rendered["assistant_masks"]):
            raise RecipeError(
                f"{self.config.template} does not mark what the assistant generates",
                next="put {% generation %} and {% endgeneration %} around the answer and its end of turn",
            )
        return text


def _texts(corpus: Corpus, split: str) -> Iterator[str]:
    records = chain.from_iterable(corpus.read(domain, split) for domain in corpus.domains(split))
    return chain.from_iterable(map(_parts, records))


def _parts(record: Record) -> list[str]:
    """The texts of a record: one, or one a turn."""
    return [record.text] if record.text is not None else [str(turn["content"]) for turn in record.messages or ()]


def bytes_per_token(corpus: Corpus, tokenizer: PreTrainedTokenizerFast) -> dict[str, float]:
    """Bytes of UTF-8 a token, of each domain's held-out text; domains without any are left out."""
    found: dict[str, float] = {}
    for domain in corpus.domains("heldout"):
        texts = [text for record in corpus.read(domain, "heldout") for text in _parts(record)]
        tokens = sum(map(len, tokenizer(texts, **PLAIN)["input_ids"])) if texts else 0
        if tokens:
            found[domain] = round(sum(len(text.encode()) for text in texts) / tokens, 4)
    return found


def _note_unknown(ctx: StageContext, corpus: Corpus, tokenizer: PreTrainedTokenizerFast) -> None:
    """Note how many tokens of each domain's held-out text are unknown; warn of any, as they hide bytes."""
    found = dict.fromkeys(corpus.domains("heldout"), 0)
    for domain in found:
        for record in corpus.read(domain, "heldout"):
            for text in _parts(record):
                found[domain] += tokenizer(text, **PLAIN)["input_ids"].count(tokenizer.unk_token_id)
    ctx.note(unknown_tokens=found)
    if sum(found.values()):
        ctx.warn(f"{sum(found.values())} tokens of held-out text are unknown; bits per byte will be too low by them")
