"""How the ranks of a stage are started."""

from __future__ import annotations

from recipe_runner import Component

COMPONENTS = [
    Component(
        kind="launcher",
        name="local",
        target="recipe_plugins.launchers.local:Local",
        summary="the ranks are processes of this machine",
    ),
]
