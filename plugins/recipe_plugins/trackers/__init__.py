"""Trackers: components of kind `tracker`, which listen to a run's events. None of them is on by default."""

from __future__ import annotations

from recipe_runner import Component

COMPONENTS: list[Component] = [
    Component(
        kind="tracker",
        name="tensorboard",
        target="recipe_plugins.trackers.tensorboard:TensorBoard",
        config="recipe_plugins.trackers.config:TensorBoardConfig",
        summary="metrics as TensorBoard's event files (extra `tensorboard`)",
    ),
    Component(
        kind="tracker",
        name="wandb",
        target="recipe_plugins.trackers.wandb:WandB",
        config="recipe_plugins.trackers.config:WandBConfig",
        summary="metrics for Weights & Biases, kept here unless told to send them (extra `wandb`)",
    ),
    Component(
        kind="tracker",
        name="trackio",
        target="recipe_plugins.trackers.trackio:Trackio",
        config="recipe_plugins.trackers.config:TrackioConfig",
        summary="metrics in Trackio's database on this machine (extra `trackio`)",
    ),
]
