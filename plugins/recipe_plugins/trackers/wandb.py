"""Weights & Biases, by its own library. Nothing leaves this machine unless `mode: online` says so."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recipe_plugins.trackers.config import WandBConfig
from recipe_plugins.trackers.metrics import Metrics
from recipe_runner import RecipeError

try:
    import wandb as library
except ImportError as error:
    raise RecipeError(
        "the tracker wandb needs wandb, which is not installed", next="pip install 'recipe-runner[wandb]'"
    ) from error


class WandB(Metrics):
    """See the module's text."""

    def __init__(self, config: WandBConfig) -> None:
        super().__init__()
        self.config = config

    def open_sink(self, recipe: str, run: str, stage: str) -> _Run:
        """A run of theirs in the group of ours."""
        Path(self.config.folder).mkdir(parents=True, exist_ok=True)
        settings = library.Settings(console="off", x_disable_stats=True, disable_git=True, save_code=False, silent=True)
        return _Run(
            library.init(
                project=self.config.project,
                group=f"{recipe}/{run}",
                name=stage,
                dir=self.config.folder,
                mode=self.config.mode,
                reinit="create_new",
                settings=settings,
            )
        )


class _Run:
    def __init__(self, run: Any) -> None:
        self._run = run

    def row(self, step: int, values: Mapping[str, float], time: float) -> None:
        """See `Sink`."""
        self._run.log(dict(values), step=step)

    def resumed(self, step: int) -> None:
        """A resumed run is another run there, with the step it begins at."""
        self._run.config.update({"resumed_from": step}, allow_val_change=True)

    def close(self) -> None:
        """See `Sink`."""
        self._run.finish()
