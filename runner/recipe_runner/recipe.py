"""A validated recipe: typed stages in an order in which they can run.

Validation imports the config of the components in use and nothing else. All problems of all layers are reported at
once, each where it was written.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from recipe_runner import identity
from recipe_runner.artifacts import Adapter, Artifact, Corpus, Model, Tokeniser
from recipe_runner.components import Component, Config, Ref, Slot, Use, Validation, written
from recipe_runner.contract import ExecutionConfig, Stage, StageConfig, Tracker
from recipe_runner.errors import InvalidRecipe, PluginError, Problem, UsageError, suggest
from recipe_runner.layers import SCHEMA, find, load_tree
from recipe_runner.merging import Layered, Tree
from recipe_runner.origins import Origins, problem_at
from recipe_runner.plugins import Plugins
from recipe_runner.store import artifact_type
from recipe_runner.wording import worded_problems


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
    hints: list[Problem] = field(default_factory=list)

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

    def problem(self, path: str, what: str, next: str = "", *, hint: bool = False) -> Problem:
        """A problem, or a hint, located at a dotted path of this recipe; for `check_recipe` hooks."""
        return replace(problem_at(self.origins, path.split("."), what, next), hint=hint)


def load(path: str, overrides: Sequence[str] = (), *, plugins: Plugins | None = None) -> Recipe:
    """Load and validate a recipe; raises `InvalidRecipe` with every problem found."""
    from recipe_runner.plugins import installed

    file = find(path)
    tree, merged = load_tree(file, overrides)
    return _validate(tree, merged, file, overrides, plugins or installed())


# ── validation ───────────────────────────────────────────────────────────────────────────────────────────────────


def _validate(tree: Tree, merged: Layered, file: Path, overrides: Sequence[str], plugins: Plugins) -> Recipe:
    context = Validation(plugins.registry)
    problems, origins = merged.problems, merged.origins
    problems += _news(_spread_execution(tree, origins, context), problems)
    top: RecipeConfig | None = None
    try:
        top = RecipeConfig.model_validate(tree, context=context)
    except ValidationError as error:
        problems += _news(worded_problems(error, tree, origins, context), problems)
    stages = top.stages if top else _sound_stages(tree, context)
    order, cycles = _order(stages, origins)
    problems += [*_wrong_inputs(stages, _named(tree), origins), *cycles, *(_not_inherited(top, merged) if top else ())]
    hints, wrong = _apart(problems)
    if not top or wrong:
        raise InvalidRecipe(wrong) from next(iter(plugins.registry.failures.values()), None)
    ordered = {name: top.stages[name] for name in order}
    recipe = Recipe(top.name, top.seed, file, ordered, top.trackers, tree, origins, tuple(overrides))
    more, wrong = _apart([problem for answer in plugins.hook.check_recipe(recipe=recipe) for problem in answer or ()])
    if wrong:
        raise InvalidRecipe(wrong)
    return replace(recipe, hints=[*hints, *more])


def _apart(problems: Iterable[Problem]) -> tuple[list[Problem], list[Problem]]:
    """The hints, and what is wrong."""
    found = list(problems)
    return [problem for problem in found if problem.hint], [problem for problem in found if not problem.hint]


def _news(found: Sequence[Problem], known: Sequence[Problem]) -> list[Problem]:
    """Those at or above whose place nothing is known to be wrong: a mistake is reported once."""
    paths = [problem.path + "." for problem in known]
    return [problem for problem in found if not any(path.startswith(problem.path + ".") for path in paths)]


def _named(tree: Tree) -> list[str]:
    """The stages that are written down and not taken out, be they valid or not."""
    stages = tree.get("stages")
    return [name for name, stage in stages.items() if stage is not None] if isinstance(stages, Mapping) else []


def _sound_stages(tree: Tree, context: Validation) -> dict[str, Use[Stage]]:
    """The stages, each with the fields that are right, so that its inputs are checked beside what is wrong."""
    found: dict[str, Use[Stage]] = {}
    for name in _named(tree):
        stage = tree["stages"][name]
        try:
            found[name] = Slot("stage").resolve(stage, context)
        except ValueError:
            with contextlib.suppress(ValueError, LookupError, TypeError):  # nobody knows what it is
                found[name] = _sound(context.registry.find("stage", stage["use"]), stage, context)
    return found


def _sound(component: Component, stage: Mapping[str, Any], context: Validation) -> Use[Stage]:
    """A stage that lacks the fields that are wrong."""
    config = component.config_class().model_construct()
    fields = vars(config)
    for name in stage.keys() & type(config).model_fields.keys():
        adapter, value = identity.adapter(type(config).model_fields[name]), stage[name]
        fields.pop(name, None)
        parts = [{key: entry} for key, entry in value.items()] if isinstance(value, Mapping) else ()
        for part in (value, *parts):  # an entry of a mapping may be right beside one that is wrong
            with contextlib.suppress(ValueError):
                sound = adapter.validate_python(part, context=context)
                if part is value or isinstance(sound, dict):
                    fields[name] = sound if part is value else {**fields.get(name, {}), **sound}
    return Use(component, config)


def _spread_execution(tree: Tree, origins: Origins, context: Validation) -> list[Problem]:
    """The recipe's `execution` becomes the layer below every stage's; gives what is wrong with it."""
    shared = tree.get("execution") or {}
    try:
        ExecutionConfig.model_validate(shared, context=context)
    except ValidationError as error:
        return worded_problems(error, tree, origins, context, ("execution",))
    stages: Any = tree.get("stages")
    for name, stage in stages.items() if isinstance(stages, dict) else ():
        own = stage.get("execution", {}) if isinstance(stage, Mapping) else {}
        if isinstance(stage, (str, dict)) and isinstance(own, Mapping) and shared:
            block = Layered()
            block.add({"execution": shared}, {})
            block.add({"execution": own}, {})
            stages[name] = {**({"use": stage} if isinstance(stage, str) else stage), **block.tree}
    return []


def _not_inherited(top: RecipeConfig, merged: Layered) -> Iterator[Problem]:
    """`null` for an entry that no layer below has takes nothing out."""
    mappings = {path for path, value, _ in identity.walk(top) if isinstance(value, Mapping)}
    for path in merged.removed_nothing:
        if path[:-1] in mappings:
            yield problem_at(merged.origins, path, f"there is no inherited {path[-1]!r} to remove")


# ── the graph ────────────────────────────────────────────────────────────────────────────────────────────────────


def _wrong_inputs(stages: Mapping[str, Use[Stage]], named: Sequence[str], origins: Origins) -> Iterator[Problem]:
    """Inputs that name no stage, or a stage that makes something else."""
    for name, stage in stages.items():
        for path, ref in identity.inputs(stage.config).items():
            if wrong := _wrong_input(name, ref, stages, named):
                yield problem_at(origins, ("stages", name, *path.split(".")), *wrong)


def _wrong_input(
    owner: str, ref: Ref, stages: Mapping[str, Use[Stage]], named: Sequence[str]
) -> tuple[str, str] | None:
    wanted = " or ".join(cls.type for cls in ref.types)
    if ref.where != "stage":
        return _wrong_foreign(ref, wanted)
    if ref.text not in named:
        near, own = (
            suggest(ref.text, named, noun="stages"),
            "text and conversations enter through a stage `use: curation`",
        )
        outside = own if ref.types == (Corpus,) else "one from outside is org/name on the hub, or a folder: ./name"
        return f"there is no stage {ref.text!r}", near if near.startswith("did you mean") else f"{near}\n{outside}"
    made = {name: found for name, use in stages.items() if (found := _made(use))}
    if ref.text not in made or not ref.types or issubclass(made[ref.text], ref.types):
        return None
    fitting = ", ".join(name for name, cls in made.items() if name != owner and issubclass(cls, ref.types))
    what = f"stage {ref.text!r} makes {_a(made[ref.text].type)}, but {_a(wanted)} goes here"
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
        return f"{ref.text!r} is {_a(made.type)}, but {_a(wanted)} goes here", ""
    return f"{_a(wanted)} goes here, which does not come from outside", "name a stage that makes one"


def _a(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _made(stage: Use[Stage]) -> type[Artifact] | None:
    """What a stage makes, `None` if a field that is wrong decides; raises `PluginError` if its config is no stage's."""
    if not isinstance(stage.config, StageConfig):
        raise PluginError(f"{stage.component.identity} is registered as a stage, but its config is no StageConfig")
    try:
        return stage.config.produces()
    except AttributeError:
        if vars(stage.config).keys() >= type(stage.config).model_fields.keys():
            raise
        return None


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
            cycles.append(problem_at(origins, ("stages", name), f"stages wait for each other: {cycle}"))
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
