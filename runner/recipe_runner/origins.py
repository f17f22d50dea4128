"""Where each value of a recipe was written.

The one idea: OmegaConf gives right values but loses positions, so a second pass over the same text, `yaml.compose`,
gives `path -> file:line:column`. Layers overwrite each other's entries as their values do; a lookup falls back to the
nearest ancestor that has a position, so an error about an absent key points to the block that lacks it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

import yaml

from recipe_runner.errors import Origin, Problem

Path: TypeAlias = tuple[str, ...]
Origins: TypeAlias = dict[Path, Origin]

COMMAND_LINE = "command line"


class _Plain(yaml.SafeLoader):
    """Refuses tags: a recipe is data."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()
        if tag := getattr(event, "tag", None):
            shown = tag.replace("tag:yaml.org,2002:", "!!")
            raise yaml.MarkedYAMLError(problem=f"a tag, {shown}, but a recipe is data", problem_mark=event.start_mark)
        return super().compose_node(parent, index)


def positions(text: str, file: str) -> Origins:
    """The position of every key and list entry of a YAML text; raises `yaml.YAMLError` on bad syntax and on tags."""
    lines = text.splitlines()
    found: Origins = {}

    def visit(node: yaml.Node | None, path: Path) -> None:
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                here = (*path, str(key.value))
                found[here] = origin_of(key.start_mark, file, lines)
                visit(value, here)
        elif isinstance(node, yaml.SequenceNode):
            for number, value in enumerate(node.value):
                here = (*path, str(number))
                found[here] = origin_of(value.start_mark, file, lines)
                visit(value, here)

    visit(yaml.compose(text, Loader=_Plain), ())
    return found


def origin_of(mark: yaml.Mark, file: str, lines: Sequence[str]) -> Origin:
    """A mark as an origin, with its line."""
    return Origin(file, mark.line + 1, mark.column + 1, lines[mark.line] if mark.line < len(lines) else "")


def forget(origins: Origins, path: Path) -> None:
    """Drop what is below `path`: its block was replaced."""
    for other in [p for p in origins if len(p) > len(path) and p[: len(path)] == path]:
        del origins[other]


def locate(origins: Mapping[Path, Origin], path: Iterable[object]) -> Origin:
    """The origin of `path`, or of its nearest ancestor that has one."""
    parts = tuple(str(part) for part in path)
    for length in range(len(parts), 0, -1):
        if parts[:length] in origins:
            return origins[parts[:length]]
    return Origin()


def problem_at(origins: Mapping[Path, Origin], path: Iterable[str], what: str, next: str = "") -> Problem:
    """A problem where a key path was written."""
    parts = tuple(path)
    return Problem(what, ".".join(parts), locate(origins, parts), next)
