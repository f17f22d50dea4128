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
    Component(
        kind="launcher",
        name="torchrun",
        target="recipe_plugins.launchers.torchrun:Torchrun",
        config="recipe_plugins.launchers.config:TorchrunConfig",
        summary="the ranks are on several machines, by torchrun over ssh or the like",
    ),
]
