"""What would run, and why, before anything does.

A stage whose inputs exist has a key, and the store says whether it is cached, can go on, or must run; the reason is
one of an enumerated set, with the fields that differ from the last artifact of the same recipe and stage. A stage that
waits for one that will run has no key yet: it is `pending`, and will run unless its input comes out identical.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recipe_runner import identity
from recipe_runner.artifacts import Artifact
from recipe_runner.components import Ref, Use, written
from recipe_runner.contract import Estimate, Known, KnownInput
from recipe_runner.errors import RecipeError
from recipe_runner.layers import ABSENT, at
from recipe_runner.recipe import Recipe
from recipe_runner.store import MANIFEST, SCHEMA, Store, foreign_digest, read_json

REASONS: Mapping[str, str] = {
    "no-artifact": "this stage of this recipe has not been built in this store",
    "config-changed": "a field differs from the last artifact",
    "input-changed": "an input's content differs",
    "component-changed": "a component's version was raised",
    "incomplete": "a partial result is there and is gone on from",
    "missing-files": "the artifact has lost files",
    "forced": "--force",
    "pending": "runs unless the named input comes out identical",
}
"""Every reason why a stage runs."""


@dataclass(frozen=True, slots=True)
class Reason:
    """One of `REASONS` and its detail: `config-changed (stages.base.optimizer.lr 0.001 → 0.002)`."""

    kind: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.kind} ({self.detail})" if self.detail else self.kind


@dataclass(slots=True)
class StagePlan:
    """The outlook of one stage. `status` is `cached`, `run`, `resume` or `pending`."""

    stage: str
    use: str
    status: str
    reasons: list[Reason] = field(default_factory=list)
    key: str | None = None
    artifact: Artifact | None = None
    estimate: Estimate = field(default_factory=Estimate)
    unpinned: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """The facts that `plan --json` prints."""
        estimate = {name: getattr(self.estimate, name) for name in Estimate.__dataclass_fields__}
        return {
            "stage": self.stage, "use": self.use, "status": self.status, "reasons": [str(r) for r in self.reasons],
            "key": self.key, "path": str(self.artifact.path) if self.artifact else None,
            "estimate": estimate, "unpinned": self.unpinned,
        }  # fmt: skip


class Outlook:
    """Keys and reasons for the stages of a recipe in a store, given the artifacts that exist so far."""

    def __init__(self, recipe: Recipe, store: Store) -> None:
        self.recipe, self.store = recipe, store
        self._revisions: dict[str, dict[str, tuple[str, bool]]] = {}

    def payload(self, stage: str, made: Mapping[str, Artifact]) -> dict[str, Any] | None:
        """What the key of a stage is the hash of; `None` while an input is still to be made."""
        digests = self.digests(stage, made)
        if None in digests.values():
            return None
        known = {path: digest for path, digest in digests.items() if digest is not None}
        return self._payload(stage, known)

    def _payload(self, stage: str, digests: Mapping[str, str]) -> dict[str, Any]:
        sources = {path: revision for path, (revision, _) in self.revisions(stage).items()}
        return identity.payload(self.recipe.stages[stage], self.recipe.seed_of(stage), digests, sources)

    def digests(self, stage: str, made: Mapping[str, Artifact]) -> dict[str, str | None]:
        """The digest of each input by field path; `None` where it is still to be made."""
        return {path: self._digest(ref, made) for path, ref in identity.inputs(self.recipe.config(stage)).items()}

    def _digest(self, ref: Ref, made: Mapping[str, Artifact]) -> str | None:
        if ref.where == "stage":
            return made[ref.text].digest if ref.text in made else None
        return foreign_digest(ref, self.store.root / "digests")

    def revisions(self, stage: str) -> dict[str, tuple[str, bool]]:
        """Identity and pinning of the stage's sources, asked for once."""
        if stage not in self._revisions:
            self._revisions[stage] = identity.revisions(self.recipe.config(stage))
        return self._revisions[stage]

    def unpinned(self, stage: str) -> list[str]:
        """Sources and hub models whose revision is not fixed."""
        loose = [path for path, (_, pinned) in self.revisions(stage).items() if not pinned]
        refs = identity.inputs(self.recipe.config(stage))
        return loose + [path for path, ref in refs.items() if ref.where == "hub" and "@" not in ref.text]

    def reasons(self, stage: str, payload: Mapping[str, Any], why: str, forced: bool) -> list[Reason]:
        """Why a stage with this payload runs; `why` is what the store's look-up said."""
        if forced:
            return [Reason("forced")]
        use = self.recipe.stages[stage].component.name
        partial = self.store.partial(use, identity.key_of(payload))
        if partial.is_dir():
            return [Reason("incomplete", last_step(partial))]
        if why == "missing-files":
            return [Reason("missing-files")]
        return self.differences(stage, payload) or [Reason("no-artifact")]

    def differences(self, stage: str, payload: Mapping[str, Any]) -> list[Reason]:
        """How the payload differs from that of the last artifact of this recipe and stage."""
        last = last_manifest(self.store, self.recipe.name, stage)
        if last is None:
            return []
        return list(_differences(stage, last, payload, written(self.recipe.stages[stage])))

    def pending(self, stage: str, made: Mapping[str, Artifact]) -> list[Reason]:
        """Reasons of a stage whose inputs are not all there: its own changes first, then what it waits for."""
        digests = self.digests(stage, made)
        known = {path: digest for path, digest in digests.items() if digest is not None}
        own = [r for r in self.differences(stage, self._payload(stage, known)) if r.kind != "input-changed"]
        waits = [name for name in self.recipe.upstream(stage) if name not in made]
        return [*own, Reason("pending", ", ".join(waits))]


def last_step(partial: Path) -> str:
    """`step 1200`, from the last whole row of metrics; empty where there is none."""
    rows = partial / "metrics.jsonl"
    lines = rows.read_text(encoding="utf-8").splitlines() if rows.is_file() else []
    for line in reversed(lines):
        try:
            return f"step {json.loads(line)['step']}"
        except (ValueError, KeyError, TypeError):
            continue
    return ""


def last_manifest(store: Store, recipe: str, stage: str) -> Mapping[str, Any] | None:
    """The manifest of the newest artifact that a run of this recipe used for this stage."""
    for folder in reversed(store.runs(recipe)):
        entry = (read_json(folder / "run.json") or {}).get("stages", {}).get(stage, {})
        manifest = read_json(Path(entry["path"]) / MANIFEST) if entry.get("path") else None
        if isinstance(manifest, dict) and manifest.get("schema") == SCHEMA:
            return manifest
    return None


def _differences(
    stage: str, last: Mapping[str, Any], now: Mapping[str, Any], config: Mapping[str, Any]
) -> Iterator[Reason]:
    before = last["identity"]
    if before["seed"] != now["seed"]:
        yield Reason("config-changed", f"seed {before['seed']} → {now['seed']}")
    old, new = _flat(before["stage"]), _flat(now["stage"])
    changed = [path for path in dict.fromkeys([*new, *old]) if old.get(path, ABSENT) != new.get(path, ABSENT)]
    if not changed and before["stage"] != now["stage"]:
        yield Reason("config-changed", f"stages.{stage}: the order of entries")
    for path in changed:
        values = [_shown(flat, path, full) for flat, full in ((old, last["config"]), (new, config))]
        yield _difference(stage, path, *values)
    for part in ("inputs", "sources"):
        for path in dict.fromkeys([*now[part], *before[part]]):
            if before[part].get(path) != now[part].get(path):
                yield Reason("input-changed", path)


def _difference(stage: str, path: str, old: Any, new: Any) -> Reason:
    if path == "use" or path.endswith(".use"):
        names = [str(value).rpartition("@") for value in (old, new)]
        if names[0][0] == names[1][0]:
            return Reason("component-changed", f"{names[1][0].rpartition(':')[2]} {names[0][2]} → {names[1][2]}")
        old, new = (name.rpartition(":")[2] or "none" for name, _, _ in names)
    return Reason("config-changed", f"stages.{stage}.{path} {old} → {new}")


def _shown(flat: Mapping[str, Any], path: str, config: Mapping[str, Any]) -> Any:
    """The value at a path: from the identity, or, where that leaves out a default, from the whole config."""
    value = flat[path] if path in flat else at(config, path.split("."), "unset")
    return "null" if value is None else value


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    """Leaves of an identity by dotted path; ordered mappings are lists of pairs there."""
    if isinstance(value, Mapping):
        pairs: Sequence[tuple[str, Any]] = list(value.items())
    elif isinstance(value, list) and value and all(isinstance(e, list) and len(e) == 2 for e in value):
        pairs = [(str(key), entry) for key, entry in value]
    else:
        return {path: value}
    found: dict[str, Any] = {}
    for key, entry in pairs:
        inner = path if key == identity.OPTIONS else f"{path}.{key}".lstrip(".")
        found.update(_flat(entry, inner))
    return found


# ── the plan ─────────────────────────────────────────────────────────────────────────────────────────────────────


def make_plan(recipe: Recipe, store: Store, force: Sequence[str] = ()) -> list[StagePlan]:
    """The outlook of every stage, in the order in which they would run."""
    recipe.require(force)
    outlook = Outlook(recipe, store)
    made: dict[str, Artifact] = {}
    plans: dict[str, StagePlan] = {}
    for name, use in recipe.stages.items():
        plan = _plan_stage(outlook, name, use, made, name in force)
        if plan.artifact and plan.status == "cached":
            made[name] = plan.artifact
        plan.unpinned = outlook.unpinned(name)
        plans[name] = plan
        plan.estimate = _estimate(recipe, name, plans, store)
    return list(plans.values())


def _plan_stage(outlook: Outlook, name: str, use: Use[Any], made: Mapping[str, Artifact], forced: bool) -> StagePlan:
    payload = outlook.payload(name, made)
    if payload is None:
        reasons = [*([Reason("forced")] if forced else []), *outlook.pending(name, made)]
        return StagePlan(name, use.component.name, "pending", reasons)
    key = identity.key_of(payload)
    found = outlook.store.find(use.component.name, key)
    if found.artifact and not forced:
        return StagePlan(name, use.component.name, "cached", [], key, found.artifact)
    reasons = outlook.reasons(name, payload, found.why, forced)
    status = "resume" if reasons[0].kind == "incomplete" else "run"
    return StagePlan(name, use.component.name, status, reasons, key)


def _estimate(recipe: Recipe, stage: str, plans: Mapping[str, StagePlan], store: Store) -> Estimate:
    known = {path: _known(ref, plans) for path, ref in identity.inputs(recipe.config(stage)).items()}
    try:
        return recipe.config(stage).estimate(Known(known))
    except RecipeError as error:
        return Estimate(notes=[error.what])


def _known(ref: Ref, plans: Mapping[str, StagePlan]) -> KnownInput:
    if ref.where == "stage":
        plan = plans[ref.text]
        if plan.artifact:
            return KnownInput({**plan.estimate.facts, **plan.artifact.facts}, plan.artifact.payload)
        return KnownInput(plan.estimate.facts)
    if ref.where == "path":
        folder = Path(ref.text)
        manifest = read_json(folder / MANIFEST) or {}
        return KnownInput(manifest.get("facts", {}), folder / "payload" if manifest else folder)
    return KnownInput({}, _in_hub_cache(ref.text), ref.text)


def _in_hub_cache(text: str) -> Path | None:
    """The folder of a hub model's config, if this machine has it; nothing is fetched."""
    from huggingface_hub import try_to_load_from_cache

    name, _, revision = text.partition("@")
    found = try_to_load_from_cache(name, "config.json", revision=revision or None)
    return Path(found).parent if isinstance(found, str) else None
