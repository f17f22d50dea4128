"""What is installed and what it can do here: `recipe plugins`, `doctor`, `x`, `chat`."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from pydantic import ValidationError

from recipe_runner.commands import Switches, answer, find_run, load_plugins
from recipe_runner.commands.plan import size
from recipe_runner.components import Component, Slot, Validation
from recipe_runner.errors import ExitCode, InvalidRecipe, PluginError, UsageError, suggest
from recipe_runner.hookspecs import Check
from recipe_runner.layers import parse_override
from recipe_runner.plugins import Plugins
from recipe_runner.run import versions
from recipe_runner.store import MANIFEST, Store, read_json
from recipe_runner.wording import worded_problems


def list_plugins(switches: Switches, json: bool) -> None:
    """Every entry point with its state, and how many components of each kind it gives."""
    facts = [
        {"name": r.name, "distribution": r.dist, "version": r.version, "module": r.value, "state": r.state,
         "seconds": round(r.seconds, 4), "error": str(r.error or ""), "count": len(r.components),
         "components": [f"{component.kind}/{component.name}" for component in r.components]}
        for r in load_plugins(switches).records
    ]  # fmt: skip
    answer(json, "plugins", facts, "name, distribution, version, state, seconds, count, error")


def show_plugin(switches: Switches, name: str, json: bool) -> None:
    """The components of a plugin, given by entry point or distribution, or those called `name` field by field."""
    plugins = load_plugins(switches)
    dists = {record.dist for record in plugins.records if name in (record.name, record.dist)}
    found = [component for component in plugins.registry if component.dist in dists or component.name == name]
    if not found:
        known = [c.name for c in plugins.registry] + [r.dist for r in plugins.records]
        raise UsageError(f"no plugin or component is called {name!r}", next=suggest(name, known, noun="installed"))
    if not (json or dists):
        from recipe_runner.commands.fields import fields_table
        from recipe_runner.commands.tables import show

        show([fields_table(component) for component in found])
        return
    answer(json, name, [{**asdict(c), "fields": _fields(c)} for c in found], "kind, name, version, summary, fields")


def _fields(component: Component) -> dict[str, object]:
    """The fields of a component's config with their defaults."""
    try:
        fields = component.config_class().model_json_schema().get("properties", {})
    except PluginError as error:
        return {"error": str(error)}
    return {name: entry.get("default", "…") for name, entry in fields.items()}


def doctor(switches: Switches, store: Path, json: bool) -> None:
    """What this machine has, and what plugins say of it; exits 1 if a check fails."""
    there = next(folder for folder in (store.absolute(), *store.absolute().parents) if folder.is_dir())
    free = f"{store}: {size(shutil.disk_usage(there).free)} free"
    checks = [Check("store", free, os.access(there, os.W_OK)), *_of_plugins(load_plugins(switches))]
    answer(json, "this machine", [asdict(check) for check in checks], "name, value, ok")
    if any(check.ok is False for check in checks):
        raise SystemExit(ExitCode.STAGE_FAILED)


def _of_plugins(plugins: Plugins) -> Iterator[Check]:
    yield from (Check(name, found) for name, found in versions(plugins).items())
    yield from (Check(f"plugin {r.dist}", str(r.error), ok=False) for r in plugins.records if r.error)
    for hook in plugins.hook.doctor.get_hookimpls():
        try:
            yield from hook.function() or ()
        except Exception as error:  # a broken library is what a doctor is asked about
            yield Check(f"plugin {hook.plugin_name}", f"its doctor failed: {error!r}", ok=False)


def extra(switches: Switches, name: str, arguments: Sequence[str], json: bool) -> None:
    """Run a plugin's command, or list them all."""
    commands = [command for given in load_plugins(switches).hook.register_commands() for command in given or ()]
    found = [command for command in commands if command.name == name]
    if not name:
        answer(json, "recipe x", [asdict(command) for command in commands], "name, summary")
        return
    if len(found) != 1:
        hint = suggest(name, (command.name for command in commands), noun="commands of plugins")
        raise UsageError(f"{len(found) or 'no'} plugins give a command {name!r}", next=hint)
    run = Component(kind="command", name=name, target=found[0].target).load()
    raise SystemExit(run(list(arguments)))  # type: ignore[arg-type]


def chat(switches: Switches, store: Path, run: str, stage: str, prompt: str, use: str) -> None:
    """Talk to a model of a run; the work is a component of kind `chat`."""
    context, (given, _) = Validation(load_plugins(switches).registry), parse_override(f"use={use}")
    try:
        component = Slot("chat").resolve(given["use"], context)
    except ValidationError as error:
        raise InvalidRecipe(worded_problems(error, given, {}, context, ("use",))) from None
    except ValueError as error:  # of the slot itself, which a recipe would have located
        raise UsageError(f"--use {use}: {error}") from None
    component.build().run(_payload(store, run, stage), prompt or None)


def _payload(store: Path, run: str, stage: str) -> Path:
    """The payload of a model: of a folder that holds one, else of a stage of a run, by default its last model."""
    folder = Path(run)
    if run and not stage and folder.is_dir() and not (folder / "run.json").is_file():
        return folder / "payload" if (folder / MANIFEST).is_file() else folder
    stages = read_json(find_run(Store(store), run) / "run.json")["stages"]
    paths = {name: Path(entry["path"]) for name, entry in stages.items() if entry["path"]}
    models = [name for name, path in paths.items() if (read_json(path / MANIFEST) or {}).get("type") == "model"]
    if not models or stage not in ("", *models):
        what = f"stage {stage!r} is no model" if stage else "no model was made by this run"
        raise UsageError(what, next=suggest(stage, models, noun="models of this run"))
    return paths[stage or models[-1]] / "payload"
