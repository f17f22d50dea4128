"""Lists of words, phrases or addresses in files: one entry a line, lower case, `#` begins a comment."""

from __future__ import annotations

from pathlib import Path

from recipe_runner import RecipeError


def entries(path: str) -> frozenset[str]:
    """The entries of a list; raises `RecipeError` for a file without one, or that is no UTF-8."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: not UTF-8: {error}", next="store the list as UTF-8") from None
    found = frozenset(filter(None, (_entry(line) for line in text.splitlines())))
    if not found:
        raise RecipeError(f"{path}: the list has no entry", next="put one entry on each line")
    return found


def _entry(line: str) -> str:
    return "" if line.lstrip().startswith("#") else line.partition(" #")[0].strip().lower()
