"""Finding plugins, and keeping a record of each.

Own loader, because pluggy's lets one broken plugin abort all and resolves duplicate names silently. Guarantees:
entry points are taken in sorted order; a disabled one is never imported; a broken one is a record, and an error only
for a recipe that needs it; two distributions under one entry-point name are both named.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import pluggy

from recipe_runner import hookspecs
from recipe_runner.components import Component, Registry, with_dist
from recipe_runner.contract import Event
from recipe_runner.errors import PluginError, UsageError, suggest

GROUP = "recipe_runner"


@dataclass(slots=True)
class Record:
    """What became of one entry point. `state` is active, disabled, conflict or failed; `seconds` is its load time."""

    name: str
    dist: str
    version: str
    value: str
    state: str = "active"
    error: Exception | None = None
    seconds: float = 0.0
    components: list[Component] = field(default_factory=list)


@dataclass(slots=True)
class Plugins:
    """The loaded plugins: pluggy's manager for the hooks, a record of each entry point, the registry of components."""

    manager: pluggy.PluginManager
    records: list[Record]
    registry: Registry
    disabled: tuple[str, ...] = ()

    @property
    def hook(self) -> Any:
        """Call a hook on every active plugin."""
        return self.manager.hook

    def listeners(self) -> list[Callable[[Event], None]]:
        """`on_event` of each plugin by itself, so that one that raises silences no other."""
        return [impl.function for impl in self.hook.on_event.get_hookimpls()]

    def versions(self) -> dict[str, str]:
        """Version of every active distribution, in loading order."""
        return {record.dist: record.version for record in self.records if record.state == "active"}


def discover() -> list[EntryPoint]:
    """The installed entry points of the group, sorted by distribution and name."""
    return sorted(entry_points(group=GROUP), key=lambda entry: (_dist(entry)[0], entry.name))


def _dist(entry: EntryPoint) -> tuple[str, str]:
    return (entry.dist.name, entry.dist.version) if entry.dist else ("unknown", "0")


def load(entries: Iterable[EntryPoint], *, disabled: Sequence[str] = (), strict: bool = False) -> Plugins:
    """Load `entries`, skipping those whose entry-point or distribution name is in `disabled`.

    Raises `PluginError` at the first broken one if `strict`, `UsageError` for a disabled name that nothing has.
    """
    entries = list(entries)
    names = {name for entry in entries for name in (entry.name, _dist(entry)[0])}
    for name in disabled:
        if name not in names:
            raise UsageError(f"-p no:{name}: no plugin has that name", next=suggest(name, names, noun="plugins"))
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    records: list[Record] = []
    for entry in entries:
        dist, version = _dist(entry)
        record = Record(entry.name, dist, version, entry.value)
        other = next((r for r in records if r.name == record.name and r.state != "disabled"), None)
        records.append(record)
        if {record.name, record.dist} & set(disabled):
            record.state = "disabled"
        elif other:
            record.state = "conflict"
            record.error = PluginError(
                f"entry point {record.name!r} is declared by {other.dist} {other.version} and {dist} {version}",
                next=f"pip uninstall one of them, or disable one with -p no:{dist}",
            )
        else:
            _attempt(record, partial(_activate, manager, entry, record))
        if strict and record.error:
            raise PluginError(f"plugin {dist} {version}: {record.error}") from record.error
    failures = {record.dist: record.error for record in records if record.error}
    registry = Registry([c for record in records for c in record.components], failures)
    return Plugins(manager, records, registry, tuple(disabled))


def _attempt(record: Record, action: Callable[[], None]) -> None:
    started = time.perf_counter()
    try:
        action()
    except (Exception, SystemExit) as error:  # a plugin may raise anything; kept, and raised when something needs it
        record.state, record.error, record.components = "failed", error, []  # type: ignore[assignment]
    record.seconds = time.perf_counter() - started


def _activate(manager: pluggy.PluginManager, entry: EntryPoint, record: Record) -> None:
    plugin = entry.load()
    try:
        manager.register(plugin, name=record.name)
        unknown = [caller.name for caller in manager.get_hookcallers(plugin) or () if not caller.has_spec()]
        if unknown:
            raise PluginError(f"unknown hook {', '.join(sorted(unknown))}: made for another version of recipe-runner?")
        if hasattr(plugin, "register_components"):
            record.components = [with_dist(c, record.dist) for c in plugin.register_components()]
            _refuse_twice(record.components)
    except BaseException:
        manager.unregister(plugin)
        raise


def _refuse_twice(components: Sequence[Component]) -> None:
    seen: set[tuple[str, str]] = set()
    for component in components:
        if (component.kind, component.name) in seen:
            raise PluginError(f"{component.kind} {component.name!r} is registered twice")
        seen.add((component.kind, component.name))


@lru_cache(maxsize=4)
def installed(disabled: tuple[str, ...] = (), strict: bool = False) -> Plugins:
    """The plugins installed in this environment, loaded once a process."""
    return load(discover(), disabled=disabled, strict=strict)
