"""What `score` can measure of a document by itself, under a name that no step has to leave first.

Length in words (as white space parts them) and characters; diversity as distinct-2 (Li et al. 2016): different pairs of
neighbouring words, in lower case, as a share of all pairs; 1 for fewer than two pairs. `prompt_…` is of what the user
says in all turns, `answer_…` of what the assistant says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from itertools import pairwise

from recipe_plugins.filters.text import text_of
from recipe_runner import RecipeError, Record


def _said(role: str, record: Record) -> str:
    if record.messages is None:
        raise RecipeError(
            f"{record.id} is no conversation, so it has no prompt and no answer",
            next="measure `words`, `characters` or `diversity`, or apply the step elsewhere: only: {domain: […]}",
        )
    return "\n".join(str(turn.get("content") or "") for turn in record.messages if turn.get("role") == role)


def _words(text: str) -> float:
    return len(text.split())


def diversity(text: str) -> float:
    """Distinct-2, in [0, 1]."""
    pairs = list(pairwise(text.lower().split()))
    return len(set(pairs)) / len(pairs) if len(pairs) > 1 else 1.0


def _turns(record: Record) -> float:
    return len(record.messages or ())


TEXTS: Mapping[str, Callable[[Record], str]] = {
    "": text_of, "prompt_": partial(_said, "user"), "answer_": partial(_said, "assistant"),
}  # fmt: skip
FIGURES: Mapping[str, Callable[[str], float]] = {"words": _words, "characters": len, "diversity": diversity}
NAMES = frozenset({"turns", *(of + figure for of in TEXTS for figure in FIGURES)})


def measured(record: Record, name: str) -> float:
    """The measure of that name, one of `NAMES`."""
    if name == "turns":
        return _turns(record)
    of = next(prefix for prefix in ("prompt_", "answer_", "") if name.startswith(prefix))
    return float(FIGURES[name.removeprefix(of)](TEXTS[of](record)))
