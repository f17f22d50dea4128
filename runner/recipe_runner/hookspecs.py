"""The hooks that a plugin may implement. Each is called by the runner; a test asserts it.

A plugin is one entry point of the group `recipe_runner`, pointing at a module that imports nothing heavy:

    [project.entry-points.recipe_runner]
    recipe-signum = "recipe_signum.hooks"
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from recipe_runner.components import Component
    from recipe_runner.contract import Event, ExecutionConfig
    from recipe_runner.errors import Problem
    from recipe_runner.recipe import Recipe

PROJECT = "recipe_runner"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)
"""Marks a hook implementation of a plugin."""


@dataclass(frozen=True, slots=True)
class Command:
    """A subcommand `recipe x NAME …`; `target` ("pkg.module:function") is called with the remaining arguments."""

    name: str
    target: str
    summary: str = ""


@dataclass(frozen=True, slots=True)
class Check:
    """One line of `recipe doctor`: `ok` is None where the answer is only information."""

    name: str
    value: str
    ok: bool | None = None


@hookspec
def register_components() -> Iterable[Component]:  # type: ignore[empty-body]
    """The plugin's components, as strings; called once.

    @hookimpl
    def register_components():
        return [Component(kind="optimizer", name="signum", target="recipe_signum.optim:Signum",
                          config="recipe_signum.config:SignumConfig")]
    """


@hookspec
def register_commands() -> Iterable[Command]:  # type: ignore[empty-body]
    """Subcommands under `recipe x`.

    @hookimpl
    def register_commands():
        return [Command("signum-info", "recipe_signum.info:main", "print what Signum is")]
    """


@hookspec
def check_recipe(recipe: Recipe) -> Iterable[Problem]:  # type: ignore[empty-body]
    """More problems of a valid recipe, or hints at what is out of the usual; it is read, never changed.

    @hookimpl
    def check_recipe(recipe):
        for name, stage in recipe.stages.items(): ...
            yield Problem("Signum wants a smaller rate than AdamW", path=f"stages.{name}.optimizer.lr")
    """


@hookspec
def run_stage(stage: str, use: str) -> Generator[None, Any, Any]:  # type: ignore[empty-body]
    """Around each stage, in the parent process: a wrapper, for notifiers and profilers.

    @hookimpl(wrapper=True)
    def run_stage(stage, use):
        started = time.monotonic()
        result = yield
        notify(f"{stage} took {time.monotonic() - started:.0f} s")
        return result
    """


@hookspec
def on_event(event: Event) -> None:
    """Everything the runner tells, in order, in the parent process.

    @hookimpl
    def on_event(event):
        if event.kind == "stage-failed": page_someone(event.stage)
    """


@hookspec
def doctor() -> Iterable[Check]:  # type: ignore[empty-body]
    """What this machine has, for `recipe doctor`; libraries are imported inside.

    @hookimpl
    def doctor():
        return [Check("signum kernel", "compiled", ok=True)]
    """


@hookspec(firstresult=True)
def device_memory(execution: ExecutionConfig) -> int | None:
    """Bytes of memory that each process of a stage may take on this machine, for `recipe plan`; `None` leaves the
    answer to others, the first of which counts. No library is imported for it.

    @hookimpl
    def device_memory(execution):
        return 96 * 2**30 if execution.device == "auto" and Path("/dev/accel0").exists() else None
    """
