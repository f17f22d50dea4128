"""A stage context in one process and one folder, without store, locks or events; for tests and notebooks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recipe_runner.artifacts import Artifact
from recipe_runner.components import Ref, Slot, Use, Validation
from recipe_runner.contract import Event, StageConfig
from recipe_runner.identity import digest_of, folder_files, make_seed
from recipe_runner.plugins import Plugins, installed


class LocalContext:
    """Implements `StageContext`; what the stage tells is kept in lists for a test to look at."""

    def __init__(
        self,
        folder: Path,
        *,
        inputs: Mapping[str, Artifact] | None = None,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.folder, self.payload, self.work = folder, folder / "payload", folder / "work"
        self.payload.mkdir(parents=True, exist_ok=True)
        self.work.mkdir(exist_ok=True)
        self.inputs = dict(inputs or {})
        self.rank, self.world_size, self._seed = rank, world_size, seed
        self.allow_remote_code = False
        self.rows: list[dict[str, float]] = []
        self.events: list[Event] = []
        self.facts: dict[str, Any] = {}
        self.warnings: list[str] = []
        self.stop = False

    def open(self, ref: Ref) -> Artifact:
        """The artifact given under `inputs` by that name, or the folder at that path."""
        return self.inputs.get(ref.text) or Artifact(Path(ref.text), "", {})

    def seed(self, *words: str | int) -> int:
        """As in a run with this context's seed."""
        return make_seed(self._seed, *words)

    def metrics(self, step: int, **values: float) -> None:
        """Kept in `rows`."""
        self.rows.append({"step": step, **values})

    def resume_from(self, step: int) -> None:
        """Cuts `rows`."""
        self.rows = [row for row in self.rows if row["step"] <= step]

    def flush(self) -> None:
        """Nothing is buffered here."""

    def emit(self, event: Event) -> None:
        """Kept in `events`."""
        self.events.append(event)

    def progress(self, done: float, total: float | None = None, unit: str = "", note: str = "") -> None:
        """Not shown."""

    def note(self, **facts: Any) -> None:
        """Kept in `facts`."""
        self.facts.update(json.loads(json.dumps(facts)))

    def warn(self, text: str) -> None:
        """Kept in `warnings`."""
        self.warnings.append(text)

    def stopping(self) -> bool:
        """Whatever `stop` was set to."""
        return self.stop


def make(
    use: str,
    config: Mapping[str, Any],
    folder: Path,
    *,
    inputs: Mapping[str, Artifact] | None = None,
    seed: int = 0,
    plugins: Plugins | None = None,
) -> Any:
    """Run stage `use` with `config` in this process and return its artifact, an instance of what it produces."""
    stage = slot("stage", {"use": use, **config}, plugins=plugins)
    assert isinstance(stage.config, StageConfig)
    effective = seed if stage.config.seed is None else stage.config.seed
    context = LocalContext(folder, inputs=inputs, seed=effective)
    stage.build().run(context)
    produced = stage.config.produces()
    files = folder_files(context.payload)
    manifest = {"type": produced.type, "facts": context.facts, "warnings": context.warnings, "files": files}
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return produced(folder, digest_of(files), manifest)


def slot(kind: str, value: Any, *, plugins: Plugins | None = None) -> Use[Any]:
    """What a slot of `kind` holds after `value` is written there: `slot("optimizer", {"use": "lion"}).build()`."""
    return Slot(kind).resolve(value, Validation((plugins or installed()).registry))
