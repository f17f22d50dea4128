"""The runner's public API: everything a plugin needs, imported on first use.

`recipe --help` pays for none of it. What is not in `__all__` here (or in `recipe_runner.testing`) may change.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from recipe_runner.artifacts import *
    from recipe_runner.components import *
    from recipe_runner.contract import *
    from recipe_runner.errors import *
    from recipe_runner.hookspecs import *

_HOME = {
    name: module
    for module, names in {
        "artifacts": "Adapter Artifact Corpus Evaluation Model RewardModel Tokeniser",
        "components": "Component Config Count Execution File Input Place Ref Registry Share Size Slot Use exact",
        "contract": "Architecture BadRow Branch Counts Estimate Event ExecutionConfig Filter Format GlobalFilter Known "
        "KnownInput Launcher OneByOne Optimizer ParamGroup Piece Record RecordFilter Row Schedule Source Stage "
        "StageConfig StageContext Tracker Verdict batched",
        "errors": "Interrupted Problem RecipeError suggest",
        "hookspecs": "Check Command hookimpl",
    }.items()
    for name in names.split()
}

__all__ = [
    "Adapter",
    "Architecture",
    "Artifact",
    "BadRow",
    "Branch",
    "Check",
    "Command",
    "Component",
    "Config",
    "Corpus",
    "Count",
    "Counts",
    "Estimate",
    "Evaluation",
    "Event",
    "Execution",
    "ExecutionConfig",
    "File",
    "Filter",
    "Format",
    "GlobalFilter",
    "Input",
    "Interrupted",
    "Known",
    "KnownInput",
    "Launcher",
    "Model",
    "OneByOne",
    "Optimizer",
    "ParamGroup",
    "Piece",
    "Place",
    "Problem",
    "RecipeError",
    "Record",
    "RecordFilter",
    "Ref",
    "Registry",
    "RewardModel",
    "Row",
    "Schedule",
    "Share",
    "Size",
    "Slot",
    "Source",
    "Stage",
    "StageConfig",
    "StageContext",
    "Tokeniser",
    "Tracker",
    "Use",
    "Verdict",
    "batched",
    "exact",
    "hookimpl",
    "suggest",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
