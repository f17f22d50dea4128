"""JSON Schema (draft-07) of recipes, for editors, from what is installed.

Every slot accepts the components of its kind, told apart by `use`. The schema is looser than `recipe check`, because a
file may be one layer of several: nothing is required, a value may be `${…}`, an entry may be null.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from recipe_runner.components import Component, Config, Registry
from recipe_runner.contract import ExecutionConfig
from recipe_runner.errors import PluginError
from recipe_runner.recipe import RecipeConfig

DRAFT = "http://json-schema.org/draft-07/schema#"
_REFERENCE = {"type": "string", "pattern": r"\$\{"}
_NULL = {"type": "null"}
_VALUES = ("default", "enum", "const", "examples")


def recipe_schema(registry: Registry) -> dict[str, Any]:
    """The schema of a recipe file made of the components in `registry`; a broken plugin's are accepted unchecked."""
    builder = _Builder(registry)
    recipe = builder.model(RecipeConfig, "recipe")
    recipe["properties"]["execution"] = builder.model(ExecutionConfig, "execution")
    return {"$schema": DRAFT, "title": "recipe", **recipe, "definitions": builder.definitions}


class _Builder:
    """Gathers definitions: one for each kind (with the options of its slot), one for each component there."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self.definitions: dict[str, Any] = {}

    def model(self, cls: type[Config], name: str) -> dict[str, Any]:
        """The schema of a config; the models inside it become definitions under `name`."""
        node = cls.model_json_schema(ref_template=f"#/definitions/{name}.{{model}}")
        for word, inner in node.pop("$defs", {}).items():
            self.definitions[f"{name}.{word}"] = self.loose(inner)
        found: dict[str, Any] = self.loose(node)
        return found

    def loose(self, node: Any) -> Any:
        """A schema of pydantic's, for one layer of a recipe."""
        if isinstance(node, list):
            return [self.loose(entry) for entry in node]
        if not isinstance(node, Mapping):
            return node
        told = {key: node[key] for key in ("title", "description", "default") if key in node}
        if "slot" in node:
            return {**told, "allOf": [self.slot(node["slot"], node["options"])]}
        found = {key: value if key in _VALUES else self.loose(value) for key, value in node.items()}
        found.pop("required", None)
        if "prefixItems" in node:
            found["items"] = found.pop("prefixItems")
        if "properties" in node:
            entries = {key: self.loose(entry) for key, entry in node["properties"].items()}
            found["properties"] = {key: {"if": _REFERENCE, "else": entry} for key, entry in entries.items()}
        if isinstance(node.get("additionalProperties"), Mapping):
            found["additionalProperties"] = {"if": _NULL, "else": found["additionalProperties"]}
        for pattern, entry in found.get("patternProperties", {}).items():
            found["patternProperties"][pattern] = {"if": _NULL, "else": entry}
        return found

    def slot(self, kind: str, options: Mapping[str, Any] | None) -> dict[str, Any]:
        """A reference to the definition of what may stand in a slot; `options` is the schema of the slot's own keys."""
        name = f"{kind}.{options['title']}" if options else kind
        if name not in self.definitions:
            self.definitions[name] = {}  # a kind may hold itself
            self.definitions[name] = self._kind(name, kind, self.loose(options or {}).get("properties", {}))
        return {"$ref": f"#/definitions/{name}"}

    def _kind(self, name: str, kind: str, added: Mapping[str, Any]) -> dict[str, Any]:
        components = [component for component in self.registry if component.kind == kind]
        words = [word for component in components for word in _words(component)]
        cases = [
            {"if": {"type": "object", "required": ["use"], "properties": {"use": {"enum": _words(component)}}},
             "then": self._component(f"{name}.{component.dist}.{component.name}", component, added)}
            for component in components
        ]  # fmt: skip
        short = {"if": {"type": "string"}, "then": {"anyOf": [{"enum": words}, _REFERENCE]}}
        return {"type": ["string", "object"], "properties": {"use": {"enum": words}}, "allOf": [short, *cases]}

    def _component(self, name: str, component: Component, added: Mapping[str, Any]) -> dict[str, Any]:
        try:
            body = self.model(component.config_class(), name)
        except PluginError:
            return {}
        own = {"use": {"enum": _words(component)}, "before": {"type": "string"}, "after": {"type": "string"}}
        body["properties"] = {**own, **added, **body.get("properties", {})}
        self.definitions[name] = {**body, "description": component.summary}
        return {"$ref": f"#/definitions/{name}"}


def _words(component: Component) -> list[str]:
    return [component.name, f"{component.dist}:{component.name}"]
