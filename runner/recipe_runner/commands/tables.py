"""Tables: the one form in which stages and commands show facts, on a terminal and in a report.

A table is `{"title": str, "columns": [str], "rows": [[value]]}`. A stage gives tables with `ctx.note(tables=[…])`, and
samples, `{"prompt": str, "answers": {label: text}}`, with `ctx.note(samples=[…])`; these become a table too, with the
answers side by side. A value `{"marked": [[text, bool]]}` is one text, coloured where it is marked; in brackets where
there are no colours.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any, TypeAlias

Table: TypeAlias = Mapping[str, Any]
WIDE = 200  # characters


def table(title: str, columns: str, rows: Iterable[Iterable[Any]]) -> Table:
    """A table; `columns` are words divided by `, `."""
    return {"title": title, "columns": columns.split(", "), "rows": [list(row) for row in rows]}


def samples_table(title: str, samples: Sequence[Mapping[str, Any]]) -> Table:
    """Prompts, and the answers of each model side by side."""
    labels = list(dict.fromkeys(label for sample in samples for label in sample["answers"]))
    rows = [[sample["prompt"], *map(sample["answers"].get, labels)] for sample in samples]
    return {"title": title, "columns": ["prompt", *labels], "rows": rows}


def cell(value: Any) -> str:
    """A value as people read it: `1,234`, `0.1235`, `a=1, b=(c=2, d=3)`, `–` for nothing."""
    if is_marked(value):
        return "".join(f"⟦{text}⟧" if marked else text for text, marked in value["marked"])
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={_part(entry)}" for key, entry in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_part, value))
    if isinstance(value, float):
        return f"{value:,.0f}" if 1e5 <= abs(value) < 1e15 else f"{value:.4g}"
    words = {None: "–", True: "yes", False: "no"}
    return words[value] if value is None or isinstance(value, bool) else format(value, "," * isinstance(value, int))


def is_marked(value: Any) -> bool:
    """Whether it is a text in parts, some of them marked."""
    return isinstance(value, Mapping) and value.keys() == {"marked"}


def _part(value: Any) -> str:
    """A value inside another; brackets say where one of several entries ends."""
    several = isinstance(value, (Mapping, list, tuple)) and len(value) > 1
    return f"({cell(value)})" if several else cell(value)


def _cells(table: Table) -> tuple[list[str], list[list[str]], list[bool]]:
    """The head and the rows as texts, and which columns hold numbers only."""
    columns = [[row[n] for row in table["rows"]] for n in range(len(table["columns"]))]
    numeric = [all(isinstance(value, (int, float, type(None))) for value in column) for column in columns]
    return table["columns"], [[cell(value) for value in row] for row in table["rows"]], numeric


def show(tables: Sequence[Table]) -> None:
    """Print tables on stderr, as wide as the terminal, or as `WIDE` where there is none."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table as Drawn
    from rich.text import Text

    console = Console(stderr=True, highlight=False, width=None if sys.stderr.isatty() else WIDE)
    for entry in tables:
        head, rows, numeric = _cells(entry)
        given = entry["rows"] if console.color_system else rows
        drawn = Drawn(box=SIMPLE_HEAD, pad_edge=False)
        for name, right in zip(head, numeric, strict=True):
            drawn.add_column(Text(name), justify="right" if right else "left", overflow="fold")
        for row, values in zip(rows, given, strict=True):
            drawn.add_row(*(_coloured(value) if is_marked(value) else Text(text)
                            for text, value in zip(row, values, strict=True)))  # fmt: skip
        console.print(Text(entry["title"], "bold"), drawn, sep="\n")


def _coloured(value: Mapping[str, Any]) -> Any:
    """A marked text, for a terminal."""
    from rich.text import Text

    return Text.assemble(*((text, "green" if marked else "") for text, marked in value["marked"]))


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """A line for each row, with every column but the last as wide as its widest entry."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)][:-1]
    return ["  ".join([*map(str.ljust, row, widths), row[-1]]).rstrip() for row in rows]


def html(table: Table) -> str:
    """As HTML, everything escaped."""
    head, rows, numeric = _cells(table)
    cells = "".join(f"<td{' class=n' * right}>{{}}</td>" for right in numeric)
    texts = [[_html(value, text) for value, text in zip(*pair, strict=True)]
             for pair in zip(table["rows"], rows, strict=True)]  # fmt: skip
    lines = [cells.replace("td", "th").format(*map(escape, head)), *(cells.format(*row) for row in texts)]
    return f"<h2>{escape(table['title'])}</h2>\n<table>\n<tr>" + "</tr>\n<tr>".join(lines) + "</tr>\n</table>"


def _html(value: Any, text: str) -> str:
    if not is_marked(value):
        return escape(text)
    return "".join(f"<mark>{escape(part)}</mark>" if marked else escape(part) for part, marked in value["marked"])
