"""What a run did, gathered once from its folder: shown at the end of `recipe run`, as JSON, and as report.html."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from recipe_runner.commands import find_run, print_json
from recipe_runner.commands.tables import Table, aligned, html, samples_table, show, table
from recipe_runner.errors import StoreError
from recipe_runner.store import MANIFEST, Store, read_json, read_run

_STYLE = """body{font:15px/1.5 system-ui,sans-serif;margin:2em auto;max-width:75em;padding:0 1em}
table{border-collapse:collapse}th,td{border:1px solid #ccc;padding:.2em .6em;text-align:left;vertical-align:top}
th{background:#f3f3f3}td{white-space:pre-wrap;overflow-wrap:anywhere}.n{text-align:right}h2{font-size:1.1em}"""


def write_report(store: Path, text: str, json: bool) -> None:
    """Write report.html of a run, named or newest, into its folder."""
    run = gather(find_run(Store(store), text))
    path = save(run)
    if json:
        print_json(run)
    else:
        print(path, file=sys.stderr)


def gather(folder: Path) -> dict[str, Any]:
    """`run.json`, with what the manifest of each stage's artifact says."""
    run = read_run(folder)
    if not isinstance(run, dict):
        raise StoreError(f"{folder / 'run.json'} is missing or torn")
    stages = {name: {**entry, **of_artifact(entry["path"])} for name, entry in run["stages"].items()}
    by_digest = {stage["digest"]: name for name, stage in stages.items()}
    for stage in stages.values():
        stage["made_by"] = {field: by_digest.get(digest, "outside") for field, digest in stage["inputs"].items()}
    return {**run, "folder": str(folder), "stages": stages}


def of_artifact(path: str) -> dict[str, Any]:
    """What the manifest of an artifact says; tables and samples apart from other facts. Blank without one."""
    manifest = (read_json(Path(path) / MANIFEST) if path else None) or {}
    facts = dict(manifest.get("facts", {}))
    return {
        **{key: manifest.get(key) for key in ("type", "use", "digest", "created", "versions", "execution")},
        "path": path, "payload": str(Path(path) / "payload") if manifest else "", "built_in": manifest.get("seconds"),
        "bytes": sum(file["size"] for file in manifest.get("files", ())), "warnings": manifest.get("warnings", []),
        "inputs": manifest.get("identity", {}).get("inputs", {}),
        "tables": facts.pop("tables", []), "samples": facts.pop("samples", []), "facts": facts,
    }  # fmt: skip


def findings(stage: str, found: Mapping[str, Any]) -> list[Table]:
    """The tables and samples that a stage noted."""
    samples = [samples_table(f"{stage}: samples", found["samples"])] if found["samples"] else []
    return [*({**entry, "title": f"{stage}: {entry['title']}"} for entry in found["tables"]), *samples]


def tables_of(run: Mapping[str, Any]) -> list[Table]:
    """What is shown at the end of a run: the stages' tables, samples and warnings."""
    stages: Mapping[str, Mapping[str, Any]] = run["stages"]
    warnings = [(name, text) for name, stage in stages.items() for text in stage["warnings"]]
    told = [entry for name, stage in stages.items() for entry in findings(name, stage)]
    return told + ([table("warnings", "stage, warning", warnings)] if warnings else [])


def save(run: Mapping[str, Any]) -> Path:
    """Write report.html: one file that needs no other."""
    stages: Mapping[str, Mapping[str, Any]] = run["stages"]
    columns = "use, status, reasons, seconds, built_in, type, payload"
    rows = [[name, *(stage[column] for column in columns.split(", "))] for name, stage in stages.items()]
    lineage = [(name, field, maker, stage["inputs"][field])
               for name, stage in stages.items() for field, maker in stage["made_by"].items()]  # fmt: skip
    facts = [(name, fact, value) for name, stage in stages.items() for fact, value in stage["facts"].items()]
    versions = {word: found for stage in stages.values() for word, found in (stage["versions"] or {}).items()}
    tables = [
        table("stages", f"stage, {columns}", rows), *tables_of(run),
        table("lineage", "stage, input, made by, digest", lineage), table("facts", "stage, fact, value", facts),
        table("versions", "library, version", versions.items()),
    ]  # fmt: skip
    title = escape(f"{run['recipe']} · {run['run']}")
    told = " · ".join([run["file"], *run["overrides"], run["started"], run["status"], f"{run['seconds']} s"])
    head = f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
    path = Path(run["folder"]) / "report.html"
    body = [f"<h1>{title}</h1>\n<p>{escape(told)}</p>", *map(html, tables), "</html>\n"]
    path.write_text("\n".join([head, *body]), encoding="utf-8")
    return path


def show_end(run: Mapping[str, Any], report: Path) -> None:
    """What people see at the end of a run: what the stages found, and where everything lies, a whole path a line."""
    show(tables_of(run))
    places = [(name, stage["status"], stage["payload"]) for name, stage in run["stages"].items()]
    lines = aligned([*places, ("report", "", str(report))])
    talk = f"to talk to it: recipe chat {shlex.quote(str(run['folder']))}"
    lines += [talk] * any(stage["type"] == "model" for stage in run["stages"].values())
    print("\n".join(lines), file=sys.stderr)
