"""The fields of a component as people read them: what each takes, its default, and what it is, from the JSON Schema."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from recipe_runner.commands.tables import Table, table
from recipe_runner.components import Component

BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
DEEPEST = 3


def fields_table(component: Component) -> Table:
    """One row a field, those of nested blocks by dotted path; raises `PluginError` for a config that does not load."""
    title = f"{component.kind} {component.name}" + (f": {component.summary}" if component.summary else "")
    return table(title, "field, takes, default, what it is", _rows(component.config_class().model_json_schema()))


def _rows(schema: Mapping[str, Any], whole: Mapping[str, Any] | None = None, above: str = "") -> Iterator[list[Any]]:
    whole = schema if whole is None else whole
    for name, entry in schema.get("properties", {}).items():
        path, block = above + name, _block(entry, whole)
        needed = name in schema.get("required", ())
        if "properties" in block and path.count(".") < DEEPEST:
            yield [path, "a mapping", "required" if needed else "", block.get("description", "").split("\n")[0]]
            yield from _rows(block, whole, f"{path}.")
        else:
            members = [entry, *entry.get("anyOf", ())]  # a field that may be left out is described inside
            what = next((member["description"] for member in members if "description" in member), "")
            yield [path, _takes(entry), "required" if needed else entry.get("default"), what]
            for below, inner in _inside(entry, path) if path.count(".") < DEEPEST else ():
                yield from _rows(_block(inner, whole) or inner, whole, f"{below}.")


def _inside(entry: Mapping[str, Any], path: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """What a field may hold that has keys of its own: a block, or what a slot takes beside the component's keys."""
    entries = entry.get("additionalProperties")
    if isinstance(entries, Mapping):
        yield from _inside(entries, f"{path}.*")
    for member in entry.get("anyOf", ()):
        yield path, member
    yield path, entry.get("options") or {}


def _block(entry: Mapping[str, Any], whole: Mapping[str, Any]) -> Mapping[str, Any]:
    """The schema of a nested block, or nothing."""
    found: Mapping[str, Any] = whole.get("$defs", {}).get(str(entry.get("$ref", "")).rpartition("/")[2], {})
    return found


def _takes(entry: Mapping[str, Any]) -> str:
    """Such as `integer ≥ 1`, `auto | sdpa | flex`, `a schedule`."""
    if "enum" in entry:
        return " | ".join(map(str, entry["enum"]))
    if "anyOf" in entry:
        return " or ".join(dict.fromkeys(_takes(other) for other in entry["anyOf"] if other.get("type") != "null"))
    if "slot" in entry:
        return f"a component of kind {entry['slot']}"
    if entry.get("type") == "array" and isinstance(entry.get("items"), Mapping):
        return f"list of {_takes(entry['items'])}"
    if entry.get("type") == "object" and isinstance(entry.get("additionalProperties"), Mapping):
        return f"mapping to {_takes(entry['additionalProperties'])}"
    kind = entry.get("const", entry.get("type", "mapping" if "$ref" in entry else "any"))
    words = [" or ".join(kind) if isinstance(kind, list) else str(kind)]
    return " ".join([*words, *(f"{sign} {entry[bound]:g}" for bound, sign in BOUNDS.items() if bound in entry)])
