"""Questions on the standard library with their answers, as conversations of two turns.

The one idea: the three kinds ask for different skills. `what` is answered from a docstring's first sentences, `how`
by copying a name and adding a signature, `where` by copying the part of a name before its last dot.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from itertools import islice

from recipe_plugins.sources.config import PythonPreferencesConfig, PythonQuestionsConfig
from recipe_plugins.sources.docstrings import Member, members
from recipe_plugins.sources.stdlib import Library, parsed
from recipe_runner import Piece, Row

LONGEST = 300
"""Characters that an answer to `what` may have."""
LONGEST_CALL = 120
"""Characters that an answer to `how` may have."""
SIGNATURE = re.compile(r"^[\w.]+\(.*\)")


class PythonQuestions(Library):
    """Up to one row of each kind for a public class or function."""

    def __init__(self, config: PythonQuestionsConfig) -> None:
        self.config = config
        self._kinds = {"what": what, "how": how, "where": where}

    def read(self, piece: Piece) -> Iterator[Row]:
        """The rows of a piece, in the order of the files."""
        for module, _, tree in parsed(piece):
            seen: set[str] = set()
            for name, node in members(tree, module.name):
                if node is tree or not public(name) or name in seen:
                    continue  # a name defined twice is asked for once
                seen.add(name)
                for kind in self.config.kinds:
                    yield from self._row(kind, name, node, module.name, module.group)

    def _row(self, kind: str, name: str, node: Member, module: str, group: str) -> Iterator[Row]:
        pair = self._kinds[kind](name, node, module)
        if pair:
            yield {
                "id": f"{kind}/{name}",
                "messages": [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}],
                "meta": {"group": group, "kind": kind},
            }


class PythonPreferences(Library):
    """The same questions, each with its answer and with a wrong one: what is right for the next question, of whichever
    kind, so that form tells many pairs apart and the name that is asked for the rest."""

    def __init__(self, config: PythonPreferencesConfig) -> None:
        self._questions = PythonQuestions(PythonQuestionsConfig(kinds=config.kinds))

    def read(self, piece: Piece) -> Iterator[Row]:
        """Rows of `prompt`, `chosen` and `rejected`; none for an answer that is right for all questions of a piece."""
        rows = list(self._questions.read(piece))
        answers = [row["messages"][1]["content"] for row in rows]
        for number, (row, chosen) in enumerate(zip(rows, answers, strict=True)):
            others = (other for other in answers[number + 1 :] + answers[:number] if other != chosen)
            for rejected in islice(others, 1):
                prompt = row["messages"][0]["content"]
                yield {"id": row["id"], "prompt": prompt, "chosen": chosen, "rejected": rejected, **row["meta"]}


def public(name: str) -> bool:
    """Whether no part of a dotted name starts with an underscore."""
    return not any(part.startswith("_") for part in name.split("."))


def what(name: str, node: Member, module: str) -> tuple[str, str] | None:
    """Asked of whatever has a docstring that starts with a sentence."""
    answer = first_sentences(ast.get_docstring(node) or "")
    return (f"What does `{name}` do?", answer) if answer else None


def first_sentences(text: str) -> str:
    """The first paragraph, cut behind a full stop to at most `LONGEST` characters; "" where that leaves nothing."""
    paragraphs = [" ".join(part.split()) for part in text.split("\n\n")]
    first = next((part for part in paragraphs if part and not SIGNATURE.match(part)), "")
    if len(first) > LONGEST:
        first = first[: first.rfind(". ", 0, LONGEST) + 1]
    return first if len(first) >= 10 else ""


def how(name: str, node: Member, module: str) -> tuple[str, str] | None:
    """Asked of functions, methods, and classes that define `__init__`."""
    call = _call(name, node)
    return (f"How is `{name}` called?", f"`{call}`") if call and len(call) <= LONGEST_CALL else None


def _call(name: str, node: Member) -> str | None:
    if isinstance(node, ast.ClassDef):
        made = next((n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)
        return None if made is None else f"{name}({_arguments(made.args)})"
    assert isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    return f"{name}({_arguments(node.args)})"


def _arguments(args: ast.arguments) -> str:
    """The arguments as a caller sees them, without `self`, `cls` and annotations."""
    return re.sub(r"^(self|cls)(, /)?(, |$)", "", ast.unparse(_Bare().visit(args)))


class _Bare(ast.NodeTransformer):
    def visit_arg(self, node: ast.arg) -> ast.arg:
        return ast.arg(arg=node.arg)


def where(name: str, node: Member, module: str) -> tuple[str, str] | None:
    """Asked of what stands at the top of a module."""
    top = name.rpartition(".")[0] == module
    return (f"Where is `{name}` defined?", f"In the module `{module}`.") if top else None
