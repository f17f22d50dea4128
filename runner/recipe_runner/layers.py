"""From files and overrides to one tree of plain values: load, extend, override, interpolate.

Values come from OmegaConf, positions from a second pass (`origins`), layers meet by the rules of `merging`.
`${key.path}` stands for another value, and `${env:NAME}`, in execution fields alone, for the environment: there is no
other expression, so a recipe stays data. Guarantee: a string knows the folder of the file that wrote it, also through
`${…}`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from recipe_runner.components import Located
from recipe_runner.errors import InvalidRecipe, Origin, Problem, UsageError, suggest
from recipe_runner.merging import Layered, Tree
from recipe_runner.origins import COMMAND_LINE, Origins, locate, origin_of, positions, problem_at

SCHEMA = 1
ABSENT = object()
_REFERENCE = re.compile(r"\$\{\s*(?:(env)\s*:\s*)?([\w.-]+)\s*\}")
_ALLOWED = "a reference is ${key.path}, or ${env:NAME} in execution fields"


def load_tree(file: Path, overrides: Sequence[str]) -> tuple[Tree, Layered]:
    """The resolved tree of a recipe, and the layers it was merged from with what is wrong with them.

    Raises `InvalidRecipe` for what cannot be read on from: bad YAML, another format, a distribution that is missing.
    """
    found = list(layers(file))
    problems = [problem for layer in found for problem in _head_problems(*layer)]
    if not any("schema" in tree for tree, _ in found):
        problems.append(Problem("'schema' is required", "schema", Origin(_shown(file)), f"write schema: {SCHEMA}"))
    if problems:
        raise InvalidRecipe(problems)
    merged = Layered()
    for layer in found:
        merged.add(*layer)
    files = dict(merged.tree.get("vars") or {})
    given = list(map(parse_override, overrides))
    for layer in given:
        merged.add(*layer)
    merged.problems += _unread(files, merged, {name for tree, _ in found + given for name in _variables(tree)})
    return {key: _resolved(value, (key,), merged, ()) for key, value in merged.tree.items()}, merged


def _variables(value: Any) -> Iterator[str]:
    """The variables that references in a tree read."""
    for match in _REFERENCE.finditer(str(value)):
        if match[2].startswith("vars."):
            yield match[2].split(".")[1]


def _unread(files: Mapping[str, Any], merged: Layered, read: Set[str]) -> Iterator[Problem]:
    """Variables that no layer reads: misspelt, they would change nothing. Wrong if only the command line has them."""
    own: Any = merged.tree.get("vars")
    for name in own if isinstance(own, Mapping) else ():
        if own[name] is not None and name in files and name not in read:
            near = suggest(name, read, noun="variables that are read")
            yield replace(problem_at(merged.origins, ("vars", name), "nothing reads this variable", near), hint=True)
        elif name not in files and name not in set(_variables(merged.tree)):
            what = f"no file of this recipe has the variable {name!r}, and nothing reads it"
            yield problem_at(merged.origins, ("vars", name), what, suggest(name, files, noun="variables"))


def _head_problems(tree: Tree, origins: Origins) -> Iterator[Problem]:
    """What is checked in every layer before anything else: the format's version, and the distributions it asks for."""
    if tree.get("schema", SCHEMA) != SCHEMA:
        what = f"format {tree['schema']!r} is not read by this version of recipe-runner, which reads {SCHEMA}"
        yield problem_at(origins, ["schema"], what, "upgrade recipe-runner")
        return
    requires = tree.get("requires")
    for number, requirement in enumerate(requires if isinstance(requires, list) else ()):
        if unmet := _unmet(str(requirement)):
            yield Problem(unmet[0], "requires", locate(origins, ("requires", str(number))), unmet[1], bool(unmet[1]))


def _unmet(requirement: str) -> tuple[str, str] | None:
    """What is wrong with a requirement, and the command that helps."""
    from importlib.metadata import PackageNotFoundError, version

    from packaging.requirements import InvalidRequirement, Requirement

    try:
        wanted = Requirement(requirement)
        found = version(wanted.name)
    except InvalidRequirement as error:
        return f"{requirement!r} is not a requirement: {str(error).splitlines()[0]}", ""
    except PackageNotFoundError:
        found = ""
    if found and wanted.specifier.contains(found, prereleases=True):
        return None
    return f"{requirement} is required, {found or 'no version'} is installed", f'pip install "{requirement}"'


# ── files and layers ─────────────────────────────────────────────────────────────────────────────────────────────


def shipped() -> Path:
    """The folder of shipped recipes: inside the wheel, or `recipes/` beside the source."""
    here = Path(__file__).resolve()
    inside = here.parent / "_recipes"
    return inside if inside.is_dir() else here.parents[2] / "recipes"


def find(path: str, beside: Path | None = None) -> Path:
    """The file of a recipe: the given path, else a shipped one of that name."""
    given = Path(os.path.expanduser(path))
    given = given if beside is None or given.is_absolute() else beside / given
    name = Path(path).name.removesuffix(".yaml") + ".yaml"
    named = Path(path).parent in (Path(), Path("recipes"))  # any other folder is meant as written
    for candidate in (given, *([shipped() / name] if named else ())):
        if candidate.is_file():
            return candidate.resolve()
    raise UsageError(f"no recipe {path!r}", next=_meant(given))


def _meant(given: Path) -> str:
    """A recipe of nearly that name, shipped or in its folder; else those there are."""
    here = {entry.stem: str(entry) for entry in sorted(given.parent.glob("*.yaml"))}
    names = {**{entry.stem: entry.stem for entry in sorted(shipped().glob("*.yaml"))}, **here}
    if close := get_close_matches(given.stem, names, n=1, cutoff=0.6):
        return f"did you mean {names[close[0]]!r}?"
    lists = {
        f"recipes in {given.parent}": here.values(),
        "shipped recipes": [name for name in names if name not in here],
    }
    return "\n".join(f"{where}: {', '.join(found)}" for where, found in lists.items() if found)


def layers(file: Path, above: tuple[Path, ...] = (), seen: set[Path] | None = None) -> Iterator[tuple[Tree, Origins]]:
    """The trees of a recipe and of all it extends, parents first, each once."""
    seen = set() if seen is None else seen
    tree, origins = read(file)
    parents = tree.get("extends") or []
    for parent in parents if isinstance(parents, list) else [parents]:
        try:
            found = find(str(parent), beside=file.parent)
        except UsageError as error:
            raise InvalidRecipe([problem_at(origins, ["extends"], error.what, error.next)]) from None
        if found in (file, *above):
            chain = " -> ".join(entry.name for entry in (*above, file, found))
            raise InvalidRecipe([problem_at(origins, ["extends"], f"recipes extend each other: {chain}")])
        if found not in seen:
            yield from layers(found, (*above, file), seen)
    seen.add(file)
    yield {k: v for k, v in tree.items() if k != "extends"}, origins


def read(file: Path) -> tuple[Tree, Origins]:
    """The tree of one file, interpolations unresolved, with the position of each key."""
    try:
        return _parsed(file.read_text(encoding="utf-8"), _shown(file))
    except UnicodeDecodeError as error:
        raise InvalidRecipe([Problem(f"not UTF-8: {error}", origin=Origin(_shown(file)))]) from None


def _shown(file: Path) -> str:
    return os.path.relpath(file) if file.is_relative_to(Path.cwd()) else str(file)


def _parsed(text: str, shown: str) -> tuple[Tree, Origins]:
    origins: Origins = {}
    try:
        origins = positions(text, shown)
        tree = OmegaConf.to_container(OmegaConf.create(text), resolve=False) if text.strip() else {}
    except (yaml.YAMLError, OmegaConfBaseException, RecursionError) as error:
        raise InvalidRecipe([_syntax(error, shown, text, origins)]) from None
    if not isinstance(tree, dict):
        raise InvalidRecipe([Problem("a recipe is a mapping", origin=Origin(shown, 1, 1))])
    return {str(k): v for k, v in tree.items()}, origins


def _syntax(error: Exception, file: str, text: str, origins: Origins) -> Problem:
    what = str(getattr(error, "problem", None) or error).split("\n")[0]
    what = "an alias contains itself" if isinstance(error, RecursionError) else what
    if key := getattr(error, "full_key", None):  # OmegaConf could not read `${…}` there
        return problem_at(origins, re.findall(r"[^.\[\]]+", str(key)), f"not a reference: {what}", _ALLOWED)
    mark = getattr(error, "problem_mark", None)
    origin = origin_of(mark, file, text.splitlines()) if mark else Origin(file)
    return Problem(
        f"not valid YAML: {what}", origin=origin, next="indent with spaces, not tabs" if "'\\t'" in what else ""
    )


def parse_override(text: str) -> tuple[Tree, Origins]:
    """`a.b.c=value` as a layer; the value is YAML."""
    key, equals, value = text.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts) or parts[0] == "extends":
        raise UsageError(
            f"{text!r} is not an override", next="write key.path=value, as in stages.base.optimizer.lr=1e-3"
        )
    try:
        (tree,) = _parsed(f"value: {value}", COMMAND_LINE)[0].values()
    except ValueError as error:
        what = error.problems[0].what if isinstance(error, InvalidRecipe) else "more than a value"
        raise UsageError(f"the value of {text!r} cannot be read: {what}") from None
    for part in reversed(parts):
        tree = {part: tree}
    origin = Origin(COMMAND_LINE)
    return tree, {tuple(parts[: n + 1]): origin for n in range(len(parts))}


# ── interpolation ────────────────────────────────────────────────────────────────────────────────────────────────


def _resolved(value: Any, path: tuple[str, ...], merged: Layered, above: tuple[tuple[str, ...], ...]) -> Any:
    """A value without `${…}`; `above` are the references that led here."""
    if isinstance(value, Mapping):
        return {key: _resolved(entry, (*path, str(key)), merged, above) for key, entry in value.items()}
    if isinstance(value, list):
        return [_resolved(entry, (*path, str(number)), merged, above) for number, entry in enumerate(value)]
    if not isinstance(value, str):
        return value
    try:
        return _text(value, path, merged, above)
    except UsageError as wrong:
        if above:
            raise
        merged.problems.append(problem_at(merged.origins, path, wrong.what, wrong.next))
        return None


def _text(text: str, path: tuple[str, ...], merged: Layered, above: tuple[tuple[str, ...], ...]) -> Any:
    if "${" in _REFERENCE.sub(" ", text):
        raise UsageError(f"not a reference: {text!r}", next=_ALLOWED)
    found = [(match, _referred(match, path, merged, above)) for match in _REFERENCE.finditer(text)]
    if found and found[0][0][0] == text:
        return found[0][1]
    file = locate(merged.origins, path).file
    folder = os.getcwd() if file in ("", COMMAND_LINE) else str(Path(file).resolve().parent)
    if found and found[0][0].start() == 0:  # the start of a path says what it is relative to
        folder = getattr(found[0][1], "folder", folder)
    values = iter(found)
    return Located(_REFERENCE.sub(lambda _: str(next(values)[1]), text), folder)


def _referred(match: re.Match[str], path: tuple[str, ...], merged: Layered, above: tuple[tuple[str, ...], ...]) -> Any:
    """What one `${…}` stands for, with its own resolved where they were written."""
    env, name = match.groups()
    target = tuple(name.split("."))
    if env and not _is_execution(path):
        what = "the environment may be read in execution fields only"
        raise UsageError(what, next="use `vars:` and override it: vars.name=value")
    if env and name not in os.environ:
        raise UsageError(f"environment variable {name} is not set", next=f"export {name}=…")
    if env:
        return os.environ[name]
    if _is_execution(target) and not _is_execution(path):
        raise UsageError(f"${{{name}}} is an execution field, which a key must not depend on")
    value = at(merged.tree, target, ABSENT)
    if value is ABSENT:
        known = [f"vars.{known}" for known in merged.tree.get("vars") or ()]
        raise UsageError(f"${{{name}}} names nothing in this recipe", next=suggest(name, known))
    if any(target == other[: len(target)] for other in (*above, path)):
        raise UsageError(f"${{{name}}} leads back to itself")
    return _resolved(value, target, merged, (*above, target))


def _is_execution(path: tuple[str, ...]) -> bool:
    return path[0] == "execution" or (path[0] == "stages" and path[2:3] == ("execution",))


def at(tree: Any, path: Iterable[str], default: Any = None) -> Any:
    """What a tree holds at a path."""
    for part in path:
        if isinstance(tree, list) and part.isdigit() and int(part) < len(tree):
            tree = tree[int(part)]
        elif isinstance(tree, Mapping) and part in tree:
            tree = tree[part]
        else:
            return default
    return tree
