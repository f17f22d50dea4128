"""`recipe show`, `init` and `schema`: recipes and artifacts as they are, and what one needs to write a recipe."""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from recipe_runner.commands import Switches, answer, find_run, load_plugins, print_json
from recipe_runner.commands.report import findings, of_artifact
from recipe_runner.commands.tables import show, table
from recipe_runner.errors import UsageError, suggest
from recipe_runner.layers import find, shipped
from recipe_runner.recipe import Recipe, load
from recipe_runner.store import MANIFEST, Store, read_json

NEW = """\
# yaml-language-server: $schema=./recipe.schema.json
schema: 1
name: {name}
extends: [{parent}]
# Write what is to differ; `recipe plan {file}` says what that reruns. For instance:
# stages:
#   chat:
#     optimizer: {{lr: 5.0e-4}}
"""


def show_target(
    switches: Switches, target: str, overrides: Sequence[str], store: Path, resolved: bool, origin: bool, json: bool,
    removed: str, number: int,
) -> None:  # fmt: skip
    """Show an artifact (its folder, or a stage of the newest run that is no recipe's name), else a recipe.

    With `removed` (`STEP` or `STEP:REASON`) show `number` documents that a step of an artifact's curation removed.
    """
    folder = Path(target)
    try:
        if not (folder / MANIFEST).is_file():
            if removed:
                raise UsageError("only artifacts have removed documents")
            find(target)
            show_recipe(load(target, overrides, plugins=load_plugins(switches)), resolved, origin, json)
            return
    except UsageError as error:
        folder = _of_last_run(Store(store), target, error)
    if removed:
        found = _removed(folder, *removed.partition(":")[::2])[:number]
        short = [{**row, "text": _said(row)[:300], "spans": _spans(row)} for row in found]
        columns = "domain, id, reason, scores, text" + ", spans" * any(row["spans"] for row in short)
        answer(json, removed, found if json else short, columns)
    else:
        show_artifact(folder, json)


def _removed(folder: Path, step: str, reason: str) -> list[dict[str, Any]]:
    """Documents that were kept though a step removed them."""
    files: dict[str, list[Path]] = {}
    for file in sorted(folder.glob("removed/*/*.jsonl")):
        files.setdefault(file.parent.name.partition("_")[2], []).append(file)
    if step not in files:
        what = f"{step!r} is no step of it, or removed nothing"
        raise UsageError(what, next=suggest(step, files, noun="steps that removed something"))
    lines = [(file.stem, line) for file in files[step] for line in file.read_bytes().splitlines()]
    rows = [{"domain": domain, "text": None, **json.loads(line)} for domain, line in lines]
    if reason and reason not in (reasons := {row["reason"] for row in rows}):
        raise UsageError(f"{step!r} removed nothing as {reason!r}", next=suggest(reason, reasons, noun="its reasons"))
    return _of_each([row for row in rows if reason in ("", row["reason"])])


def _of_each(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """In an order whose beginning has some of each domain and reason."""
    seen: Counter[tuple[str, str]] = Counter()
    placed = []
    for row in rows:
        group = row["domain"], row["reason"]
        placed.append((seen[group], row))
        seen[group] += 1
    return [row for _, row in sorted(placed, key=lambda pair: pair[0])]


def _said(row: Mapping[str, Any]) -> str:
    """The text of a document, or of a conversation who says what."""
    if row["text"] is not None:
        return str(row["text"])
    return "\n".join(f"{turn.get('role')}: {turn.get('content') or ''}" for turn in row["messages"])


def _spans(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What gave a document away, each text of it cut short."""
    return [{key: value[:100] if isinstance(value, str) else value for key, value in span.items()}
            for span in row.get("spans", ())]  # fmt: skip


def _of_last_run(store: Store, stage: str, error: UsageError) -> Path:
    stages = read_json(find_run(store, "") / "run.json")["stages"] if store.runs() else {}
    if stage not in stages:
        near = suggest(stage, stages, noun="stages of the newest run") if stages else ""
        lines = [near] if near.startswith("did you mean") else [line for line in (near, error.next) if line]
        what = f"{stage!r} is no recipe, no artifact, and no built stage of the newest run"
        raise UsageError(what, next="\n".join(lines))
    if not stages[stage]["path"]:
        raise UsageError(f"{stage!r} of the newest run {stages[stage]['status']}", next=_built_before(store, stage))
    return Path(stages[stage]["path"])


def _built_before(store: Store, stage: str) -> str:
    """The command for the last artifact of a stage of that name."""
    found = (read_json(folder / "run.json")["stages"].get(stage, {}).get("path") for folder in reversed(store.runs()))
    path = next(filter(None, found), "")
    return f"of a run before: recipe show {shlex.quote(path)}" if path else ""


def show_artifact(path: Path, json: bool) -> None:
    """What a manifest says: the summary, the stage's facts and tables."""
    found = of_artifact(str(path))
    if json:
        print_json(found)
        return
    parts = {"input ": found["inputs"], "warning ": dict(enumerate(found["warnings"], 1)), "": found["facts"]}
    rows = [(key, found[key]) for key in ("type", "use", "path", "digest", "bytes", "created", "built_in")]
    rows += [(f"{what}{key}", value) for what, part in parts.items() for key, value in part.items()]
    show([table(path.name, "what, value", rows), *findings(found["use"], found)])


def show_recipe(recipe: Recipe, resolved: bool, origin: bool, json: bool) -> None:
    """The stages; with `resolved` the whole recipe as YAML on stdout, with `origin` where each value was written."""
    if origin:
        answer(json, "where each value was written", list(_origins(recipe)), "key, value, from")
    elif json:
        print_json({"file": str(recipe.file), **recipe.resolved()})
    elif resolved:
        yaml.safe_dump(recipe.resolved(), sys.stdout, sort_keys=False, allow_unicode=True)
    else:
        rows = [(name, use.component.identity, recipe.config(name).produces().type, ", ".join(recipe.upstream(name)))
                for name, use in recipe.stages.items()]  # fmt: skip
        show([table(f"{recipe.name} ({recipe.file})", "stage, component, makes, from", rows)])


def _origins(recipe: Recipe) -> Iterator[dict[str, Any]]:
    """Every leaf of the resolved recipe with its value and its `file:line:column`, or `default`."""
    for path, value in _leaves(recipe.resolved(), ()):
        places = [path, path[:-1] if path[-1] == "use" else path, path[2:] if "execution" in path[:3] else path]
        origin = next((recipe.origins[place] for place in places if place in recipe.origins), "default")
        yield {"key": ".".join(path), "value": value, "from": str(origin)}


def _leaves(value: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(value, Mapping) and value:
        for key, entry in value.items():
            yield from _leaves(entry, (*path, str(key)))
    else:
        yield path, value


def init_recipe(path: Path, parent: str) -> None:
    """Write a recipe that extends another; an existing file is never overwritten."""
    found, path = find(parent), path if path.suffix else path.with_suffix(".yaml")
    given = found.stem if found.parent == shipped() else json.dumps(os.path.relpath(found, path.absolute().parent))
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).strip("-._") or "mine"
    try:
        with open(path, "x", encoding="utf-8") as file:
            file.write(NEW.format(name=name, parent=given, file=path))
    except OSError as error:
        there = "choose another name, or edit that one" if isinstance(error, FileExistsError) else ""
        raise UsageError(f"{path} cannot be written: {error.strerror}", next=there) from None
    print(f"{path}: edit it; `recipe schema > recipe.schema.json` beside it helps editors", file=sys.stderr)


def print_schema(switches: Switches) -> None:
    """JSON Schema of recipes, from what is installed, on stdout."""
    from recipe_runner.schema import recipe_schema

    print_json(recipe_schema(load_plugins(switches).registry))
