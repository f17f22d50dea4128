"""`recipe plan`."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from recipe_runner.artifacts import Adapter, Model
from recipe_runner.commands import Switches, load_plugins, print_json, tell_hints
from recipe_runner.commands.tables import aligned
from recipe_runner.contract import Estimate
from recipe_runner.errors import ExitCode
from recipe_runner.plan import StagePlan, make_plan
from recipe_runner.plugins import Plugins
from recipe_runner.recipe import Recipe, load
from recipe_runner.store import Store


@dataclass(frozen=True, slots=True)
class Room:
    """Bytes of memory that a process of a stage takes by estimate, and that it may take here; `None`: unknown."""

    needed: int | None
    there: int | None

    @property
    def fits(self) -> bool | None:
        """Whether it fits; `None` where that cannot be told."""
        return None if self.needed is None or self.there is None else self.needed <= self.there


def show_plan(
    switches: Switches, path: str, overrides: Sequence[str], store: Path, force: Sequence[str], check: bool, fits: bool,
    json: bool,
) -> None:  # fmt: skip
    """Print the plan; with `fits`, exit 6 or 7 if a stage does not fit or that is unknown; with `check`, exit 5 if
    anything would run."""
    plugins = load_plugins(switches)
    recipe = load(path, overrides, plugins=plugins)
    plans = make_plan(recipe, Store(store), force)
    rooms = {plan.stage: _room(plugins, recipe, plan) for plan in plans}
    if json:
        stages = [{**plan.as_json(), **_as_json(rooms[plan.stage])} for plan in plans]
        hints = [asdict(hint) for hint in recipe.hints]
        print_json({"recipe": recipe.name, "store": str(store), "stages": stages, "hints": hints})
    else:
        tell_hints(recipe)
        for head, plan in zip(aligned([_head(plan) for plan in plans]), plans, strict=True):
            details = [*estimate_lines(plan.estimate), *(f"not pinned: {path}" for path in plan.unpinned)]
            print("\n    ".join([head, *details]), file=sys.stderr)
        for plan in plans:
            _tell_room(plan, rooms[plan.stage])
    if fits:
        _leave_unless_all_fit(rooms)
    if check and any(plan.status != "cached" for plan in plans):
        raise SystemExit(ExitCode.WORK_FOUND)


def _room(plugins: Plugins, recipe: Recipe, plan: StagePlan) -> Room | None:
    """`None` for a stage that will not run, or whose memory nobody counts: one that makes no model."""
    config, memory = recipe.config(plan.stage), plan.estimate.memory
    if plan.status == "cached" or not (memory or issubclass(config.produces(), (Model, Adapter))):
        return None
    return Room(sum(memory.values()) or None, plugins.hook.device_memory(execution=config.execution))


def _as_json(room: Room | None) -> dict[str, Any]:
    return {"device_memory": room and room.there, "fits": room and room.fits}


def _tell_room(plan: StagePlan, room: Room | None) -> None:
    """A hint at a stage that does not fit, with what would take less."""
    if room is None or room.needed is None or room.there is None or room.fits:
        return
    print(f"hint: {plan.stage} does not fit: about {size(room.needed)} a process, of {size(room.there)} here",
          file=sys.stderr)  # fmt: skip
    for what, needed in plan.estimate.alternatives.items():
        print(f"  -> {what}: {size(needed)}" + (", which fits" if needed <= room.there else ""), file=sys.stderr)


def _leave_unless_all_fit(rooms: Mapping[str, Room | None]) -> None:
    found = {room.fits for room in rooms.values() if room is not None}
    if False in found:
        raise SystemExit(ExitCode.DOES_NOT_FIT)
    if None in found:
        raise SystemExit(ExitCode.CANNOT_TELL)


def _head(plan: StagePlan) -> tuple[str, str, str, str]:
    """The first line of a stage: what becomes of it, and why or where it is."""
    reasons = ", ".join(map(str, plan.reasons))
    return plan.stage, plan.use, plan.status, reasons or (str(plan.artifact.path) if plan.artifact else "")


def estimate_lines(estimate: Estimate) -> list[str]:
    """The estimate as lines; what is unknown says so, for stages that train."""
    lines = []
    trains = estimate.trainable is not None or estimate.steps is not None
    if trains:
        whole, part = estimate.parameters, estimate.trainable
        share = f" ({part / whole:.2%})" if part and whole else ""
        lines.append(f"parameters {number(whole)}, trainable {number(part)}{share}")
    if trains and estimate.trainable != 0:
        costs = {"tokens": estimate.tokens, "steps": estimate.steps, "FLOPs": estimate.flops}
        lines.append(", ".join(f"{name} {number(value)}" for name, value in costs.items()))
    if estimate.memory:
        parts = " + ".join(
            f"{name.replace('_', ' ')} {size(value)}" for name, value in estimate.memory.items() if value
        )
        counted = "" if "activations" in estimate.memory or estimate.trainable == 0 else ", before activations"
        lines.append(f"memory {size(sum(estimate.memory.values()))} = {parts}{counted}")
    elif trains:
        lines.append("memory unknown")
    if estimate.disk is not None:
        lines.append(f"disk at most {size(estimate.disk)}")
    return lines + list(estimate.notes)


def number(value: float | None) -> str:
    """`1,053,312` or `3.2e+15`, or `unknown`."""
    if value is None:
        return "unknown"
    return f"{value:,.0f}" if value < 1e12 else f"{value:.2e}"


def size(value: float) -> str:
    """Bytes in decimal units: `112.0 GB`."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= factor:
            return f"{value / factor:.1f} {unit}"
    return f"{value:.0f} B"
