"""Pydantic's errors as people read them: where, what is expected and what was given, what next.

The one idea: each type of pydantic's errors is a phrase in one table, put as `… is expected; got …`; whichever members
of a union were tried, a place has one problem. Limit: a type that the table lacks keeps pydantic's own words.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from typing import Any

from pydantic import ValidationError

from recipe_runner.components import Validation
from recipe_runner.errors import PluginError, Problem, RecipeError, suggest
from recipe_runner.layers import ABSENT, at
from recipe_runner.merging import Tree
from recipe_runner.origins import Origins, problem_at

HEAD = ("schema", "name", "seed", "extends", "requires", "vars", "execution", "trackers", "stages")

_MAPPING = "a mapping, `name: value`,"
_EXPECTED = {
    **dict.fromkeys(("int_type", "int_parsing", "int_parsing_size", "int_from_float"), "a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false"),
    **dict.fromkeys(("list_type", "tuple_type", "set_type"), "a list, `[one, two]`,"),
    **dict.fromkeys(("dict_type", "mapping_type", "model_type", "model_attributes_type"), _MAPPING),
    **dict.fromkeys(("too_short", "string_too_short"), "a length of at least {min_length}"),
    **dict.fromkeys(("too_long", "string_too_long"), "a length of at most {max_length}"),
    "string_type": "text",
    "finite_number": "a finite number",
    "literal_error": "{expected}",
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "multiple_of": "a multiple of {multiple_of}",
    "string_pattern_mismatch": "text of the form {pattern}",
    "none_required": "null",
}
_OWN = ("extra_forbidden", "missing", "component", "slot", "ref", "file_missing", "value_error", "size")


def worded_problems(
    error: ValidationError, tree: Tree, origins: Origins, context: Validation, above: tuple[str, ...] = ()
) -> list[Problem]:
    """One problem for each place of `tree`, of which what was validated lies at `above`."""
    places: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for entry in error.errors(include_url=False):
        loc = _real((*above, *entry["loc"]), tree, missing=entry["type"] in ("missing", "extra_forbidden"))
        loc += getattr(entry.get("ctx", {}).get("error"), "field", ())
        places.setdefault(loc, []).append(entry)
    for loc in [loc for loc, entries in places.items() if {e["type"] for e in entries} == {"too_short"}]:
        if any(len(other) > len(loc) and other[: len(loc)] == loc for other in places):
            del places[loc]  # entries that are wrong are not counted
    return [_problem(entries, loc, tree, origins, context) for loc, entries in places.items()]


def _problem(
    entries: Sequence[Mapping[str, Any]], loc: tuple[str, ...], tree: Tree, origins: Origins, context: Validation
) -> Problem:
    first = entries[0]
    missing = first["type"] == "component"
    broken = bool(context.registry.failures) if missing else isinstance(first.get("ctx", {}).get("error"), PluginError)
    what, next_ = worded(entries, loc, tree, context)
    loc = (*loc, "use") if missing and (*loc, "use") in origins else loc
    return replace(problem_at(origins, loc, what, next_), plugin=broken)


def _real(loc: Sequence[Any], tree: Any, missing: bool) -> tuple[str, ...]:
    """The keys of a location; parts that are not keys (tags of unions) are skipped."""
    found: list[str] = []
    for number, part in enumerate(loc):
        if at(tree, (*found, str(part)), ABSENT) is not ABSENT or (missing and number == len(loc) - 1):
            found.append(str(part))
    return tuple(found)


def worded(
    entries: Sequence[Mapping[str, Any]], loc: tuple[str, ...], tree: Tree, context: Validation
) -> tuple[str, str]:
    """What is wrong with one value, whose type may be one of several, and what next."""
    phrases = [_EXPECTED[e["type"]].format(**e.get("ctx", {})) for e in entries if e["type"] in _EXPECTED]
    others = [_sentence(entry, loc, tree, context) for entry in entries if entry["type"] not in _EXPECTED]
    expected = [f"{' or '.join(dict.fromkeys(phrases))} is expected"] if phrases else []
    what = " or ".join(dict.fromkeys([*expected, *(what for what, _ in others)]))
    got = "" if entries[0]["type"] in _OWN else f"; got {_shown(entries[0]['input'])}"
    if not others and set(phrases) == {_MAPPING}:
        return what + got, _where_told(loc, tree)
    return what + got, others[0][1] if others else _instead(entries[0]["input"], entries)


def _where_told(loc: tuple[str, ...], tree: Tree) -> str:
    """The command that shows the fields of the component that a place belongs to."""
    blocks = [at(tree, loc[:length]) for length in range(len(loc) - 1, 0, -1)]
    used = next((block["use"] for block in blocks if isinstance(block, Mapping) and "use" in block), None)
    return f"`recipe plugins show {used}` says what it takes" if used else ""


def _instead(given: Any, entries: Sequence[Mapping[str, Any]]) -> str:
    """What to write instead, where that can be guessed."""
    found = {entry["type"]: entry.get("ctx", {}) for entry in entries}
    if not isinstance(given, (str, int, float)):
        return ""
    if "literal_error" in found:
        words = re.findall(r"'([^']*)'", found["literal_error"]["expected"])
        close = get_close_matches(str(given), words, n=1, cutoff=0.75)  # gpu is not meant to be cpu
        return f"did you mean {close[0]!r}?" if close else ""
    if found.keys() == {"string_pattern_mismatch"}:
        dashed = re.sub(r"[^\w-]+", "-", str(given))
        return f"write {dashed}" if re.search(found["string_pattern_mismatch"]["pattern"], dashed) else ""
    if found.keys() == {"string_type"}:
        return f'write "{_shown(given)}"'
    return f"write [{given}]" if found.keys() <= {"list_type", "tuple_type"} else ""


def _sentence(entry: Mapping[str, Any], loc: tuple[str, ...], tree: Tree, context: Validation) -> tuple[str, str]:
    """What is wrong by an error whose type is not in the table, and what next."""
    kind, message = entry["type"], str(entry["msg"])
    block = at(tree, loc[:-1])
    if kind == "extra_forbidden":
        allowed = HEAD if len(loc) == 1 else context.allowed.get(id(block), [])
        below = [f"{key}.{loc[-1]}" for key in block if loc[-1] in context.allowed.get(id(block[key]), ())]
        below += [f"stages.{loc[0]}"] * (len(loc) == 1 and at(tree, ("stages", loc[0])) is not None)
        meant = f"did you mean {below[0]!r}?" if below else suggest(loc[-1], allowed, noun="keys")
        return f"unknown key {loc[-1]!r}", meant
    if kind == "missing" and isinstance(block, list):
        return f"one more entry is expected after {_shown(block)}", ""
    if kind == "missing":
        return f"{loc[-1]!r} is required", _where_told(loc, tree)
    if kind == "component":
        first, _, rest = message.partition("\n")
        return first, rest
    if kind == "slot" and isinstance(entry["input"], Mapping):  # a misspelt entry has no `use:`
        close = suggest(loc[-1], [name for name in block if name != loc[-1]])
        there = suggest("", context.registry.names(entry["ctx"]["kind"]), noun="write use: and one of")
        return message, close if close.startswith("did you mean") else there
    error = entry.get("ctx", {}).get("error")
    if isinstance(error, RecipeError):
        return error.what, error.next
    message = message.removeprefix("Value error, ")
    return message if kind in _OWN else message[:1].lower() + message[1:], ""


def _shown(given: Any) -> str:
    text = "null" if given is None else str(given).lower() if isinstance(given, bool) else repr(given)
    return text if len(text) < 80 else text[:80] + "…"
