"""Conformance: what a plugin and its components must hold, as functions for its tests; each raises `AssertionError`."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable, Sequence
from copy import deepcopy
from typing import Any

from recipe_runner.contract import Filter, Optimizer, ParamGroup, Record, RecordFilter, batched
from recipe_runner.plugins import installed

HEAVY = ("torch", "transformers", "datasets")
_IMPORTS = """import sys
from recipe_runner.plugins import installed
found = [c for c in installed().registry if c.dist == sys.argv[1]]
[c.config_class() for c in found]
print(len(found), *set(sys.argv[2:]) & set(sys.modules))"""


def check_plugin(dist: str) -> None:
    """A distribution registers something; its hooks and configs import nothing heavy; its targets are there."""
    command = [sys.executable, "-c", _IMPORTS, dist, *HEAVY]
    count, *heavy = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert count != "0", f"{dist} registers nothing"
    assert not heavy, f"the hooks or configs of the installed plugins import {heavy}"
    for component in installed().registry:
        assert component.dist != dist or callable(component.load()), component


def check_filter(filter: Filter | RecordFilter, records: Sequence[Record]) -> None:
    """A filter gives each record the same verdict alone, among others, and in another order."""
    judge = batched(filter).judge
    together = list(judge(records))
    assert together == [verdict for record in records for verdict in judge([record])]
    assert together == list(judge(records[::-1]))[::-1]


def check_optimizer(optimizer: Optimizer, parameters: Sequence[Any], steps: int = 5) -> None:
    """An optimizer moves parameters (torch's), and goes on bit for bit in a new one that loaded its `state_dict`."""

    def begun(copies: Sequence[Any]) -> Any:
        return optimizer.build([ParamGroup(list(copies), "matrix", decay=True)])

    def trained(built: Any, copies: Sequence[Any], numbers: Iterable[int]) -> list[Any]:
        for number in numbers:
            for copy in copies:
                copy.grad = (copy.detach() * 3 + number).sin()
            built.step()
        return [copy.tolist() for copy in copies]

    whole, first = deepcopy(parameters), deepcopy(parameters)
    expected = trained(begun(whole), whole, range(2 * steps))
    assert expected != [parameter.tolist() for parameter in parameters], "nothing moves"
    stopped = begun(first)
    trained(stopped, first, range(steps))
    second = deepcopy(first)
    resumed = begun(second)
    resumed.load_state_dict(deepcopy(stopped.state_dict()))
    assert trained(resumed, second, range(steps, 2 * steps)) == expected, "state_dict is not exact"
