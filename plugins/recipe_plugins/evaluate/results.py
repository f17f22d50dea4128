"""Results of several models as one: what changed from the first, what is shown, and whether it is as expected."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from recipe_plugins.evaluate.config import Expectation, lookup
from recipe_runner import RecipeError

Results = Mapping[str, Mapping[str, Any]]


def compared(found: Results, prompts: Sequence[str]) -> dict[str, Any]:
    """`{"models": {label: measures}, "samples": [{"prompt", "answers": {label: text}}]}`.

    Each model has under `change` its bits per byte less those of the first model, by domain that both were scored in:
    one is not where none of the documents has two of its tokens.
    """
    first = next(iter(found.values()))["bits_per_byte"]
    models = {}
    for label, measures in found.items():
        own = measures["bits_per_byte"]
        change = {domain: round(bits - first[domain], 6) for domain, bits in own.items() if domain in first}
        models[label] = {**{key: value for key, value in measures.items() if key != "samples"}, "change": change}
    samples = [
        {"prompt": prompt, "answers": {label: measures["samples"][prompt] for label, measures in found.items()}}
        for prompt in prompts
    ]
    return {"models": models, "samples": samples}


def tables(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One table for each measure: a row for each of its numbers, a column for each model."""
    models: Results = results["models"]
    titles = {
        "bits_per_byte": "bits per byte of held-out text",
        "change": f"change in bits per byte from {next(iter(models))} (more is forgotten)",
        "answers": "loss of answers, nats a token",
        "exact_match": "share of questions answered word for word",
    }
    made = []
    for measure, title in titles.items():
        columns = {label: dict(_leaves(measures.get(measure, {}))) for label, measures in models.items()}
        names = list(dict.fromkeys(name for column in columns.values() for name in column))
        rows = [[name, *(column.get(name) for column in columns.values())] for name in names]
        if rows:
            made.append({"title": title, "columns": ["", *columns], "rows": rows})
    return made


def _leaves(tree: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    return ((" ".join(path), value) for path, value in _paths(tree))


def _paths(tree: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _paths(value, (*path, key))
        else:
            yield (*path, key), value


def check(expected: Mapping[str, Expectation], models: Results) -> list[dict[str, Any]]:
    """What was expected and what was found. Raises `RecipeError`, with a line for each, where one does not hold."""
    lines = [_checked(name, expectation, models) for name, expectation in expected.items()]
    if any(not line["holds"] for line in lines):
        shown = [f"{'ok  ' if line['holds'] else 'FAIL'}  {line['name']}: {line['text']}" for line in lines]
        raise RecipeError("\n".join(["what is expected of the models does not hold", *shown]))
    return lines


def _checked(name: str, expectation: Expectation, models: Results) -> dict[str, Any]:
    below = expectation.below is not None
    bound = expectation.below if below else expectation.above
    assert bound is not None
    got, limit = _value(expectation.metric, models), _value(bound, models)
    holds = got <= limit - expectation.by if below else got >= limit + expectation.by
    sign, margin = ("<=" if below else ">="), f" {'-' if below else '+'} {expectation.by:g}" if expectation.by else ""
    against = f"{bound} = {limit:.6g}" if isinstance(bound, str) else f"{limit:g}"
    text = f"{expectation.metric} = {got:.6g}, expected {sign} {against}{margin}"
    return {"name": name, "holds": holds, "text": text}


def _value(metric: str | float, models: Results) -> float:
    if isinstance(metric, float):
        return metric
    found = lookup(models, metric)
    if found is None:
        near = metric.rpartition(".")[0].split(".")[:2]
        names = [".".join(path) for path, _ in _paths(models) if list(path[:2]) == near]
        raise RecipeError(f"expect: nothing is called {metric!r}", next="there are: " + ", ".join(names))
    return found
