"""What a recipe names with `use:`, and how a name becomes a configured object.

The one idea: a component is registered as two strings, its target and its config, and each is imported on first use
only. A slot, a field that takes a component, imports the one config that the recipe names, so validating a recipe
costs no heavy import and an error in one plugin never reaches a recipe that does not use it.

Limits: a component's config must live in a module without torch; a conformance test of the testing kit checks it.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Annotated, Any, Generic, TypeVar, cast, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, WithJsonSchema, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError, core_schema

from recipe_runner.errors import PluginError, suggest

if TYPE_CHECKING:
    from recipe_runner.artifacts import Artifact

T = TypeVar("T")
NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Component:
    """One entry of the registry, import-light by construction.

    `target` ("recipe_signum.optim:Signum") is called with the config when a stage builds it; `config`
    ("recipe_signum.config:SignumConfig") is a torch-free `Config`. `version` is raised whenever numbers or a default
    change, since it is part of the key. `dist` is set by the loader.
    """

    kind: str
    name: str
    target: str
    config: str | None = None
    version: int = 1
    summary: str = ""
    dist: str = ""

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name) or not NAME.fullmatch(self.kind):
            raise ValueError(f"component {self.kind}/{self.name}: names are lower-case letters, digits, - and _")

    @property
    def identity(self) -> str:
        """`dist:name@version`, as it stands in a key."""
        return f"{self.dist}:{self.name}@{self.version}"

    def config_class(self) -> type[Config]:
        """Import and return the config's class; an empty `Config` when the component takes none."""
        if self.config is None:
            return Config
        found = self._import(self.config)
        if not (isinstance(found, type) and issubclass(found, Config)):
            raise PluginError(f"{self.config} of {self.dist} is not a recipe_runner.Config")
        return found

    def load(self) -> Callable[[Config], Any]:
        """Import and return the target."""
        return cast(Callable[[Config], Any], self._import(self.target))

    def _import(self, path: str) -> Any:
        module, _, attribute = path.partition(":")
        try:
            return getattr(importlib.import_module(module), attribute)
        except Exception as error:  # a plugin's module may raise anything
            raise PluginError(
                f"{self.kind} {self.name!r} of {self.dist or 'an unnamed plugin'} cannot be loaded: {error}",
                next=f"pip install --upgrade {self.dist}" if self.dist else "",
            ) from error


class Registry:
    """All components of the active plugins, by kind and name.

    `failures` maps the name of a distribution that failed to load to its error, so that a recipe which may have
    needed it can say so.
    """

    def __init__(self, components: Iterable[Component] = (), failures: Mapping[str, Exception] | None = None) -> None:
        self._by_kind: dict[str, dict[str, list[Component]]] = {}
        self.failures = dict(failures or {})
        for component in components:
            self._by_kind.setdefault(component.kind, {}).setdefault(component.name, []).append(component)

    def __iter__(self) -> Iterator[Component]:
        for kind in sorted(self._by_kind):
            for name in sorted(self._by_kind[kind]):
                yield from self._by_kind[kind][name]

    def names(self, kind: str) -> list[str]:
        """The names registered for `kind`, sorted."""
        return sorted(self._by_kind.get(kind, ()))

    def find(self, kind: str, name: str) -> Component:
        """The one component that `name`, or `dist:name`, stands for.

        Raises `LookupError` with a message for people when there is none, or more than one.
        """
        dist, _, bare = name.rpartition(":")
        found = [c for c in self._by_kind.get(kind, {}).get(bare, []) if dist in ("", c.dist)]
        if len(found) == 1:
            return found[0]
        if found:
            both = " and ".join(f"{c.dist}:{bare}" for c in found)
            raise LookupError(
                f"{kind} {bare!r} is registered by more than one distribution; write {both.replace(' and ', ' or ')}"
            )
        raise LookupError(self._missing(kind, name, bare))

    def _missing(self, kind: str, name: str, bare: str) -> str:
        hints = [suggest(bare, self.names(kind), noun=f"{kind} components installed")]
        hints += [f"plugin {dist} failed to load: {error}" for dist, error in sorted(self.failures.items())]
        elsewhere = [other for other in self._by_kind if other != kind and bare in self._by_kind[other]]
        hints += [f"{name!r} is a {other}, which does not go here" for other in elsewhere]
        return f"no {kind} is called {name!r}\n" + "\n".join(hint for hint in hints if hint)


@dataclass(slots=True)
class Validation:
    """The context that validation carries: where components are found, and which keys each mapping may have."""

    registry: Registry
    allowed: dict[int, list[str]] = field(default_factory=dict)  # id of a raw mapping -> its allowed keys

    @classmethod
    def of(cls, info: ValidationInfo) -> Validation:
        """The context in use; without one (a config made in Python), the installed plugins."""
        if isinstance(info.context, Validation):
            return info.context
        from recipe_runner.plugins import installed

        return cls(installed().registry)


class Config(BaseModel):
    """Base of every component's config: unknown keys are forbidden, values cannot change, NaN is refused."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True, protected_namespaces=()
    )

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, data: Any, info: ValidationInfo) -> Any:
        """A slot written without `use` keeps the default's component; an entry that is null has been taken out."""
        if not isinstance(data, Mapping):
            return data
        if isinstance(info.context, Validation):
            info.context.allowed.setdefault(id(data), sorted(cls.model_fields))
        completed = {
            name: _without_nulls(value) if _is_mapping(cls.model_fields.get(name)) else value
            for name, value in data.items()
        }
        for name, default in _slot_defaults(cls).items():
            written = completed.get(name)
            if isinstance(written, Mapping) and "use" not in written:
                completed[name] = Completed({**default, **written}, id(written))
        return completed


class Completed(dict[str, Any]):
    """A mapping with the default's keys added, which remembers the mapping that was written."""

    def __init__(self, values: Mapping[str, Any], written: int) -> None:
        super().__init__(values)
        self.written = written


def _is_mapping(info: FieldInfo | None) -> bool:
    return info is not None and get_origin(info.annotation) is dict


def _without_nulls(value: Any) -> Any:
    if not isinstance(value, Mapping) or None not in value.values():
        return value
    return {key: entry for key, entry in value.items() if entry is not None}


def _slot_defaults(cls: type[Config]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for name, info in cls.model_fields.items():
        if any(isinstance(mark, Slot) for mark in info.metadata):
            default = info.get_default(call_default_factory=True, validated_data={})
            if isinstance(default, str):
                found[name] = {"use": default}
            elif isinstance(default, Mapping):
                found[name] = dict(default)
    return found


@dataclass(frozen=True, slots=True)
class Execution:
    """Marks a field that may change speed and rounding, never the mathematics: it stays out of the key."""


@dataclass(frozen=True, slots=True)
class Place:
    """Marks a path or URL whose content is known by other means (a source's revision): it stays out of the key.

    A relative path is taken from the folder of the file that wrote it; the value arrives absolute.
    """

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        return core_schema.no_info_before_validator_function(_absolute, handler(source))


@dataclass(frozen=True, slots=True)
class File(Place):
    """Marks a local file whose content enters the key by its digest; it must exist."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        schema = core_schema.no_info_before_validator_function(_absolute, handler(source))
        return core_schema.no_info_after_validator_function(_existing, schema)


class Located(str):
    """A string from a recipe that knows the folder of the file that wrote it; of a key, the file itself."""

    __slots__ = ("folder",)
    folder: str

    def __new__(cls, text: str, folder: str) -> Located:
        made = super().__new__(cls, text)
        made.folder = folder
        return made


def is_url(text: str) -> bool:
    """Whether `text` has a scheme, such as `s3://`."""
    return "://" in text


def _absolute(value: Any) -> Any:
    import os

    if not isinstance(value, str) or is_url(value):
        return value
    expanded = os.path.expanduser(str(value))
    return os.path.normpath(os.path.join(getattr(value, "folder", os.getcwd()), expanded))


def _existing(value: Any) -> Any:
    import os

    if value is not None and not os.path.isfile(value):
        raise PydanticCustomError("file_missing", "no such file: {path}", {"path": str(value)})
    return value


@dataclass(frozen=True, slots=True)
class Ref:
    """The name of an artifact: a stage of this recipe, `org/name[@revision]` on the hub, or a path.

    Only `StageContext.open` turns it into an artifact.
    """

    text: str
    types: tuple[type[Artifact], ...] = field(default=(), compare=False, repr=False)  # set by `Input`

    def __str__(self) -> str:
        return self.text

    @property
    def where(self) -> str:
        """`stage`, `hub` or `path`."""
        if self.text.startswith((".", "/", "~")) or is_url(self.text):
            return "path"
        return "hub" if "/" in self.text else "stage"

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        return core_schema.no_info_plain_validator_function(
            cls._validate, serialization=core_schema.plain_serializer_function_ser_schema(str)
        )

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: Any, handler: Any) -> dict[str, Any]:
        return {"type": "string", "description": "a stage of this recipe, org/name[@revision] on the hub, or a path"}

    @classmethod
    def _validate(cls, value: Any) -> Ref:
        if isinstance(value, Ref):
            return value
        if not isinstance(value, str) or not value:
            raise PydanticCustomError("ref", "the name of a stage, org/name, or a path is expected")
        ref = cls(str(value))
        return cls(_absolute(value)) if ref.where == "path" else ref


@dataclass(frozen=True, slots=True)
class Input:
    """Marks a `Ref` as an input of the stage, with the types of artifact it accepts."""

    types: tuple[type[Artifact], ...]

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        return core_schema.no_info_after_validator_function(self._typed, handler(source))

    def _typed(self, ref: Ref | None) -> Ref | None:
        return None if ref is None else replace(ref, types=self.types)


class Use(Generic[T]):
    """What a slot holds after validation: a component, its config, and the slot's own options."""

    __slots__ = ("component", "config", "options")

    def __init__(self, component: Component, config: Config, options: Config | None = None) -> None:
        self.component, self.config, self.options = component, config, options

    def build(self) -> T:
        """Import the target and call it with the config; a constructor gets nothing else."""
        return cast(T, self.component.load()(self.config))

    def __repr__(self) -> str:
        return f"Use({self.component.identity}, {self.config!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Use) and (self.component, self.config, self.options) == (
            other.component,
            other.config,
            other.options,
        )

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True, slots=True)
class Slot:
    """Marks a field that takes a component of `kind`: `adamw` or `{use: adamw, lr: 1e-3}`.

    `options` is a `Config` of the keys that the slot's owner adds to every component put there (`limit` of a
    source, `only` of a step); they are split off before the component's own config sees the rest.
    """

    kind: str
    options: type[Config] | None = None

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        return core_schema.with_info_plain_validator_function(
            self._validate, serialization=core_schema.plain_serializer_function_ser_schema(written)
        )

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> dict[str, Any]:
        return {"slot": self.kind, "options": handler(self.options.__pydantic_core_schema__) if self.options else None}

    def _validate(self, value: Any, info: ValidationInfo) -> Use[Any]:
        return value if isinstance(value, Use) else self.resolve(value, Validation.of(info))

    def resolve(self, value: Any, context: Validation) -> Use[Any]:
        """What this slot holds when `value`, a name or a mapping with `use:`, is written there."""
        shape = {"use": value} if isinstance(value, str) else value
        if not isinstance(shape, Mapping) or not isinstance(shape.get("use"), str):
            raise PydanticCustomError(
                "slot", "the name of a {kind} is expected, or a mapping with `use:`", {"kind": self.kind}
            )
        try:
            component = context.registry.find(self.kind, str(shape["use"]))
        except LookupError as error:
            raise PydanticCustomError("component", "{text}", {"text": str(error)}) from None
        config_class = component.config_class()
        option_names = set(self.options.model_fields) if self.options else set()
        taken = {"use", "before", "after", *option_names} & set(config_class.model_fields)
        if taken:
            raise PluginError(f"{component.identity}: {', '.join(sorted(taken))} cannot be in a config: a slot has it")
        allowed = sorted({"use", *option_names, *config_class.model_fields})
        context.allowed[getattr(shape, "written", id(shape))] = allowed
        own = {k: v for k, v in shape.items() if k != "use" and k not in option_names}
        options = {k: v for k, v in shape.items() if k in option_names}
        return Use(
            component,
            config_class.model_validate(own, context=context),
            self.options.model_validate(options, context=context) if self.options else None,
        )


def written(use: Use[Any]) -> dict[str, Any]:
    """A `Use` as a recipe would write it with every default: `{use: dist:name, …}`."""
    options = use.options.model_dump(mode="json") if use.options else {}
    return {"use": f"{use.component.dist}:{use.component.name}", **options, **use.config.model_dump(mode="json")}


_POWERS = {"": 0, "k": 3, "m": 6, "g": 9, "b": 9, "t": 12}


def _count(value: Any) -> Any:
    return _scaled(value, r"([kmbt]?)()", "a whole number such as 1_000_000, 125M or 2.5B is expected")


def _size(value: Any) -> Any:
    return _scaled(value, r"([kmgt]?)(i?)b?", "a whole number of bytes such as 6000000, 6MB or 1GiB is expected")


def _scaled(value: Any, unit: str, expected: str) -> Any:
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"(\d[\d_]*(?:\.\d+)?)\s*" + unit, value.strip().lower())
    if match:
        power = _POWERS[match[2]]
        exact = Fraction(match[1].replace("_", "")) * (2 ** (power // 3 * 10) if match[3] else 10**power)
        if exact.denominator == 1:
            return int(exact)
    raise PydanticCustomError("size", "{expected}; got {value}", {"expected": expected, "value": repr(str(value))})


_WRITTEN = WithJsonSchema({"type": ["integer", "string"]})
Count = Annotated[int, BeforeValidator(_count), _WRITTEN]
"""A whole number that may carry a unit: `1_600_000`, `125M`, `2.5B`."""

Size = Annotated[int, BeforeValidator(_size), _WRITTEN]
"""A number of bytes that may carry a unit: `6MB`, `1GiB`."""


def _share(value: Any) -> Any:
    match = re.fullmatch(r"\s*([\d.]+)\s*%\s*", value) if isinstance(value, str) else None
    return float(Fraction(match[1]) / 100) if match else value


_SHARES = {"anyOf": [{"type": "number", "minimum": 0, "maximum": 1}, {"type": "string", "pattern": "%$"}]}
Share = Annotated[float, BeforeValidator(_share), Field(ge=0, le=1), WithJsonSchema(_SHARES)]
"""A share of a whole: `0.01` or `1%`."""


def exact(number: float) -> Fraction:
    """A finite number as people write it: 0.07 is 7/100, of which 100 are 7, while the float itself is a little more.

    Whoever turns a share into a count reckons with this.
    """
    return Fraction(repr(number))


def with_dist(component: Component, dist: str) -> Component:
    """The component as the loader records it: owned by `dist`."""
    return replace(component, dist=dist)
