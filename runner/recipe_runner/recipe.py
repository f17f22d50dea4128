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
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import Field, ValidationError

from recipe_runner import identity
from recipe_runner.artifacts import Adapter, Artifact, Model, Tokeniser
from recipe_runner.components import Config, Located, Ref, Slot, Use, Validation, written
from recipe_runner.contract import ExecutionConfig, Stage, StageConfig, Tracker
from recipe_runner.errors import InvalidRecipe, Origin, PluginError, Problem, RecipeError, UsageError, suggest
from recipe_runner.merging import Layered, Tree
from recipe_runner.origins import COMMAND_LINE, Origins, locate, origin_of, positions
from recipe_runner.plugins import Plugins
from recipe_runner.store import artifact_type

SCHEMA = 1
HEAD = ("schema", "name", "seed", "extends", "requires", "vars", "execution", "trackers", "stages")
_REFERENCE = re.compile(r"\$\{\s*([\w.-]+)\s*\}")
_ENV = re.compile(r"\$\{\s*env\s*:\s*(\w+)\s*\}")
_ALLOWED = "a reference is ${key.path}, or ${env:NAME} in execution fields"


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
    stages: dict[Annotated[str, Field(pattern=r"^[\w-]+$")], Annotated[Use[Stage], Slot("stage")]]


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

    def require(self, names: Iterable[str]) -> None:
        """Raises `UsageError` for a name that is no stage of this recipe."""
        for name in names:
            if name not in self.stages:
                raise UsageError(f"there is no stage {name!r}", next=suggest(name, self.stages, noun="stages"))

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
    found = list(layers(file))
    _raise([problem for layer in found for problem in _other_schema(*layer)])
    merged = Layered()
    for layer in found:
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
    named = Path(path).parent in (Path(), Path("recipes"))  # any other folder is meant as written
    for candidate in (given, *([shipped() / name] if named else ())):
        if candidate.is_file():
            return candidate.resolve()
    names = sorted(entry.name for entry in shipped().glob("*.yaml"))
    raise UsageError(f"no recipe {path!r}", next=suggest(name, names, noun="shipped recipes"))


def layers(file: Path, above: tuple[Path, ...] = (), seen: set[Path] | None = None) -> Iterator[tuple[Tree, Origins]]:
    """The trees of a recipe and of all it extends, parents first, each once."""
    seen = set() if seen is None else seen
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
        if found not in seen:
            yield from layers(found, (*above, file), seen)
    seen.add(file)
    yield {k: v for k, v in tree.items() if k != "extends"}, origins


def read(file: Path) -> tuple[Tree, Origins]:
    """The tree of one file, interpolations unresolved, with the position of each key."""
    shown = os.path.relpath(file) if file.is_relative_to(Path.cwd()) else str(file)
    try:
        return _parsed(file.read_text(encoding="utf-8"), shown)
    except UnicodeDecodeError as error:
        raise InvalidRecipe([Problem(f"not UTF-8: {error}", origin=Origin(shown))]) from None


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
        return Problem(f"not a reference: {what}", str(key), locate(origins, re.split(r"[.\[\]]+", str(key))), _ALLOWED)
    mark = getattr(error, "problem_mark", None)
    return Problem(f"not valid YAML: {what}", origin=origin_of(mark, file, text.splitlines()) if mark else Origin(file))


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
    if not isinstance(value, str) or "${" not in value:
        return value
    wrong = _wrong_reference(value, path)
    if wrong:
        merged.problems.append(Problem(wrong[0], ".".join(path), locate(merged.origins, path), wrong[1]))
        return ""
    return _ENV.sub(lambda match: os.environ[match[1]], value)


def _wrong_reference(text: str, path: tuple[str, ...]) -> tuple[str, str] | None:
    """What is wrong with the `${…}` of a text, which may read the environment for execution fields only."""
    if "${" in _REFERENCE.sub(" ", _ENV.sub(" ", text)):
        return f"not a reference: {text!r}", _ALLOWED
    if not _is_execution(path):
        if _ENV.search(text):
            what = "the environment may be read in execution fields only"
            return what, "use `vars:` and override it: vars.name=value"
        taken = [name for name in _REFERENCE.findall(text) if _is_execution(tuple(name.split(".")))]
        return (f"${{{taken[0]}}} is an execution field, which a key must not depend on", "") if taken else None
    unset = [name for name in _ENV.findall(text) if name not in os.environ]
    return (f"environment variable {unset[0]} is not set", f"export {unset[0]}=…") if unset else None


def _is_execution(path: tuple[str, ...]) -> bool:
    return path[0] == "execution" or (path[0] == "stages" and path[2:3] == ("execution",))


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
    """The folder of the file that wrote a value; what `${vars.data}` stands for was written where `vars.data` is."""
    for _ in range(16):
        target = next(filter(None, (_target(merged.tree, path, length) for length in range(1, len(path) + 1))), None)
        if target is None:
            break
        path = target
    file = locate(merged.origins, path).file
    return os.getcwd() if file in ("", COMMAND_LINE) else str(Path(file).resolve().parent)


def _target(tree: Tree, path: tuple[str, ...], length: int) -> tuple[str, ...] | None:
    """Where a path leads if its first `length` parts hold `${…}`."""
    value = _at(tree, path[:length])
    match = _REFERENCE.match(value) if isinstance(value, str) else None
    target = tuple(match[1].split(".")) if match else ()
    return (*target, *path[length:]) if target and _at(tree, target, _ABSENT) is not _ABSENT else None


# ── validation ───────────────────────────────────────────────────────────────────────────────────────────────────


def _other_schema(tree: Tree, origins: Origins) -> list[Problem]:
    """Checked in every layer, since nothing in a layer of another version may be taken as read."""
    if tree.get("schema", SCHEMA) == SCHEMA:
        return []
    what = f"format {tree['schema']!r} is not read by this version of recipe-runner, which reads {SCHEMA}"
    return [Problem(what, "schema", locate(origins, ("schema",)), "upgrade recipe-runner")]


def _head_problems(tree: Tree, origins: Origins) -> list[Problem]:
    """What is checked before any plugin is loaded: the format's version, and the distributions it asks for."""
    problems = _other_schema(tree, origins)
    if "schema" not in tree:
        problems.append(Problem("'schema' is required", "schema", next=f"write schema: {SCHEMA}"))
    requires = tree.get("requires")
    for number, requirement in enumerate(requires if isinstance(requires, list) else ()):
        problem = _unmet(str(requirement))
        if problem:
            origin = locate(origins, ("requires", str(number)))
            problems.append(Problem(problem, "requires", origin, f'pip install "{requirement}"', plugin=True))
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
    _spread_execution(tree, merged, context)
    known = tuple(problem.path + "." for problem in problems)  # what is wrong already is not reported twice
    cause: Exception | None = None
    top: RecipeConfig | None = None
    try:
        top = RecipeConfig.model_validate(tree, context=context)
    except ValidationError as error:
        found = _problems(error, tree, origins, context)
        problems += [problem for problem in found if not any(path.startswith(problem.path + ".") for path in known)]
        cause = next(_plugin_errors(error, plugins), None)
    stages = top.stages if top else _valid_stages(tree, context)
    order, cycles = _order(stages, origins)
    problems += [
        *_wrong_inputs(stages, tree.get("stages") or {}, origins),
        *cycles,
        *(_not_inherited(top, merged) if top else ()),
    ]
    if not top or problems:
        raise InvalidRecipe(problems) from cause
    ordered = {name: top.stages[name] for name in order}
    recipe = Recipe(top.name, top.seed, file, ordered, top.trackers, tree, origins, tuple(overrides))
    _raise([problem for answer in plugins.hook.check_recipe(recipe=recipe) for problem in answer or ()])
    return recipe


def _plugin_errors(error: ValidationError, plugins: Plugins) -> Iterator[Exception]:
    """What a plugin did wrong, as the cause that `--debug` shows."""
    for entry in error.errors(include_url=False):
        found = entry.get("ctx", {}).get("error")
        if isinstance(found, PluginError):
            yield found
        elif entry["type"] == "component":
            yield from plugins.registry.failures.values()


def _valid_stages(tree: Tree, context: Validation) -> dict[str, Use[Stage]]:
    """The stages that are valid by themselves, so that their inputs can be checked too."""
    found: dict[str, Use[Stage]] = {}
    stages = tree.get("stages")
    for name, value in stages.items() if isinstance(stages, Mapping) else ():
        with contextlib.suppress(ValueError):
            found[name] = Slot("stage").resolve(value, context)
    return found


def _spread_execution(tree: Tree, merged: Layered, context: Validation) -> None:
    """The recipe's `execution` becomes the layer below every stage's."""
    shared = tree.get("execution") or {}
    try:
        ExecutionConfig.model_validate(shared, context=context)
    except ValidationError as error:
        merged.problems += _problems(error, tree, merged.origins, context, ("execution",))
        return
    stages: Any = tree.get("stages")
    for name, stage in stages.items() if isinstance(stages, dict) else ():
        own = stage.get("execution", {}) if isinstance(stage, Mapping) else {}
        if isinstance(stage, (str, dict)) and isinstance(own, Mapping) and shared:
            block = Layered()
            block.add({"execution": shared}, {})
            block.add({"execution": own}, {})
            merged.problems += [replace(p, path=f"stages.{name}.{p.path}") for p in block.problems]
            stages[name] = {**({"use": stage} if isinstance(stage, str) else stage), **block.tree}


def _problems(
    error: ValidationError, tree: Tree, origins: Origins, context: Validation, above: tuple[str, ...] = ()
) -> list[Problem]:
    """Pydantic's errors as people read them: one for each place, whichever members of a union it tried."""
    places: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for entry in error.errors(include_url=False):
        loc = _real((*above, *entry["loc"]), tree, missing=entry["type"] in ("missing", "extra_forbidden"))
        places.setdefault(loc, []).append(entry)
    return [_problem(entries, loc, tree, origins, context) for loc, entries in places.items()]


def _problem(
    entries: Sequence[Mapping[str, Any]], loc: tuple[str, ...], tree: Tree, origins: Origins, context: Validation
) -> Problem:
    worded = [_worded(entry, loc, tree, context) for entry in entries]
    first = entries[0]
    broken = isinstance(first.get("ctx", {}).get("error"), PluginError)
    if first["type"] == "component":
        loc = (*loc, "use") if (*loc, "use") in origins else loc
        broken = bool(context.registry.failures)
    what, next_ = " or ".join(dict.fromkeys(what for what, _ in worded)), worded[0][1]
    return Problem(what + _got(first), ".".join(loc), locate(origins, loc), next_, plugin=broken)


def _real(loc: Sequence[Any], tree: Any, missing: bool) -> tuple[str, ...]:
    """The keys of a location; parts that are not keys (tags of unions) are skipped."""
    found: list[str] = []
    for number, part in enumerate(loc):
        if _at(tree, (*found, str(part)), _ABSENT) is not _ABSENT or (missing and number == len(loc) - 1):
            found.append(str(part))
    return tuple(found)


_OWN = ("extra_forbidden", "missing", "component", "slot", "ref", "file_missing", "value_error", "size")


def _worded(entry: Mapping[str, Any], loc: tuple[str, ...], tree: Tree, context: Validation) -> tuple[str, str]:
    """What is wrong, and what next."""
    kind, message = entry["type"], str(entry["msg"])
    if kind == "extra_forbidden":
        allowed = context.allowed.get(id(_at(tree, loc[:-1])), list(HEAD) if len(loc) == 1 else [])
        return f"unknown key {loc[-1]!r}", suggest(loc[-1], allowed, noun="keys")
    if kind == "missing":
        return f"{loc[-1]!r} is required", ""
    if kind == "component":
        first, _, rest = message.partition("\n")
        return first, rest
    error = entry.get("ctx", {}).get("error")
    if isinstance(error, RecipeError):
        return error.what, error.next
    message = message.removeprefix("Value error, ")
    return message if kind in _OWN else message[:1].lower() + message[1:], ""


def _got(entry: Mapping[str, Any]) -> str:
    if entry["type"] in _OWN:
        return ""
    shown = "null" if entry["input"] is None else repr(entry["input"])
    return f"; got {shown if len(shown) < 80 else shown[:80] + '…'}"


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
    wanted = " or ".join(cls.type for cls in ref.types)
    if ref.where != "stage":
        return _wrong_foreign(ref, wanted)
    if ref.text not in named:
        return f"there is no stage {ref.text!r}", suggest(ref.text, named, noun="stages")
    if ref.text not in stages or not ref.types or issubclass(_made(stages[ref.text]), ref.types):
        return None
    fitting = ", ".join(name for name, stage in stages.items() if issubclass(_made(stage), ref.types))
    what = f"stage {ref.text!r} makes a {_made(stages[ref.text]).type}, but a {wanted} goes here"
    return what, f"stages that make one: {fitting}" if fitting else ""


def _wrong_foreign(ref: Ref, wanted: str) -> tuple[str, str] | None:
    """Raw data has no ledger: only a model, tokeniser or adapter comes from outside, and what another recipe made."""
    if ref.where == "path" and not os.path.isdir(ref.text):
        return f"there is no folder {ref.text}", "a model, tokeniser or adapter is given as its folder"
    made = artifact_type(Path(ref.text)) if ref.where == "path" else None
    fits = [cls for cls in ref.types if (issubclass(made, cls) if made else cls in (Model, Tokeniser, Adapter))]
    if fits or not ref.types:
        return None
    if made:
        return f"{ref.text!r} is a {made.type}, but a {wanted} goes here", ""
    return f"a {wanted} goes here, which does not come from outside", "name a stage that makes one"


def _made(stage: Use[Stage]) -> type[Artifact]:
    """What a stage makes; raises `PluginError` if its config is none of a stage."""
    if not isinstance(stage.config, StageConfig):
        raise PluginError(f"{stage.component.identity} is registered as a stage, but its config is no StageConfig")
    return stage.config.produces()


def _order(stages: Mapping[str, Use[Stage]], origins: Origins) -> tuple[list[str], list[Problem]]:
    """The stages in the recipe's order, each after its inputs; and the cycles there are."""
    done: list[str] = []
    open_: list[str] = []
    cycles: list[Problem] = []

    def visit(name: str) -> None:
        if name in done or name not in stages:
            return
        if name in open_:
            cycle = " -> ".join([*open_[open_.index(name) :], name])
            where = ("stages", name)
            cycles.append(Problem(f"stages wait for each other: {cycle}", ".".join(where), locate(origins, where)))
            return
        open_.append(name)
        for ref in identity.inputs(stages[name].config).values():
            if ref.where == "stage":
                visit(ref.text)
        open_.pop()
        done.append(name)

    for name in stages:
        visit(name)
    return done, cycles
