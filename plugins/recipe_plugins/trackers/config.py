"""Settings of the trackers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from recipe_runner import Config, Place


class TensorBoardConfig(Config):
    """Each stage of each run gets a folder of its own: `folder/RUN/STAGE`."""

    folder: Annotated[str, Place(), Field(description="what `tensorboard --logdir` is given")]


class WandBConfig(Config):
    """Each stage of a run is one run there, and the stages are a group. The key is the library's own affair."""

    project: str
    folder: Annotated[str, Place(), Field(description="where the library keeps its files")]
    mode: Annotated[
        Literal["offline", "online"], Field(description="offline keeps all here, for `wandb sync` by hand")
    ] = "offline"


class TrackioConfig(Config):
    """Each stage of a run is one run there, and the stages are a group. The folder is the library's own affair."""

    project: str
