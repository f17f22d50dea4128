"""TensorBoard's event files, written by its own writer; torch is not needed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from recipe_plugins.trackers.config import TensorBoardConfig
from recipe_plugins.trackers.metrics import Metrics
from recipe_runner import RecipeError

try:
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.event_file_writer import EventFileWriter
except ImportError as error:
    raise RecipeError(
        "the tracker tensorboard needs tensorboard, which is not installed",
        next="pip install 'recipe-runner[tensorboard]'",
    ) from error


class TensorBoard(Metrics):
    """See the module's text."""

    def __init__(self, config: TensorBoardConfig) -> None:
        super().__init__()
        self.config = config

    def open_sink(self, recipe: str, run: str, stage: str) -> _Writer:
        """A folder of its own."""
        return _Writer(Path(self.config.folder) / run / stage)


class _Writer:
    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._writer = EventFileWriter(str(folder))

    def row(self, step: int, values: Mapping[str, float], time: float) -> None:
        """See `Sink`."""
        shown = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._writer.add_event(Event(wall_time=time, step=step, summary=Summary(value=shown)))

    def resumed(self, step: int) -> None:
        """A session that starts at a step makes TensorBoard drop what an earlier one had from there on."""
        self._writer.add_event(Event(step=step + 1, session_log=SessionLog(status=SessionLog.START)))

    def close(self) -> None:
        """See `Sink`."""
        self._writer.close()
