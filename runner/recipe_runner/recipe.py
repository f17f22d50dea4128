"""From a YAML file to a validated recipe: load, extend, override, interpolate, validate, connect.

Values come from OmegaConf, positions from a second pass (`origins`), layers meet by the rules of `merging`, and
validation imports the config of the components in use and nothing else. All problems of all layers are reported at
once; a recipe that comes out of here has typed stages in an order in which they can run.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import Field, ValidationError

from recipe_runner import identity
from recipe_runner.artifacts import Artifact
from recipe_runner.components import Config, Located, Ref, Slot, Use, Validation, written
from recipe_runner.contract import ExecutionConfig, Stage, StageConfig, Tracker
from recipe_runner.errors import InvalidRecipe, Origin, PluginError, Problem, UsageError, suggest
from recipe_runner.merging import Layered, Tree
from recipe_runner.origins import COMMAND_LINE, Origins, locate, positions
from recipe_runner.plugins import Plugins

SCHEMA = 1
HEAD = ("schema", "name", "seed", "extends", "requires", "vars", "execution", "trackers", "stages")
_REFERENCE = re.compile(r"\$\{([\w.-]+)\}")
_RESOLVER = re.compile(r"\$\{\s*([\w.]+)\s*:\s*([^}]*)\}")


class RecipeConfig(Config):
    """The top level of a recipe."""

    schema_: Literal[1] = Field(alias="schema", description="the version of this format")
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    seed: int = 0
    extends: str | list[str] = []
    requires: list[str] = []
    vars: dict[str, Any] = {}
    execution: dict[str, Any] = {}
    trackers: dict[str, Annotated[Use[Tracker], Slot("tracker")]] = {}
    stages: dict[str, Annotated[Use[Stage], Slot("stage")]]


@dataclass(slots=True)
class Recipe:
    """A resolved recipe. `stages` are in an order in which they can run; `tree` is what they were validated from."""

    name: str
    seed: int
    file: Path
    stages: dict[str, Use[Stage]]
    trackers: dict[str, Use[Tracker]]
    tree: Tree
    origins: Origins
    overrides: Sequence[str]
    warnings: list[Problem] = field(default_factory=list)

    def config(self, stage: str) -> StageConfig:
        """The config of a stage."""
        config = self.stages[stage].config
        assert isinstance(config, StageConfig)
        return config

    def seed_of(self, stage: str) -> int:
        """The effective seed of a stage."""
        own = self.config(stage).seed
        return self.seed if own is None else own

    def upstream(self, stage: str) -> list[str]:
        """The stages that a stage takes its inputs from, each once."""
        refs = identity.inputs(self.config(stage)).values()
        return list(dict.fromkeys(ref.text for ref in refs if ref.where == "stage"))

    def resolved(self) -> dict[str, Any]:
        """The recipe with every default written out, as plain data: it loads to the same keys."""
        head = {"schema": SCHEMA, "name": self.name, "seed": self.seed, "requires": self.tree.get("requires") or []}
        uses = {"trackers": self.trackers, "stages": self.stages}
        parts = {part: {name: written(use) for name, use in entries.items()} for part, entries in uses.items()}  # type: ignore[attr-defined]
        plain: dict[str, Any] = json.loads(json.dumps({**head, **parts}))
        return plain

    def problem(self, path: str, what: str, next: str = "") -> Problem:
        """A problem located at a dotted path of this recipe; for `check_recipe` hooks."""
        return Problem(what, path, locate(self.origins, path.split(".")), next)


def load(path: str, overrides: Sequence[str] = (), *, plugins: Plugins | None = None) -> Recipe:
    """Load and validate a recipe; raises `InvalidRecipe` with every problem found."""
    from recipe_runner.plugins import installed

    file = find(path)
    merged = Layered()
    for layer in layers(file):
        merged.add(*layer)
    for override in overrides:
        merged.add(*parse_override(override))
    tree = interpolate(merged)
    _raise(_head_problems(tree, merged.origins))
    return _validate(tree, merged, file, overrides, plugins or installed())


def _raise(problems: Sequence[Problem]) -> None:
    if problems:
        raise InvalidRecipe(problems)


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
    for candidate in (given, shipped() / name):
        if candidate.is_file():
            return candidate.resolve()
    names = sorted(entry.name for entry in shipped().glob("*.yaml"))
    raise UsageError(f"no recipe {path!r}", next=suggest(name, names, noun="shipped recipes"))


def layers(file: Path, above: tuple[Path, ...] = ()) -> Iterator[tuple[Tree, Origins]]:
    """The trees of a recipe and of all it extends, parents first."""
    tree, origins = read(file)
    where = locate(origins, ("extends",))
    parents = tree.get("extends") or []
    for parent in [parents] if isinstance(parents, str) else parents:
        try:
            found = find(str(parent), beside=file.parent)
        except UsageError as error:
            raise InvalidRecipe([Problem(error.what, "extends", where, error.next)]) from None
        if found in (file, *above):
            chain = " -> ".join(entry.name for entry in (*above, file, found))
            raise InvalidRecipe([Problem(f"recipes extend each other: {chain}", "extends", where)])
        yield from layers(found, (*above, file))
    yield {k: v for k, v in tree.items() if k != "extends"}, origins


def read(file: Path) -> tuple[Tree, Origins]:
    """The tree of one file, interpolations unresolved, with the position of each key."""
    shown = os.path.relpath(file) if file.is_relative_to(Path.cwd()) else str(file)
    try:
        text = file.read_text(encoding="utf-8")
        origins = positions(text, shown)
        tree = OmegaConf.to_container(OmegaConf.create(text), resolve=False) if text.strip() else {}
    except UnicodeDecodeError as error:
        raise InvalidRecipe([Problem(f"not UTF-8: {error}", origin=Origin(shown))]) from None
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise InvalidRecipe([_syntax(error, shown)]) from None
    if not isinstance(tree, dict):
        raise InvalidRecipe([Problem("a recipe is a mapping", origin=Origin(shown, 1, 1))])
    return {str(k): v for k, v in tree.items()}, origins


def _syntax(error: Exception, file: str) -> Problem:
    mark = getattr(error, "problem_mark", None)
    what = getattr(error, "problem", None) or str(error)
    origin = Origin(file, mark.line + 1, mark.column + 1) if mark else Origin(file)
    if "could not determine a constructor" in what:
        return Problem(f"YAML tags are not allowed: {what}", origin=origin, next="a recipe is data; write plain YAML")
    return Problem(f"not valid YAML: {what}", origin=origin)


def parse_override(text: str) -> tuple[Tree, Origins]:
    """`a.b.c=value` as a layer; the value is YAML."""
    key, equals, value = text.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise UsageError(
            f"{text!r} is not an override", next="write key.path=value, as in stages.base.optimizer.lr=1e-3"
        )
    try:
        parsed = OmegaConf.to_container(OmegaConf.create(f"value: {value}"), resolve=False)
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise UsageError(f"the value of {text!r} is not valid YAML: {getattr(error, 'problem', error)}") from None
    assert isinstance(parsed, dict)
    tree: Any = parsed["value"]
    for part in reversed(parts):
        tree = {part: tree}
    origin = Origin(COMMAND_LINE, 0, 0, "")
    return tree, {tuple(parts[: n + 1]): origin for n in range(len(parts))}


# ── interpolation ────────────────────────────────────────────────────────────────────────────────────────────────


def interpolate(merged: Layered) -> Tree:
    """The tree with `${a.b}` resolved, and `${env:X}` in execution fields; strings know the folder they came from."""
    raw = _environment(merged.tree, merged, ())
    config = OmegaConf.create(raw)
    return {str(key): _resolved(config, key, (str(key),), merged) for key in config}


def _environment(value: Any, merged: Layered, path: tuple[str, ...]) -> Any:
    if isinstance(value, Mapping):
        return {key: _environment(entry, merged, (*path, str(key))) for key, entry in value.items()}
    if isinstance(value, list):
        return [_environment(entry, merged, (*path, str(n))) for n, entry in enumerate(value)]
    if not isinstance(value, str):
        return value
    return _RESOLVER.sub(lambda match: _variable(match, merged, path), value)


def _variable(match: re.Match[str], merged: Layered, path: tuple[str, ...]) -> str:
    origin, dotted = locate(merged.origins, path), ".".join(path)
    resolver, name = match[1], match[2].strip()
    if resolver != "env":
        merged.problems.append(
            Problem(
                f"there is no resolver {resolver!r}",
                dotted,
                origin,
                "use ${key.path}, or ${env:NAME} in execution fields",
            )
        )
    elif "execution" not in path:
        what = "the environment may be read in execution fields only"
        merged.problems.append(Problem(what, dotted, origin, "use `vars:` and override it: vars.name=value"))
    elif name not in os.environ:
        merged.problems.append(Problem(f"environment variable {name} is not set", dotted, origin, f"export {name}=…"))
    return os.environ.get(name, "") if resolver == "env" and "execution" in path else ""


def _resolved(node: Any, key: Any, path: tuple[str, ...], merged: Layered) -> Any:
    try:
        value = node[key]
    except OmegaConfBaseException as error:
        merged.problems.append(_unresolved(error, path, merged))
        return None
    if isinstance(value, DictConfig):
        return {str(k): _resolved(value, k, (*path, str(k)), merged) for k in value}
    if isinstance(value, ListConfig):
        return [_resolved(value, n, (*path, str(n)), merged) for n in range(len(value))]
    return Located(value, _folder(path, merged)) if isinstance(value, str) else value


def _unresolved(error: Exception, path: tuple[str, ...], merged: Layered) -> Problem:
    text = _at(merged.tree, path)
    names = _REFERENCE.findall(text) if isinstance(text, str) else []
    missing = next((name for name in names if _at(merged.tree, tuple(name.split("."))) is None), None)
    known = [f"vars.{name}" for name in merged.tree.get("vars") or {}]
    what = f"${{{missing}}} names nothing in this recipe" if missing else str(error).splitlines()[0]
    return Problem(what, ".".join(path), locate(merged.origins, path), suggest(missing or "", known) if missing else "")


_ABSENT = object()


def _at(tree: Any, path: Iterable[str], default: Any = None) -> Any:
    for part in path:
        if isinstance(tree, list) and part.isdigit() and int(part) < len(tree):
            tree = tree[int(part)]
        elif isinstance(tree, Mapping) and part in tree:
            tree = tree[part]
        else:
            return default
    return tree


def _folder(path: tuple[str, ...], merged: Layered) -> str:
    """The folder of the file that wrote a value; `${vars.data}` counts as written where `vars.data` is."""
    for _ in range(16):
        match = _REFERENCE.match(str(_at(merged.tree, path)))
        if not match:
            break
        path = tuple(match[1].split("."))
    file = locate(merged.origins, path).file
    return os.getcwd() if file in ("", COMMAND_LINE) else str(Path(file).resolve().parent)


# ── validation ───────────────────────────────────────────────────────────────────────────────────────────────────


def _head_problems(tree: Tree, origins: Origins) -> list[Problem]:
    """What is checked before any plugin is loaded: the format's version, and the distributions it asks for."""
    problems: list[Problem] = []
    if tree.get("schema") != SCHEMA:
        what = (
            f"schema: {tree['schema']} is not read by this version, which reads {SCHEMA}"
            if "schema" in tree
            else "'schema' is required"
        )
        next_ = "upgrade recipe-runner" if "schema" in tree else f"write schema: {SCHEMA}"
        problems.append(Problem(what, "schema", locate(origins, ("schema",)), next_))
    for number, requirement in enumerate(tree.get("requires") or ()):
        problem = _unmet(str(requirement))
        if problem:
            origin = locate(origins, ("requires", str(number)))
            problems.append(Problem(problem, "requires", origin, f'pip install "{requirement}"'))
    return problems


def _unmet(requirement: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    from packaging.requirements import InvalidRequirement, Requirement

    try:
        wanted = Requirement(requirement)
        found = version(wanted.name)
    except InvalidRequirement as error:
        return f"{requirement!r} is not a requirement: {error}"
    except PackageNotFoundError:
        return f"{requirement} is not installed"
    return (
        "" if wanted.specifier.contains(found, prereleases=True) else f"{requirement} is required, {found} is installed"
    )


def _validate(tree: Tree, merged: Layered, file: Path, overrides: Sequence[str], plugins: Plugins) -> Recipe:
    context = Validation(plugins.registry)
    problems, origins = merged.problems, merged.origins
    known = {problem.path for problem in problems}  # what could not be interpolated is not reported twice
    _spread_execution(tree, merged, context)
    top: RecipeConfig | None = None
    try:
        top = RecipeConfig.model_validate(tree, context=context)
    except ValidationError as error:
        found = [_problem(entry, tree, origins, context) for entry in error.errors(include_url=False)]
        problems += [problem for problem in found if problem.path not in known]
    stages = top.stages if top else _valid_stages(tree, context)
    problems += [
        *_wrong_inputs(stages, tree.get("stages") or {}, origins),
        *(_not_inherited(top, merged) if top else ()),
    ]
    if not top or problems:
        raise InvalidRecipe(problems)
    stages = {name: top.stages[name] for name in _order(top.stages, origins)}
    recipe = Recipe(top.name, top.seed, file, stages, top.trackers, tree, origins, tuple(overrides))
    _raise([problem for answer in plugins.hook.check_recipe(recipe=recipe) for problem in answer or ()])
    return recipe


def _valid_stages(tree: Tree, context: Validation) -> dict[str, Use[Stage]]:
    """The stages that are valid by themselves, so that their inputs can be checked too."""
    found: dict[str, Use[Stage]] = {}
    stages = tree.get("stages")
    for name, value in stages.items() if isinstance(stages, Mapping) else ():
        with contextlib.suppress(ValueError):
            found[name] = Slot("stage").resolve(value, context)
    return found


def _spread_execution(tree: Tree, merged: Layered, context: Validation) -> None:
    """The recipe's `execution` becomes the default of every stage's."""
    shared = tree.get("execution") or {}
    try:
        ExecutionConfig.model_validate(shared, context=context)
    except ValidationError as error:
        for entry in error.errors(include_url=False):
            merged.problems.append(
                _problem({**entry, "loc": ("execution", *entry["loc"])}, tree, merged.origins, context)
            )
        return
    stages = tree.get("stages")
    for stage in stages.values() if isinstance(stages, Mapping) else ():
        if isinstance(stage, dict) and isinstance(stage.get("execution", {}), Mapping) and shared:
            stage["execution"] = {**shared, **stage.get("execution", {})}


def _problem(entry: Mapping[str, Any], tree: Tree, origins: Origins, context: Validation) -> Problem:
    """A pydantic error as people read it; parts of `loc` that are not keys (tags of unions) are skipped."""
    loc = _real(entry["loc"], tree, missing=entry["type"] in ("missing", "extra_forbidden"))
    what, next_ = _worded(entry, loc, tree, context)
    if entry["type"] == "component" and (*loc, "use") in origins:
        loc = (*loc, "use")
    return Problem(what, ".".join(loc), locate(origins, loc), next_)


def _real(loc: Sequence[Any], tree: Any, missing: bool) -> tuple[str, ...]:
    found: list[str] = []
    for number, part in enumerate(loc):
        if _at(tree, (*found, str(part)), _ABSENT) is not _ABSENT or (missing and number == len(loc) - 1):
            found.append(str(part))
    return tuple(found)


def _worded(entry: Mapping[str, Any], loc: tuple[str, ...], tree: Tree, context: Validation) -> tuple[str, str]:
    kind, message = entry["type"], str(entry["msg"])
    if kind == "extra_forbidden":
        allowed = context.allowed.get(id(_at(tree, loc[:-1])), list(HEAD) if len(loc) == 1 else [])
        return f"unknown key {loc[-1]!r}", suggest(loc[-1], allowed, noun="keys")
    if kind == "missing":
        return f"{loc[-1]!r} is required", ""
    if kind == "component":
        first, _, rest = message.partition("\n")
        return first, rest
    if kind in ("slot", "ref", "file_missing", "value_error", "size"):
        return message.removeprefix("Value error, "), ""
    return f"{message[:1].lower()}{message[1:]}; got {entry['input']!r}", ""


def _not_inherited(top: RecipeConfig, merged: Layered) -> list[Problem]:
    """`null` for an entry that no layer below has takes nothing out."""
    mappings = {path for path, value, _ in identity.walk(top) if isinstance(value, Mapping)}
    return [
        Problem(f"there is no inherited {path[-1]!r} to remove", ".".join(path), locate(merged.origins, path))
        for path in merged.removed_nothing
        if path[:-1] in mappings
    ]


# ── the graph ────────────────────────────────────────────────────────────────────────────────────────────────────


def _wrong_inputs(stages: Mapping[str, Use[Stage]], named: Iterable[str], origins: Origins) -> list[Problem]:
    """Inputs that name no stage, or a stage that makes something else."""
    problems: list[Problem] = []
    for name, stage in stages.items():
        for path, ref in identity.inputs(stage.config).items():
            where = ("stages", name, *path.split("."))
            found = _wrong_input(ref, stages, set(named))
            if found:
                problems.append(Problem(found[0], ".".join(where), locate(origins, where), found[1]))
    return problems


def _wrong_input(ref: Ref, stages: Mapping[str, Use[Stage]], named: set[str]) -> tuple[str, str] | None:
    if ref.where != "stage":
        return None
    if ref.text not in named:
        return f"there is no stage {ref.text!r}", suggest(ref.text, named, noun="stages")
    if ref.text not in stages or not ref.types or issubclass(_made(stages[ref.text]), ref.types):
        return None
    wanted = " or ".join(cls.type for cls in ref.types)
    fitting = ", ".join(name for name, stage in stages.items() if issubclass(_made(stage), ref.types))
    what = f"stage {ref.text!r} makes a {_made(stages[ref.text]).type}, but a {wanted} goes here"
    return what, f"stages that make one: {fitting}" if fitting else ""


def _made(stage: Use[Stage]) -> type[Artifact]:
    """What a stage makes; raises `PluginError` if its config is none of a stage."""
    if not isinstance(stage.config, StageConfig):
        raise PluginError(f"{stage.component.identity} is registered as a stage, but its config is no StageConfig")
    return stage.config.produces()


def _order(stages: Mapping[str, Use[Stage]], origins: Origins) -> list[str]:
    """The stages in the recipe's order, each after its inputs; raises on a cycle."""
    done: list[str] = []
    open_: list[str] = []

    def visit(name: str) -> None:
        if name in done:
            return
        if name in open_:
            cycle = " -> ".join([*open_[open_.index(name) :], name])
            raise InvalidRecipe(
                [Problem(f"stages wait for each other: {cycle}", f"stages.{name}", locate(origins, ("stages", name)))]
            )
        open_.append(name)
        for ref in identity.inputs(stages[name].config).values():
            if ref.where == "stage":
                visit(ref.text)
        open_.pop()
        done.append(name)

    for name in stages:
        visit(name)
    return done
