"""`recipe plan`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from recipe_runner.commands import Switches, load_plugins, print_json, tell_hints
from recipe_runner.commands.tables import aligned
from recipe_runner.contract import Estimate
from recipe_runner.errors import ExitCode
from recipe_runner.plan import StagePlan, make_plan
from recipe_runner.recipe import load
from recipe_runner.store import Store


def show_plan(
    switches: Switches, path: str, overrides: Sequence[str], store: Path, force: Sequence[str], check: bool, json: bool
) -> None:
    """Print the plan; with `check`, exit 5 if anything would run."""
    recipe = load(path, overrides, plugins=load_plugins(switches))
    plans = make_plan(recipe, Store(store), force)
    if json:
        hints = [asdict(hint) for hint in recipe.hints]
        print_json({"recipe": recipe.name, "store": str(store), "stages": [p.as_json() for p in plans], "hints": hints})
    else:
        tell_hints(recipe)
        for head, plan in zip(aligned([_head(plan) for plan in plans]), plans, strict=True):
            details = [*estimate_lines(plan.estimate), *(f"not pinned: {path}" for path in plan.unpinned)]
            print("\n    ".join([head, *details]), file=sys.stderr)
    if check and any(plan.status != "cached" for plan in plans):
        raise SystemExit(ExitCode.WORK_FOUND)


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
        costs = {"tokens": estimate.tokens, "steps": estimate.steps, "FLOPs": estimate.flops}
        lines.append(", ".join(f"{name} {number(value)}" for name, value in costs.items()))
    if estimate.memory:
        parts = " + ".join(f"{name} {size(value)}" for name, value in estimate.memory.items())
        lines.append(f"memory {size(sum(estimate.memory.values()))} = {parts}, before activations")
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
