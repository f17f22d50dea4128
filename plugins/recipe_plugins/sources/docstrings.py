"""The docstrings of the standard library, one document a module, read with `ast`."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from recipe_plugins.sources.config import PythonDocstringsConfig
from recipe_plugins.sources.stdlib import Library, parsed
from recipe_runner import Piece, Row


class PythonDocstrings(Library):
    """The module's docstring, then every class and function that has one, under its name and signature."""

    def __init__(self, config: PythonDocstringsConfig) -> None:
        self.config = config

    def read(self, piece: Piece) -> Iterator[Row]:
        """One row a module that has any docstring."""
        for module, _, tree in parsed(piece):
            parts = [part for name, node in members(tree, module.name) for part in _entry(name, node)]
            if parts:
                yield {
                    "id": f"docstrings/{module.name}",
                    "text": "\n\n".join(parts) + "\n",
                    "meta": {"group": module.group},
                }


Member = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def members(tree: ast.Module, name: str) -> Iterator[tuple[str, Member]]:
    """The module, its classes and functions and those inside classes, with dotted names, in the order of the file."""
    yield name, tree
    yield from _inside(tree, name)


def _inside(node: ast.Module | ast.ClassDef, prefix: str) -> Iterator[tuple[str, Member]]:
    for child in node.body:
        if isinstance(child, ast.ClassDef):
            yield f"{prefix}.{child.name}", child
            yield from _inside(child, f"{prefix}.{child.name}")
        elif isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield f"{prefix}.{child.name}", child


def _entry(name: str, node: Member) -> list[str]:
    text = ast.get_docstring(node)
    return [heading(name, node), text] if text and text.strip() else []


def heading(name: str, node: Member) -> str:
    """`module textwrap`, `class textwrap.TextWrapper` or `textwrap.dedent(text)`."""
    if isinstance(node, ast.Module):
        return f"module {name}"
    if isinstance(node, ast.ClassDef):
        return f"class {name}"
    return f"{name}({ast.unparse(node.args)})"
