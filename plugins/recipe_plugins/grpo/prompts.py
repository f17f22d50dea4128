"""Prompts as rows: conversations without their last answer, which is what is expected."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from recipe_plugins.rewards.config import Completion, Reward, RewardOptions
from recipe_plugins.training.answers import last_answer
from recipe_plugins.training.conversations import Renderer
from recipe_plugins.training.preparation import Report
from recipe_runner import RecipeError, Record, Use


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the model is asked: `ids` end where its answer begins."""

    record: Record
    ids: list[int]
    expected: str

    @property
    def messages(self) -> Sequence[Mapping[str, Any]]:
        """Those before the answer."""
        messages = self.record.messages or ()
        return messages[: last_answer(messages)]


def prompts_of(records: Iterable[Record], renderer: Renderer, longest: int) -> tuple[list[Prompt], Report]:
    """The prompts of `records` that have at most `longest` tokens, and the account of all.

    Raises `RecipeError` for plain text.
    """
    report, kept = Report(renderer.method), []
    for record in records:
        if record.messages is None:
            raise RecipeError(
                f"record {record.id} of the corpus is plain text; prompts come from conversations",
                next="read its source with `format: messages` or `format: alpaca`",
            )
        report.read += 1
        reason = _unfit(record)
        if reason:
            report.dropped[reason] += 1
            continue
        place = last_answer(record.messages)
        prompt = Prompt(record, renderer.prompt(record.messages[:place]), str(record.messages[place]["content"]))
        report.longest = max(report.longest, len(prompt.ids))
        if len(prompt.ids) > longest:
            report.dropped["too-long"] += 1
            continue
        report.kept += 1
        report.tokens += len(prompt.ids)
        kept.append(prompt)
    return kept, report


def _unfit(record: Record) -> str:
    """Why nothing can be asked, or ""."""
    messages = record.messages or ()
    if last_answer(messages) == 0:
        return "no-answer-to-a-question"
    return "tools-cannot-be-called-here" if record.meta.get("tools") else ""


class PromptRows:
    """Rows as `training.order.Rows`: each is the number of its prompt."""

    def __init__(self, prompts: Sequence[Prompt]) -> None:
        self.prompts = prompts

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, number: int) -> Mapping[str, Any]:
        return {"number": number}


class Judge:
    """The rewards of a recipe, each by its name, and their weighted sum."""

    def __init__(self, uses: Mapping[str, Use[Reward]]) -> None:
        self._rewards = {name: use.build() for name, use in uses.items()}
        self._weights = {name: _weight(use) for name, use in uses.items()}

    def parts(self, completions: Sequence[Completion]) -> dict[str, list[float]]:
        """What each reward says of each answer, before weights. Raises `RecipeError` for another number of answers."""
        found = {
            name: [float(value) for value in reward.rewards(completions)] for name, reward in self._rewards.items()
        }
        for name, values in found.items():
            if len(values) != len(completions):
                raise RecipeError(f"rewards.{name} judged {len(values)} of {len(completions)} answers")
        return found

    def total(self, parts: Mapping[str, Sequence[float]]) -> list[float]:
        """The weighted sums."""
        weighted = [[self._weights[name] * value for value in values] for name, values in parts.items()]
        return [sum(values) for values in zip(*weighted, strict=True)]


def _weight(use: Use[Reward]) -> float:
    assert isinstance(use.options, RewardOptions)
    return use.options.weight
