"""Conversations as token ids, with a mask of what the model is to learn: the assistant's answers, and to stop.

The one idea: a conversation is rendered as text in parts, each of which is supervised or not, and the text is cut where
generation begins, since that is where the model's own tokens begin. Guarantees, checked for every row: the ids are
those of the tokenizer's `apply_chat_template`; each answer is supervised as a whole, and so is the token that ends it;
nothing stands in the text but the messages and the template's marks. A row that cannot be rendered so is counted with a
reason; a template for which no row can be is an error.

Where the template is ours (`CHATML`) the parts are known. Another template is read by its generation marks if it has
them, else by prefixes: what the template renders up to an answer must be how the whole begins.

Tools, tool calls and reasoning are the template's to render; a row whose template leaves one out is counted, not
trained on without it. What a tool says is never an answer. A turn with `train: false` is context only.

Limits: roles system, user, assistant and tool; content is text; one end-of-turn token.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from typing import TYPE_CHECKING, Any

import numpy as np

from recipe_runner import RecipeError, Record

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Messages = Sequence[Mapping[str, Any]]
Tools = Sequence[Mapping[str, Any]] | None
"""What a conversation may call, as JSON Schemas."""
Parts = list[tuple[str, bool]]
"""Text in order, each part with whether it is supervised."""

TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}"
    "{{ '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""The template we own (ChatML): it adds the turns' marks and no other text, and marks what the assistant generates."""

IGNORED = -100
ROLES = frozenset({"system", "user", "assistant", "tool"})
_BATCH = 1000
_MARKS = re.compile(r"\{%-?\s*generation\s*-?%\}")
_PROBE = "probe"
_TURNS: Messages = [{"role": "user", "content": _PROBE}, {"role": "assistant", "content": _PROBE}]


class Unusable(ValueError):
    """A row that cannot be trained on; the text is the reason that it is counted under."""


@dataclass(slots=True)
class Encoded:
    """One conversation: `input_ids` int32 and `supervised` bool, both (tokens,).

    `spans` are the first token of each answer and the one after its last, the end of its turn.
    """

    input_ids: np.ndarray
    supervised: np.ndarray
    spans: list[tuple[int, int]]
    record: Record

    @property
    def labels(self) -> np.ndarray:
        """int32, -100 where not supervised; not shifted. The first token has no context, so it is never learned."""
        labels = np.where(self.supervised, self.input_ids, IGNORED).astype(np.int32)
        labels[:1] = IGNORED
        return labels

    @property
    def switched_off(self) -> list[tuple[int, int]]:
        """The spans of the answers that the data says are not to be learned, by `train: false`."""
        answers = [message for message in self.record.messages or () if message["role"] == "assistant"]
        return [span for span, turn in zip(self.spans, answers, strict=False) if turn.get("train") is False]

    def until(self, end: int) -> Encoded:
        """The first `end` tokens, with the answers that are whole in them."""
        whole = [span for span in self.spans if span[1] <= end]
        return Encoded(self.input_ids[:end], self.supervised[:end], whole, self.record)


# ── rendering ────────────────────────────────────────────────────────────────────────────────────────────────────


class Renderer:
    """Renders conversations with one tokenizer and its chat template.

    `method` is `own`, `generation-marks` or `prefixes`; `end_of_turn` the id of the token that ends a turn.
    Raises `RecipeError` if the tokenizer has no template, or one whose turns do not end with a token of their own.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        template = _template(tokenizer)
        self.method = "own" if template == CHATML else "generation-marks" if _MARKS.search(template) else "prefixes"
        self.end_of_turn = self._end_of_turn()
        # Longest first, so that a mark within another does not cut it.
        special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
        special.add(self.end_text)
        self._special = re.compile("|".join(map(re.escape, sorted(special, key=len, reverse=True))))

    @property
    def end_text(self) -> str:
        """The text of the end-of-turn token."""
        return str(self.tokenizer.convert_ids_to_tokens(self.end_of_turn))

    def _end_of_turn(self) -> int:
        after = self.text(_TURNS).rpartition(_PROBE)[2]
        ids = self.ids([after])[0]
        if not ids or ids[0] not in self.tokenizer.added_tokens_decoder:
            raise RecipeError(
                f"the chat template ends an answer with {after!r}, which is no token of its own: "
                "a model could not learn to stop there",
                next="take a tokenizer whose template ends turns with a special token, or set template: chatml",
            )
        return ids[0]

    def text(self, messages: Messages, *, prompt: bool = False, tools: Tools = None) -> str:
        """What the template renders; with `prompt`, up to where the assistant's next answer begins."""
        turns, given = plain(messages), list(tools) if tools else None
        return str(
            self.tokenizer.apply_chat_template(turns, tools=given, tokenize=False, add_generation_prompt=prompt)  # type: ignore[arg-type]
        )

    def prompt(self, messages: Messages) -> list[int]:
        """The ids that the assistant's next answer follows."""
        return self.ids([self.text(messages, prompt=True)])[0]

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text, with nothing added and nothing cut."""
        if not texts:
            return []
        encoded = self.tokenizer(list(texts), add_special_tokens=False, padding=False, truncation=False)
        return [list(ids) for ids in encoded["input_ids"]]

    def encode(self, records: Iterable[Record]) -> Iterator[Encoded | Unusable]:
        """One result a record, in order."""
        iterator = iter(records)
        while batch := list(islice(iterator, _BATCH)):
            yield from self._encode_batch(batch)

    def _encode_batch(self, records: Sequence[Record]) -> Iterator[Encoded | Unusable]:
        rendered = [self._rendered(record) for record in records]
        texts = ["".join(text for text, _ in runs) for runs in rendered if not isinstance(runs, Unusable)]
        runs_of_all = [text for runs in rendered if not isinstance(runs, Unusable) for text, _ in runs]
        whole, pieces = iter(self.ids(texts)), iter(self.ids(runs_of_all))
        for record, runs in zip(records, rendered, strict=True):
            if isinstance(runs, Unusable):
                yield runs
            else:
                yield self._joined(record, runs, list(islice(pieces, len(runs))), next(whole))

    def _rendered(self, record: Record) -> Parts | Unusable:
        """The text in runs that alternate between supervised and not."""
        from jinja2 import TemplateError

        tools = record.meta.get("tools")
        try:
            messages = self._checked(record)
            whole = self.text(messages, tools=tools)
            _all_rendered(messages, tools, whole)
            parts = self._parts(messages, tools)
        except Unusable as reason:
            return reason
        except TemplateError:
            return Unusable("refused-by-the-template")
        if "".join(text for text, _ in parts) != whole:
            raise RecipeError(f"the chat template does not render as it should, first at record {record.id}")
        if not tools and not any(message.get("tool_calls") for message in messages):
            self._nothing_added(messages, whole)
        runs = groupby((part for part in parts if part[0]), key=lambda part: part[1])
        return [("".join(text for text, _ in run), supervised) for supervised, run in runs]

    def _parts(self, messages: Messages, tools: Tools) -> Parts:
        if self.method == "own":
            return chatml(messages)
        by = self._by_marks if self.method == "generation-marks" else self._by_prefixes
        return by(messages, tools)

    def _joined(self, record: Record, runs: Parts, pieces: list[list[int]], whole: list[int]) -> Encoded | Unusable:
        if [token for piece in pieces for token in piece] != whole:
            return Unusable("answer-merges-with-template")  # a token would begin in the prompt and end in the answer
        ends = np.cumsum([len(piece) for piece in pieces]).tolist()
        spans = [(end - len(p), end) for end, p, (_, on) in zip(ends, pieces, runs, strict=True) if on]
        if any(whole[end - 1] != self.end_of_turn for _, end in spans):
            raise RecipeError(
                f"the chat template's generation marks leave out {self.end_text!r}: the model would not learn to stop",
                next="put the end-of-turn token inside the marks, or set template: chatml",
            )
        if len(spans) != sum(message["role"] == "assistant" for message in record.messages or ()):
            return Unusable("answers-run-together")
        supervised = np.zeros(len(whole), dtype=bool)
        for start, end in spans:
            supervised[start:end] = True
        return Encoded(np.asarray(whole, dtype=np.int32), supervised, spans, record)

    def _checked(self, record: Record) -> Messages:
        """The messages. Raises `Unusable` where they are not what this module's text says."""
        messages = record.messages
        if not messages:
            raise Unusable("no-messages")
        for message in messages:
            if message.get("role") not in ROLES:
                raise Unusable("unknown-role")
            if not isinstance(message.get("content"), str):
                raise Unusable("content-is-not-text")
            if any(map(self._special.search, texts(message))):
                raise Unusable("control-token-in-content")
        roles = [message["role"] for message in messages]
        if "assistant" not in roles:
            raise Unusable("no-answer")
        if "user" not in roles[: roles.index("assistant")]:
            raise Unusable("answer-before-question")
        return messages

    def _by_marks(self, messages: Messages, tools: Tools) -> Parts:
        """By the spans that `{% generation %}` marks, as many as there are answers."""
        from transformers.utils.chat_template_utils import render_jinja_template

        arguments: dict[str, Any] = {
            **self.tokenizer.special_tokens_map,
            "conversations": [plain(messages)],
            "tools": list(tools) if tools else None,
            "chat_template": _template(self.tokenizer),
            "return_assistant_tokens_mask": True,
        }
        rendered: Any = render_jinja_template(**arguments)
        (text,), (spans,) = rendered
        return _cut(text, spans, messages)

    def _by_prefixes(self, messages: Messages, tools: Tools) -> Parts:
        """By what the template renders up to each answer, and through it; both must be how the whole begins."""
        whole, spans = self.text(messages, tools=tools), []
        for number in (number for number, message in enumerate(messages) if message["role"] == "assistant"):
            before = self.text(messages[:number], prompt=True, tools=tools)
            text, end, _ = self.text(messages[: number + 1], tools=tools).rpartition(self.end_text)
            if not whole.startswith(before) or not whole.startswith(text + end):
                raise RecipeError(
                    "the chat template has no generation marks and renders an answer differently once another turn "
                    "follows, so what the assistant generated cannot be told",
                    next="set template: chatml, or a template with {% generation %} marks",
                )
            spans.append((len(before), len(text + end)))
        return _cut(whole, spans, messages)

    def _nothing_added(self, messages: Messages, whole: str) -> None:
        """Raises `RecipeError` where the template adds a sentence that is no message's, such as a system prompt."""
        if self.method == "own":
            return
        rest = whole
        said = (str(message.get(part) or "") for message in messages for part in ("reasoning_content", "content"))
        for text in said:
            rest = rest.replace(text.strip() or "\n", "\n", 1)
        for line in re.split(rf"\n|{self._special.pattern}", rest):
            if len(line.split()) >= 3:
                raise RecipeError(
                    f"the chat template adds text that the data does not have: {line.strip()!r}",
                    next="set template: chatml, or give each conversation a system message",
                )


def texts(value: Any) -> Iterator[str]:
    """Every text in a turn: what is said, thought and called with."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from texts(part)
    elif isinstance(value, Sequence):
        for part in value:
            yield from texts(part)


def plain(messages: Messages) -> list[dict[str, Any]]:
    """The messages as templates take them: without what is for us."""
    return [{key: value for key, value in message.items() if key != "train"} for message in messages]


def _all_rendered(messages: Messages, tools: Tools, whole: str) -> None:
    """Raise `Unusable` where the template has left out a tool, a call or a thought."""
    if any(_name_of(tool) not in whole for tool in tools or ()):
        raise Unusable("tools-not-rendered")
    for message in messages:
        if str(message.get("reasoning_content") or "").strip() not in whole:
            raise Unusable("reasoning-not-rendered")
        if any(_name_of(call) not in whole for call in message.get("tool_calls") or ()):
            raise Unusable("tool-calls-not-rendered")


def _name_of(tool: Mapping[str, Any]) -> str:
    """The name of a tool or call: its own, or its function's."""
    function = tool.get("function")
    return str((function if isinstance(function, Mapping) else tool).get("name"))


def chatml(messages: Messages) -> Parts:
    """The parts of a conversation in `CHATML`."""
    parts: Parts = []
    for message in messages:
        parts += [
            (f"{TURN_START}{message['role']}\n", False),
            (message["content"] + TURN_END, message["role"] == "assistant"),
            ("\n", False),
        ]
    return parts


def _cut(text: str, spans: Sequence[tuple[int, int]], messages: Messages) -> Parts:
    """Cut `text` at `spans`, and check that each holds its answer."""
    answers = [message["content"] for message in messages if message["role"] == "assistant"]
    if len(spans) != len(answers):
        raise RecipeError(f"the chat template marks {len(spans)} answers of a conversation that has {len(answers)}")
    parts, done = [], 0
    for (start, end), answer in zip(spans, answers, strict=True):
        if answer.strip() not in text[start:end]:
            raise RecipeError(f"the chat template changes an answer: it renders {text[start:end][:80]!r}")
        parts += [(text[done:start], False), (text[start:end], True)]
        done = end
    return [*parts, (text[done:], False)]


def _template(tokenizer: PreTrainedTokenizerBase) -> str:
    if not tokenizer.chat_template:
        raise RecipeError("the model's tokenizer has no chat template", next="set template: chatml")
    return str(tokenizer.get_chat_template())


def renderer_of(tokenizer: PreTrainedTokenizerBase, template: str) -> Renderer:
    """A renderer with the tokenizer's own template (`model`), or with ours (`chatml`), which it is given for good."""
    if template == "chatml":
        _use_chatml(tokenizer)
    return Renderer(tokenizer)


def _use_chatml(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises `RecipeError` unless the vocabulary has both turn tokens."""
    missing = [token for token in (TURN_START, TURN_END) if token not in tokenizer.added_tokens_encoder]
    if missing:
        raise RecipeError(
            f"template chatml needs the tokens {' and '.join(missing)}, which the model's vocabulary lacks",
            next="set template: model, or take a model whose vocabulary has them",
        )
    tokenizer.chat_template = CHATML


def turn_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids, sorted, of the special tokens that the template writes around turns."""
    renderer = Renderer(tokenizer)
    return sorted(set(renderer.ids([renderer.text(_TURNS)])[0]) & set(tokenizer.added_tokens_decoder))
