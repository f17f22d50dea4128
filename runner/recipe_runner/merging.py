"""How layers of a recipe become one: parents, then children, then overrides, one by one.

The rules, all structural: a shorthand is expanded first; a block that names another `use` is replaced, the same or none
merges; lists and scalars are replaced; a new entry of a mapping goes last unless it says `before:` or `after:`;
`null` takes an entry out (the schema knows which mappings have entries). Of a component's values the one that was
written last stands last, and its key knows the file, for a config that has two words for one. Guarantee: nothing a
layer wrote is lost without a problem that says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from recipe_runner.components import Located
from recipe_runner.errors import Origin, Problem, suggest
from recipe_runner.origins import Origins, Path, forget, locate, problem_at

Tree = dict[str, Any]


@dataclass(slots=True)
class Layered:
    """What has been merged so far: the tree, where each value came from, and what was wrong with the layers."""

    tree: Tree = field(default_factory=dict)
    origins: Origins = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    removed_nothing: list[Path] = field(default_factory=list)  # `null` where no layer below had the key

    def add(self, layer: Mapping[str, Any], origins: Origins) -> None:
        """Merge a layer on top."""
        _merge(self, self.tree, layer, origins, ())


def _merge(state: Layered, base: Tree, layer: Mapping[str, Any], origins: Origins, path: Path) -> None:
    for key, value in sorted(layer.items(), key=lambda entry: entry[0] != "use"):
        here = (*path, str(key))
        _place(state, base, str(key), value, origins, here)


def _place(state: Layered, base: Tree, key: str, value: Any, origins: Origins, here: Path) -> None:
    if key in base and base[key] is None:  # taken out below, so this is a new entry
        del base[key]
    old = base.get(key)
    if value is None and key not in base:
        state.removed_nothing.append(here)
    if isinstance(old, str) and isinstance(value, Mapping):
        old = {"use": old}
    if isinstance(value, str) and isinstance(old, Mapping) and _shorthand(value, old, here):
        value = {"use": value}
    where = _where(state, base, key, value, origins, here)
    if isinstance(value, Mapping):
        value = {k: v for k, v in value.items() if k not in where}
    if "use" in base and key != "use" and not isinstance(value, Mapping):
        base.pop(key, None)
        key = Located(key, locate(origins, here).file)
    if isinstance(old, Mapping) and isinstance(value, Mapping) and not _replaces(state, old, value, origins, here):
        block = dict(old)
        base[key] = block
    else:
        forget(state.origins, here)
        block = base[key] = {} if isinstance(value, Mapping) else value
    state.origins[here] = locate(origins, here)
    if isinstance(value, Mapping):
        _merge(state, block, value, origins, here)
    elif isinstance(value, list):
        state.origins.update({p: o for p, o in origins.items() if p[: len(here)] == here})
    _move(base, key, where)


def _shorthand(value: str, old: Mapping[str, Any], here: Path) -> bool:
    """Whether a word over a block names a component; `${…}` may stand for a whole block, and `vars` have none."""
    return not value.startswith("${") and ("use" in old or (bool(old) and here[0] == "stages"))


def _replaces(state: Layered, old: Mapping[str, Any], new: Mapping[str, Any], origins: Origins, here: Path) -> bool:
    """Whether a block makes way for another: it names another component."""
    if "use" not in new or "use" in old or not old:
        return "use" in new and bool(old) and old["use"] != new["use"]
    below = locate(state.origins, here)
    what = f"names `use: {new['use']}` over a block ({below}) that names no component, so whether to merge is unclear"
    state.problems.append(problem_at(origins, here, what, f"write `use:` in {below.file} as well"))
    return True


def _where(state: Layered, base: Tree, key: str, value: Any, origins: Origins, here: Path) -> dict[str, str]:
    """`before` or `after` of a new entry, checked."""
    if not isinstance(value, Mapping):
        return {}
    found = {word: str(value[word]) for word in ("before", "after") if word in value}
    if not found:
        return {}
    origin = locate(origins, (*here, next(iter(found))))
    others = [name for name in base if name != key]
    problem = _misplaced(found, key in base, key, others, origin, here)
    if problem:
        state.problems.append(problem)
        return dict.fromkeys(found, "")
    return found


def _misplaced(
    found: Mapping[str, str], exists: bool, key: str, others: list[str], origin: Origin, here: Path
) -> Problem | None:
    path = ".".join(here)
    if len(found) > 1:
        return Problem("an entry has `before:` or `after:`, not both", path, origin)
    if exists:
        what = f"{key!r} is inherited and keeps its place"
        return Problem(what, path, origin, "give `before:` or `after:` to new entries only")
    (target,) = found.values()
    if target not in others:
        return Problem(f"there is no {target!r} to stand {next(iter(found))}", path, origin, suggest(target, others))
    return None


def _move(base: Tree, key: str, where: Mapping[str, str]) -> None:
    word, target = next(iter(where.items()), ("", ""))
    if not target:
        return
    value = base.pop(key)
    entries = list(base.items())
    at = [name for name, _ in entries].index(target) + (word == "after")
    base.clear()
    base.update([*entries[:at], (key, value), *entries[at:]])
