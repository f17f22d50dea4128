"""`recipe plan`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from recipe_runner.commands import Switches, load_plugins, print_json, tell_hints
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
        print("\n".join(line for plan in plans for line in _lines(plan)), file=sys.stderr)
    if check and any(plan.status != "cached" for plan in plans):
        raise SystemExit(ExitCode.WORK_FOUND)


def _lines(plan: StagePlan) -> list[str]:
    reasons = ", ".join(str(reason) for reason in plan.reasons)
    where = str(plan.artifact.path) if plan.artifact else ""
    lines = [f"{plan.stage:<12} {plan.use:<10} {plan.status:<8} {reasons or where}".rstrip()]
    lines += [f"    {line}" for line in estimate_lines(plan.estimate)]
    lines += [f"    not pinned: {path}" for path in plan.unpinned]
    return lines


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
