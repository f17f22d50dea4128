"""Settings of the launchers."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from recipe_runner import Config


class TorchrunConfig(Config):
    """This machine is the first node, `hosts` are the others; each runs as many of `execution.processes`.

    All nodes see the store, and Python with the same packages, at the same paths.
    """

    hosts: Annotated[list[str], Field(description="the other nodes, as `shell` knows them")] = []
    address: Annotated[str, Field(description="this machine, as the others reach it")] = "127.0.0.1"
    port: Annotated[int, Field(ge=1, lt=2**16, description="free on this machine, open to the others")] = 29500
    shell: Annotated[
        list[str], Field(min_length=1, description="what runs a command on a node: [ssh] or, say, [srun, -w]")
    ] = ["ssh"]
