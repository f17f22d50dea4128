"""The code of the standard library with its docstrings removed, one document a module."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from recipe_plugins.sources.config import PythonSourceConfig
from recipe_plugins.sources.stdlib import Library, parsed
from recipe_runner import Piece, Row


class PythonSource(Library):
    """One row a module; comments stay, docstrings go, and what is left parses."""

    def __init__(self, config: PythonSourceConfig) -> None:
        self.config = config

    def read(self, piece: Piece) -> Iterator[Row]:
        """One row a module that has code."""
        for module, text, tree in parsed(piece):
            bare = without_docstrings(text, tree).strip("\n")
            if bare:
                yield {"id": f"code/{module.name}", "text": bare + "\n", "meta": {"group": module.group}}


def without_docstrings(text: str, tree: ast.Module) -> str:
    """The text without its docstrings; a body that held nothing else becomes `pass`."""
    lines = text.encode().split(b"\n")  # ast counts columns in UTF-8 bytes, and lines at \n once \r\n is gone
    for node in sorted(_docstrings(tree), key=lambda found: found[0].lineno, reverse=True):
        _cut(lines, *node)
    return b"\n".join(lines).decode()


def _docstrings(tree: ast.Module) -> Iterator[tuple[ast.Expr, bool]]:
    """Each docstring's statement, and whether it is all there is in its body."""
    for node in _statements(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and node.body:
            match node.body[0]:
                case ast.Expr(value=ast.Constant(value=str())) as first:
                    yield first, len(node.body) == 1


def _statements(node: ast.AST) -> Iterator[ast.AST]:
    """A node and the statements inside it; expressions, of which there are many more, hold no docstring."""
    yield node
    for name in ("body", "orelse", "handlers", "finalbody", "cases"):
        inner = getattr(node, name, ())
        for child in inner if isinstance(inner, list) else ():  # the body of a lambda or of `a if b else c` is no list
            yield from _statements(child)


def _cut(lines: list[bytes], statement: ast.Expr, alone: bool) -> None:
    first, last = statement.lineno - 1, (statement.end_lineno or statement.lineno) - 1
    before, after = lines[first][: statement.col_offset], lines[last][statement.end_col_offset :]
    shared = bool(before.strip() or after.strip().removeprefix(b"\\"))
    lines[first : last + 1] = [before + b"pass" + after] if alone or shared else []
    if not (alone or shared) and first < len(lines) and not lines[first].strip():
        del lines[first]  # the blank line that set the docstring off
