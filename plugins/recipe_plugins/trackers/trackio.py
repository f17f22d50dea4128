"""Trackio, by its own storage: a database on this machine, which `trackio show` reads. Nothing is sent anywhere.

Its `init` is not called, since that asks the hub who owns this machine's token, for a local project too, and sends the
metrics off where a variable says so. Limit: the folder is the library's own affair (`TRACKIO_DIR`, or its cache).
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from recipe_plugins.trackers.config import TrackioConfig
from recipe_plugins.trackers.metrics import Metrics
from recipe_runner import RecipeError

try:
    from trackio.sqlite_storage import SQLiteStorage
except ImportError as error:
    raise RecipeError(
        "the tracker trackio needs trackio, which is not installed", next="pip install 'recipe-runner[trackio]'"
    ) from error

_SECONDS = 5.0
"""How long rows may wait to be written together; a write takes the database's lock."""


class Trackio(Metrics):
    """See the module's text. Raises `RecipeError` for a name that no project can have."""

    def __init__(self, config: TrackioConfig) -> None:
        super().__init__()
        self.config = config
        try:
            SQLiteStorage.validate_project_name(config.project)
        except ValueError as error:
            raise RecipeError(f"trackio: {error}", next="give the tracker another `project`") from error

    def open_sink(self, recipe: str, run: str, stage: str) -> _Run:
        """A run of theirs in the group of ours."""
        return _Run(self.config.project, f"{recipe}/{run}", stage)


class _Run:
    """A resumed stage is another run there, with the step it begins at."""

    def __init__(self, project: str, group: str, stage: str) -> None:
        self._project, self._stage, self._id = project, stage, f"{group}/{stage}"
        self._config: dict[str, Any] = {"_Group": group}
        self._rows: list[tuple[int, Mapping[str, float], float]] = []

    def row(self, step: int, values: Mapping[str, float], time: float) -> None:
        """See `Sink`."""
        self._rows.append((step, values, time))
        if time - self._rows[0][2] >= _SECONDS:
            self._write()

    def resumed(self, step: int) -> None:
        """See `Sink`."""
        self._write()
        self._id, self._config = f"{self._id}/{step}", {**self._config, "resumed_from": step}

    def close(self) -> None:
        """See `Sink`."""
        self._write()

    def _write(self) -> None:
        SQLiteStorage.bulk_log(
            self._project,
            self._stage,
            [dict(values) for _, values, _ in self._rows],
            steps=[step for step, _, _ in self._rows],
            timestamps=[datetime.fromtimestamp(time, UTC).isoformat() for _, _, time in self._rows],
            config=self._config,
            run_id=self._id,
        )
        self._rows = []
