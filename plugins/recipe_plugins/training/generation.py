"""Answers from a model: one token after another, until it ends its turn.

Prompts of one length go together, so nothing is padded and a batch gives what each would alone, up to rounding. The
most likely token is taken; only `stream` can draw instead.

Limit: the cache grows with each token; that a text becomes longer than what the model was made for is not checked here,
but where its positions are learned, and an answer can only end.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from recipe_plugins.training import sharding
from recipe_plugins.training.conversations import Renderer

BATCH_ROWS = 64


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer, and whether the model ended it."""

    text: str
    ended: bool


def stops(renderer: Renderer) -> frozenset[int]:
    """The ids that end an answer: the end of a turn, and that of a document."""
    return frozenset({renderer.end_of_turn, renderer.tokenizer.eos_token_id} - {None})


def replies(
    model: PreTrainedModel, renderer: Renderer, prompts: Sequence[Sequence[Mapping[str, Any]]], *, limit: int
) -> list[Reply]:
    """The model's answer to each conversation, of at most `limit` tokens.

    `model` is on the device that it stays on; its mode is put back. Of a sharded one all ranks ask the same.
    """
    encoded = [renderer.prompt(messages) for messages in prompts]
    ends, found = stops(renderer), dict[int, list[int]]()
    training, pick = model.training, partial(_likeliest, model)
    model.eval()
    try:
        for numbers in _batches(encoded):
            answers = _continued(model, [encoded[n] for n in numbers], ends, limit, pick)
            found |= zip(numbers, answers, strict=True)
    finally:
        model.train(training)
    return [reply(renderer, found[number], ends) for number in range(len(encoded))]


def _batches(prompts: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """The numbers of prompts of one length."""
    ordered = sorted(range(len(prompts)), key=lambda number: (len(prompts[number]), number))
    for _, group in groupby(ordered, key=lambda number: len(prompts[number])):
        numbers = list(group)
        yield from (numbers[start : start + BATCH_ROWS] for start in range(0, len(numbers), BATCH_ROWS))


def reply(renderer: Renderer, ids: list[int], ends: Collection[int]) -> Reply:
    """The answer that `ids` are; `ends` are those that end one."""
    ended = bool(ids) and ids[-1] in ends
    return Reply(str(renderer.tokenizer.decode(ids[:-1] if ended else ids)), ended)


def drawn(
    model: PreTrainedModel,
    prompts: Sequence[list[int]],
    ends: Collection[int],
    uniform: np.ndarray,
    *,
    temperature: float,
) -> list[list[int]]:
    """An answer to each prompt, drawn at `temperature`, with the token that ended it.

    `uniform`, float64 (prompts, limit) in [0, 1), decides: token t of answer n is where `uniform[n, t]` falls in the
    distribution. So an answer does not depend on what else is drawn. The model's mode is put back.
    """
    found: dict[int, list[int]] = {}
    training = model.training
    model.eval()
    try:
        for numbers in _batches(prompts):
            draws = torch.from_numpy(uniform[numbers]).to(model.device)
            pick = partial(_fallen, draws=draws, temperature=temperature)
            answers = _continued(model, [prompts[n] for n in numbers], ends, uniform.shape[1], pick)
            found |= zip(numbers, answers, strict=True)
    finally:
        model.train(training)
    return [found[number] for number in range(len(prompts))]


def _fallen(logits: torch.Tensor, place: int, *, draws: torch.Tensor, temperature: float) -> torch.Tensor:
    """The token of each row at `place`, (rows, 1)."""
    heights = (logits.double() / temperature).softmax(dim=-1).cumsum(dim=-1)
    at = draws[:, place : place + 1] * heights[:, -1:]
    return torch.searchsorted(heights, at, right=True).clamp(max=logits.shape[-1] - 1)


def _likeliest(model: PreTrainedModel, logits: torch.Tensor, place: int) -> torch.Tensor:
    return sharding.agreed(model, logits.argmax(dim=-1, keepdim=True))


@torch.no_grad()
def _continued(
    model: PreTrainedModel,
    prompts: Sequence[list[int]],
    ends: Collection[int],
    limit: int,
    pick: Callable[[torch.Tensor, int], torch.Tensor],
) -> list[list[int]]:
    """What follows each prompt, all of one length, with the token that ended it; `pick` chooses from logits."""
    given, cache = torch.tensor(prompts, device=model.device), None
    found: list[list[int]] = [[] for _ in prompts]
    room = getattr(model.config, "n_positions", 2**30) - len(prompts[0])  # learned positions are at an end there
    for place in range(max(0, min(limit, room + 1))):
        logits, cache = _next(model, given, cache)
        given = pick(logits, place)
        for answer, (token,) in zip(found, given.tolist(), strict=True):
            if not answer or answer[-1] not in ends:
                answer.append(token)
        if all(answer[-1] in ends for answer in found):
            break
    return found


def _next(model: PreTrainedModel, given: torch.Tensor, cache: Any) -> tuple[torch.Tensor, Any]:
    """The logits (rows, vocabulary) of the token after `given`, and the cache that holds it."""
    output = model(input_ids=given, past_key_values=cache, use_cache=True)
    return output.logits[:, -1].float(), output.past_key_values


@torch.no_grad()
def stream(
    model: PreTrainedModel,
    renderer: Renderer,
    messages: Sequence[Mapping[str, Any]],
    *,
    limit: int,
    temperature: float,
    generator: torch.Generator,
) -> Iterator[str]:
    """The answer in pieces of whole characters, as they come; temperature 0 takes the most likely token."""
    given, cache = torch.tensor([renderer.prompt(messages)], device=model.device), None
    ids: list[int] = []
    shown = ""
    for _ in range(limit):
        logits, cache = _next(model, given, cache)
        token = _drawn(logits[0], temperature, generator)
        if token in stops(renderer):
            break
        ids.append(token)
        given = torch.tensor([[token]], device=model.device)
        text = str(renderer.tokenizer.decode(ids))
        if not text.endswith("\ufffd"):  # a character whose bytes are not all there yet
            yield text[len(shown) :]
            shown = text


def _drawn(logits: torch.Tensor, temperature: float, generator: torch.Generator) -> int:
    if temperature == 0:
        return int(logits.argmax())
    chances = (logits.cpu() / temperature).softmax(dim=-1)
    return int(torch.multinomial(chances, 1, generator=generator))
