"""Where each value of a recipe was written.

The one idea: OmegaConf gives right values but loses positions, so a second pass over the same text, `yaml.compose`,
gives `path -> file:line:column`. Layers overwrite each other's entries as their values do; a lookup falls back to the
nearest ancestor that has a position, so an error about an absent key points to the block that lacks it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeAlias

import yaml

from recipe_runner.errors import Origin

Path: TypeAlias = tuple[str, ...]
Origins: TypeAlias = dict[Path, Origin]

COMMAND_LINE = "command line"


def positions(text: str, file: str) -> Origins:
    """The position of every key and list entry of a YAML text; raises `yaml.YAMLError` on bad syntax."""
    lines = text.splitlines()
    found: Origins = {}

    def visit(node: yaml.Node | None, path: Path) -> None:
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                here = (*path, str(key.value))
                found[here] = _origin(key.start_mark, file, lines)
                visit(value, here)
        elif isinstance(node, yaml.SequenceNode):
            for number, value in enumerate(node.value):
                here = (*path, str(number))
                found[here] = _origin(value.start_mark, file, lines)
                visit(value, here)

    visit(yaml.compose(text, Loader=yaml.SafeLoader), ())
    return found


def _origin(mark: yaml.Mark, file: str, lines: list[str]) -> Origin:
    text = lines[mark.line] if mark.line < len(lines) else ""
    return Origin(file, mark.line + 1, mark.column + 1, text)


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
