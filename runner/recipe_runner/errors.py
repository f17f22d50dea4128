"""One family of errors: each says where, what and what next, and carries the exit code of the command line.

Guarantee: whatever a user's input can cause is a `RecipeError`, shown without a traceback. Anything else that
escapes is a defect of ours or of a plugin, and keeps its traceback.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from enum import IntEnum


class ExitCode(IntEnum):
    """What `recipe` exits with."""

    OK = 0
    STAGE_FAILED = 1
    USAGE = 2
    PLUGIN = 3
    BUSY = 4
    WORK_FOUND = 5
    DOES_NOT_FIT = 6
    CANNOT_TELL = 7
    INTERRUPTED = 130


@dataclass(frozen=True, slots=True, order=True)
class Origin:
    """Where a value was written: `file:line:column`, and the line itself. Lines and columns count from 1."""

    file: str = ""
    line: int = 0
    column: int = 0
    text: str = ""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}" if self.line else self.file


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a recipe: `path` is the dotted key, `what` got and expected, `next` what to do.

    `plugin` is set where the recipe may be right and a plugin is missing or broken; `hint` where it is right, but out
    of the usual.
    """

    what: str
    path: str = ""
    origin: Origin = Origin()
    next: str = ""
    plugin: bool = False
    hint: bool = False

    def render(self) -> str:
        """The text that people see: position and key, the line, what is wrong, what next."""
        head = ": ".join(part for part in (str(self.origin), self.path) if part)
        lines = [f"{head}: {self.what}" if head else self.what]
        if self.origin.text:
            lines.append(f"  {self.origin.line:>4} | {self.origin.text.rstrip()}")
        lines += [f"  -> {part}" for part in self.next.splitlines()]
        return "\n".join(lines)


class RecipeError(ValueError):
    """A user's error: what is wrong and, in `next`, what to do about it.

    `field` is for a config's validator: the keys from that config down to what is wrong, whose line is then shown
    (`("mix", "weights", "wbe")`); without it the block that the config was made of is.
    """

    exit_code: ExitCode = ExitCode.STAGE_FAILED

    def __init__(self, what: str, *, next: str = "", field: Sequence[str | int] = ()) -> None:
        super().__init__(f"{what}; {next}" if field and next else what)  # pydantic shows no more than this
        self.what, self.next, self.field = what, next, tuple(map(str, field))

    def render(self) -> str:
        """The text that people see."""
        return Problem(self.what, next=self.next).render()


class InvalidRecipe(RecipeError):
    """Every problem that was found in a recipe, all at once."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = sorted(set(problems), key=lambda p: (p.origin, p.path, p.what))
        self.exit_code = ExitCode.PLUGIN if all(p.plugin for p in self.problems) else ExitCode.USAGE
        super().__init__("\n".join(problem.render() for problem in self.problems))

    def render(self) -> str:
        count = len(self.problems)
        return f"{self.what}\n{count} problem{'s' if count > 1 else ''} found; nothing was run."


class UsageError(RecipeError):
    """A command line that cannot be carried out."""

    exit_code = ExitCode.USAGE


class PluginError(RecipeError):
    """A plugin that a recipe needs is missing or broken."""

    exit_code = ExitCode.PLUGIN


class StoreBusy(RecipeError):
    """Another run holds the lock of a key, and `--no-wait` was given."""

    exit_code = ExitCode.BUSY


class StoreError(RecipeError):
    """The store cannot be read or written, or an artifact in it is damaged."""


class StageFailed(RecipeError):
    """A stage ended with an error, which its worker has reported."""


class Interrupted(RecipeError):
    """Raised by a stage that saved its state because `ctx.stopping()` said so."""

    exit_code = ExitCode.INTERRUPTED

    def __init__(self, what: str = "interrupted", *, next: str = "") -> None:
        super().__init__(what, next=next)


def suggest(word: str, known: Iterable[str], *, noun: str = "") -> str:
    """`did you mean 'x'?`, or, with no close match, the names there are (at most twelve)."""
    names: Sequence[str] = sorted(set(known))
    close = get_close_matches(word, names, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]!r}?"
    if not names:
        return f"there are no {noun} at all" if noun else ""
    shown = ", ".join(names[:12]) + (", …" if len(names) > 12 else "")
    return f"{noun or 'known'}: {shown}"
