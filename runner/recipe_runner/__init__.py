"""The runner's public API: everything a plugin needs, imported on first use.

`recipe --help` pays for none of it. What is not in `__all__` here (or in `recipe_runner.testing`) may change.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from recipe_runner.artifacts import Adapter, Artifact, Corpus, Evaluation, Model, Tokeniser
    from recipe_runner.components import (
        Component,
        Config,
        Count,
        Execution,
        File,
        Input,
        Place,
        Ref,
        Registry,
        Size,
        Slot,
        Use,
    )
    from recipe_runner.contract import (
        Architecture,
        BadRow,
        Branch,
        Counts,
        Estimate,
        Event,
        ExecutionConfig,
        Filter,
        Format,
        GlobalFilter,
        Known,
        KnownInput,
        Launcher,
        Optimizer,
        ParamGroup,
        Piece,
        Record,
        Row,
        Schedule,
        Source,
        Stage,
        StageConfig,
        StageContext,
        Tracker,
        Verdict,
    )
    from recipe_runner.errors import Interrupted, Problem, RecipeError, suggest
    from recipe_runner.hookspecs import Check, Command

hookimpl = pluggy.HookimplMarker("recipe_runner")
"""Marks a hook implementation of a plugin."""

_HOMES = {
    "artifacts": "Adapter Artifact Corpus Evaluation Model Tokeniser",
    "components": "Component Config Count Execution File Input Place Ref Registry Size Slot Use",
    "contract": "Architecture BadRow Branch Counts Estimate Event ExecutionConfig Filter Format GlobalFilter Known "
    "KnownInput Launcher Optimizer ParamGroup Piece Record Row Schedule Source Stage StageConfig StageContext Tracker "
    "Verdict",
    "errors": "Interrupted Problem RecipeError suggest",
    "hookspecs": "Check Command",
}
_HOME = {name: module for module, names in _HOMES.items() for name in names.split()}

__all__ = ["hookimpl", *sorted(_HOME)]  # noqa: PLE0604  (strings, made above)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
