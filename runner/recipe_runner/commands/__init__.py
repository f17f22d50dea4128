"""The work behind each command, imported only when the command is given."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from recipe_runner.plugins import Plugins


class Switches(Protocol):
    """The options that stand before the command."""

    disabled: tuple[str, ...]
    strict: bool


def load_plugins(switches: Switches) -> Plugins:
    """The installed plugins; each broken one is a line on stderr."""
    from recipe_runner.plugins import installed

    plugins = installed(switches.disabled, switches.strict)
    for record in plugins.records:
        if record.error:
            print(f"plugin {record.dist} {record.version} is off: {record.error}", file=sys.stderr)
    return plugins


def print_json(value: Any) -> None:
    """Facts on stdout, and nothing else."""
    print(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))
