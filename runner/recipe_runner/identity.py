"""Keys and digests: what makes two results the same.

The one idea: a key names the mathematics of a stage. It is a hash of the stage's component and version, of the
fields that can change numbers, of the effective seed, and of the *digests* of the inputs. No source code and no path is
hashed; execution fields are left out by their type; fields equal to their default are left out too, so that a new
option never changes an old key, while a component is always written with its version, even when it is the default.

Limits: a changed default without a raised `version` would make keys lie; a snapshot test of every config's schema
fails when that happens.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import BaseModel, TypeAdapter
from pydantic.fields import FieldInfo

from recipe_runner.components import Config, Execution, File, Place, Ref, Use

_BLOCK = 1 << 20
OPTIONS = "slot options"  # a key that no field can have


def canonical(value: Any) -> str:
    """The one JSON text of a value of JSON types; anything else, NaN included, is refused."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def sha256(text: str) -> str:
    """Hex digest of a text."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def make_seed(seed: int, *words: str | int) -> int:
    """A seed in [0, 2**63): the first 8 bytes of SHA-256 over `seed` and `words`, sign bit off."""
    digest = hashlib.sha256(canonical([seed, *words]).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def folder_files(folder: Path) -> list[dict[str, Any]]:
    """`path`, `size` and `sha256` of every file under `folder`, sorted by path."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return [
        {"path": path.relative_to(folder).as_posix(), "size": path.stat().st_size, "sha256": file_digest(path)}
        for path in paths
    ]


def digest_of(files: Sequence[Mapping[str, Any]]) -> str:
    """The digest of a payload, from what `folder_files` lists."""
    return sha256(canonical([[entry["path"], entry["sha256"]] for entry in files]))


# ── what a config is, as far as numbers go ───────────────────────────────────────────────────────────────────────


def marked(info: FieldInfo, mark: type) -> bool:
    """Whether a field's annotation carries a marker such as `Execution()`, inside `… | None` or a list too."""
    return any(isinstance(entry, mark) for entry in (*info.metadata, *_inner_marks(info.annotation)))


def _inner_marks(annotation: Any) -> Iterator[Any]:
    yield from getattr(annotation, "__metadata__", ())
    for part in get_args(annotation):
        yield from _inner_marks(part)


def identity(config: BaseModel) -> dict[str, Any]:
    """The identity part of a config, as JSON: see the module's text for what is in it."""
    found: dict[str, Any] = {}
    for name, info in type(config).model_fields.items():
        value = getattr(config, name)
        if _outside(name, info, config) or isinstance(value, Ref):
            continue
        if marked(info, File) and value:
            found[name] = _identity_of(value, _content)
        elif holds_component(value) or not _is_default(info, value):
            found[name] = _identity_of(value)
    return found


def _outside(name: str, info: FieldInfo, config: BaseModel) -> bool:
    """Execution fields, places and inputs stay out; the seed enters a key as the effective one."""
    from recipe_runner.contract import StageConfig

    place = marked(info, Place) and not marked(info, File)
    return marked(info, Execution) or place or (name == "seed" and isinstance(config, StageConfig))


def _identity_of(value: Any, leaf: Callable[[Any], Any] = lambda value: value) -> Any:
    if isinstance(value, Use):
        return use_identity(value)
    if isinstance(value, BaseModel):
        return identity(value)
    if isinstance(value, Ref):
        return None  # its digest is among the inputs
    if isinstance(value, Mapping):
        return [[str(key), _identity_of(entry, leaf)] for key, entry in value.items()]
    if isinstance(value, (list, tuple)):
        return [_identity_of(entry, leaf) for entry in value]
    return leaf(value.as_posix() if isinstance(value, Path) else value)


def _content(path: str) -> str:
    return "sha256:" + file_digest(Path(path))


def use_identity(use: Use[Any]) -> dict[str, Any]:
    """A component in use: `dist:name@version` with its own identity and that of the slot's options."""
    options = identity(use.options) if use.options else {}
    return {"use": use.component.identity, **identity(use.config), **({OPTIONS: options} if options else {})}


def holds_component(value: Any) -> bool:
    """Whether a value is, or contains, a component in use."""
    return any(True for _ in uses(value))


def _is_default(info: FieldInfo, value: Any) -> bool:
    if info.is_required():
        return False
    default = info.get_default(call_default_factory=True, validated_data={})
    if default is not None and type(default) is not type(value):  # "6MB" for 6000000, {} for a nested config
        default = adapter(info).validate_python(default)
    return bool(_identity_of(value) == _identity_of(default))


def adapter(info: FieldInfo) -> TypeAdapter[Any]:
    """What validates a field's value by itself."""
    field: Any = Annotated[info.annotation, "a field", *info.metadata]
    return TypeAdapter(field)


# ── walks over a validated config ────────────────────────────────────────────────────────────────────────────────


def walk(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any, FieldInfo | None]]:
    """Every value of a config with its key path and the field that holds it, components' configs included."""
    if isinstance(value, Use):
        yield from walk(value.config, path)
        if value.options is not None:
            yield from walk(value.options, path)
    elif isinstance(value, BaseModel):
        for name, info in type(value).model_fields.items():
            entry = getattr(value, name, None)  # a field that is wrong is not there
            yield (*path, name), entry, info
            yield from walk(entry, (*path, name))
    elif isinstance(value, Mapping):
        for key, entry in value.items():
            yield (*path, str(key)), entry, None
            yield from walk(entry, (*path, str(key)))
    elif isinstance(value, (list, tuple)):
        for number, entry in enumerate(value):
            yield (*path, str(number)), entry, None
            yield from walk(entry, (*path, str(number)))


def uses(value: Any) -> Iterator[tuple[tuple[str, ...], Use[Any]]]:
    """Every component in use in a config, with its key path."""
    if isinstance(value, Use):
        yield (), value
    for path, entry, _ in walk(value):
        if isinstance(entry, Use):
            yield path, entry


def inputs(config: Config) -> dict[str, Ref]:
    """The inputs of a stage by field path, such as `corpus` or `models.base`."""
    return {".".join(path): entry for path, entry, _ in walk(config) if isinstance(entry, Ref)}


# ── keys ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def revisions(config: Config) -> dict[str, tuple[str, bool]]:
    """Identity of the raw data of every source in use, by field path, and whether it is pinned."""
    return {".".join(path): use.build().revision() for path, use in uses(config) if use.component.kind == "source"}


def payload(use: Use[Any], seed: int, digests: Mapping[str, str], sources: Mapping[str, str]) -> dict[str, Any]:
    """What a key is the hash of, kept in the manifest so that a later plan can say what changed."""
    return {"stage": use_identity(use), "seed": seed, "inputs": dict(digests), "sources": dict(sources)}


def key_of(payload: Mapping[str, Any]) -> str:
    """The key: 64 hex digits."""
    return sha256(canonical(payload))
