"""The built-in components and the schemas of their configs, as `registry.json` remembers them.

A key leaves out fields that have their default, so a changed default would silently mean another result under an old
key. Hence: whoever changes what is here raises the component's `version`. After an intended change,

    python tests/unit/test_registry.py

writes `registry.json` anew; it refuses where a field was lost, or a default changed, while the version stayed.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from recipe_runner import Config, Execution
from recipe_runner.plugins import discover, load

FILE = Path(__file__).with_name("registry.json")


def registered() -> dict[str, Any]:
    """`kind/name` -> version and schema of every component of this distribution."""
    plugins = load([entry for entry in discover() if entry.dist and entry.dist.name == "recipe-runner"], strict=True)
    return {f"{c.kind}/{c.name}": {"version": c.version, **described(c.config_class())} for c in plugins.registry}


def described(cls: type[Config]) -> dict[str, Any]:
    """The schema of a config as far as keys go: no execution field, no words for people."""
    schema = bare(cls.model_json_schema())
    for name, info in cls.model_fields.items():
        if any(isinstance(mark, Execution) for mark in info.metadata):
            del schema["properties"][name]
        elif info.default_factory is not None:
            schema["properties"][name]["default"] = info.get_default(call_default_factory=True, validated_data={})
    text, models = json.dumps(schema.get("properties", {})), dict[str, Any]()
    while found := {n: m for n, m in schema.get("$defs", {}).items() if f"#/$defs/{n}" in text and n not in models}:
        models |= found
        text += json.dumps(found)
    required = sorted(set(schema.get("required", ())) & set(schema.get("properties", ())))
    return {"fields": schema.get("properties", {}), "models": models, "required": required}


def bare(node: Any) -> Any:
    """A schema without what is written for people."""
    if isinstance(node, list):
        return [bare(entry) for entry in node]
    if not isinstance(node, dict):
        return node
    words = ("title", "description") if "type" in node or "anyOf" in node or "slot" in node or "$ref" in node else ()
    return {key: bare(value) for key, value in node.items() if key not in words}


def defaults(entry: dict[str, Any]) -> dict[str, str]:
    """Every field of a component's config, and of the models in it, with its default."""
    parts = {
        "": entry["fields"],
        **{f"{name}.": model.get("properties", {}) for name, model in entry["models"].items()},
    }
    fields = {f"{part}{name}": field for part, fields in parts.items() for name, field in fields.items()}
    return {name: json.dumps(field.get("default", "required"), sort_keys=True) for name, field in fields.items()}


def same(old: str, new: str | None) -> bool:
    """Whether keys mean what they did; one that was required stands in every key, so any default is new to them."""
    return new == old or (old == json.dumps("required") and new is not None)


def broken(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Components that lost a field, changed a default, or demand a new field, while their version stayed."""
    found = []
    for name in before.keys() & now.keys():
        if before[name]["version"] == now[name]["version"]:
            old, new = defaults(before[name]), defaults(now[name])
            found += [f"{name}: {field}" for field in old if not same(old[field], new.get(field))]
            found += [f"{name}: {field} is required now" for field in {*now[name]["required"]} - {*old}]
    return sorted(found)


def test_no_default_changes_without_a_version():
    changed = broken(json.loads(FILE.read_text(encoding="utf-8")), registered())
    assert not changed, f"raise the version of these components, then run {Path(__file__).name}: {changed}"


def test_the_registry_is_the_one_remembered():
    now, before = registered(), json.loads(FILE.read_text(encoding="utf-8"))
    assert sorted(now) == sorted(before), "components came or went: run this file"
    assert now == before, "fields or their limits changed: run this file"


def test_a_changed_default_is_noticed_and_a_new_field_or_version_is_not():
    class Before(Config):
        lr: float = 1.0

    class Changed(Config):
        lr: float = 2.0

    class Grown(Before):
        more: int = 1

    class Demanding(Before):
        more: int

    class Eased(Config):
        more: int | None = None

    class Strict(Config):
        more: int

    def entry(cls: type[Config], version: int = 1) -> dict[str, Any]:
        return {"k/n": {"version": version, **described(cls)}}

    assert broken(entry(Before), entry(Changed)) == ["k/n: lr"]
    assert broken(entry(Before), entry(Changed, version=2)) == []
    assert broken(entry(Before), entry(Grown)) == []
    assert broken(entry(Before), entry(Demanding)) == ["k/n: more is required now"]
    assert broken(entry(Grown), entry(Before)) == ["k/n: more"]
    assert broken(entry(Strict), entry(Eased)) == []


if __name__ == "__main__":
    found = registered()
    bad = broken(json.loads(FILE.read_text(encoding="utf-8")), found) if FILE.exists() else []
    if bad:
        sys.exit("\n".join(["raise the version of:", *bad]))
    FILE.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")
