"""The command line: thin signatures. The work is imported inside the bodies, so `--help` pays for none of it.

stdout is data, stderr is for people. Exit codes are those of `recipe_runner.errors.ExitCode`.
"""

from __future__ import annotations

import sys
from itertools import islice
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    name="recipe",
    help="One YAML file takes raw text to a finished model.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
plugins_app = typer.Typer(help="What is installed.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(plugins_app, name="plugins")

RecipePath = Annotated[str, typer.Argument(metavar="RECIPE", help="a YAML file, or the name of a shipped recipe")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="overrides, applied in order")]
StoreDir = Annotated[Path, typer.Option("--store", metavar="DIR", help="where artifacts live")]
Json = Annotated[bool, typer.Option("--json", help="print facts as JSON on stdout")]
Stages = Annotated[list[str] | None, typer.Option(metavar="STAGE", help="may be given more than once")]
RunName = Annotated[str, typer.Argument(metavar="[RUN]", help="a run's folder or id, or a recipe; else the newest")]
Target = Annotated[str, typer.Argument(help="a recipe, an artifact's folder, or a stage of the newest run")]
Parent = Annotated[str, typer.Option("--from", metavar="RECIPE", help="the recipe to extend")]
Artifacts = Annotated[list[Path] | None, typer.Argument(metavar="[ARTIFACT]...", help="else all of the store")]
KeepLast = Annotated[int, typer.Option(metavar="N", min=1, help="finished runs to keep of each recipe")]
Yes = Annotated[bool, typer.Option("--yes", help="remove; without it, only say what would be")]
Extra = Annotated[str, typer.Argument(metavar="[NAME]", help="without it, all are listed")]
DEFAULT_STORE = Path(".recipe")


class State:
    """What the options before the command say."""

    disabled: tuple[str, ...] = ()
    strict = False
    debug = False


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(version("recipe-runner"))
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    plugin: Annotated[
        list[str] | None, typer.Option("-p", metavar="no:NAME", help="disable a plugin, by entry point or distribution")
    ] = None,
    strict_plugins: Annotated[bool, typer.Option("--strict-plugins", help="stop at the first broken plugin")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="show tracebacks of users' errors too")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version")
    ] = False,
) -> None:
    """Options before the command."""
    state = State()
    for word in plugin or ():
        if not word.startswith("no:"):
            raise typer.BadParameter(f"{word!r}: write -p no:NAME")
        state.disabled += (word.removeprefix("no:"),)
    state.strict, state.debug = strict_plugins, debug
    context.obj = state


@app.command()
def run(
    context: typer.Context,
    recipe: RecipePath,
    overrides: Overrides = None,
    store: StoreDir = DEFAULT_STORE,
    until: Annotated[str, typer.Option(metavar="STAGE", help="run this stage and what it needs")] = "",
    only: Annotated[str, typer.Option(metavar="STAGE", help="run this stage alone; the rest must be built")] = "",
    force: Stages = None,
    restart: Stages = None,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="exit 4 when another run is at work on a stage")] = False,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="let hub models run their code")
    ] = False,
    json: Json = False,
) -> None:
    """Run a recipe; again, to go on where it stopped."""
    from recipe_runner.commands.run import run_recipe
    from recipe_runner.run import Options

    run_recipe(
        context.obj, recipe, overrides or [], store,
        Options(until=until, only=only, force=tuple(force or ()), restart=tuple(restart or ()), wait=not no_wait,
                allow_remote_code=trust_remote_code),
        json,
    )  # fmt: skip


@app.command()
def plan(
    context: typer.Context,
    recipe: RecipePath,
    overrides: Overrides = None,
    store: StoreDir = DEFAULT_STORE,
    force: Stages = None,
    check: Annotated[bool, typer.Option("--check", help="exit 5 if anything would run")] = False,
    fits: Annotated[
        bool, typer.Option("--fits", help="exit 6 if a stage takes more memory than is here, 7 if nobody can tell")
    ] = False,
    json: Json = False,
) -> None:
    """Say what would run, why, and what it costs."""
    from recipe_runner.commands.plan import show_plan

    show_plan(context.obj, recipe, overrides or [], store, force or [], check, fits, json)


@app.command()
def check(context: typer.Context, recipe: RecipePath, overrides: Overrides = None, json: Json = False) -> None:
    """Check a recipe: keys, types, components, inputs. Imports no torch."""
    from recipe_runner.commands.check import check_recipe

    check_recipe(context.obj, recipe, overrides or [], json)


@app.command()
def show(
    context: typer.Context, target: Target, overrides: Overrides = None, store: StoreDir = DEFAULT_STORE,
    resolved: Annotated[bool, typer.Option("--resolved", help="the whole recipe as YAML, with every default")] = False,
    origin: Annotated[bool, typer.Option("--origin", help="where each value was written")] = False, json: Json = False,
    removed: Annotated[str, typer.Option(help="STEP or STEP:REASON: documents that a curation removed")] = "",
    number: Annotated[int, typer.Option("-n", min=1, help="how many of them")] = 5,
) -> None:  # fmt: skip
    """Show a recipe as it is resolved, or what an artifact is."""
    from recipe_runner.commands.show import show_target

    show_target(context.obj, target, overrides or [], store, resolved, origin, json, removed, number)


@app.command()
def report(run: RunName = "", store: StoreDir = DEFAULT_STORE, json: Json = False) -> None:
    """Write report.html of a run."""
    from recipe_runner.commands.report import write_report

    write_report(store, run, json)


@app.command()
def runs(store: StoreDir = DEFAULT_STORE, json: Json = False) -> None:
    """List the runs, oldest first."""
    from recipe_runner.commands.store import list_runs

    list_runs(store, json)


@app.command()
def init(path: Annotated[Path, typer.Argument(help="the file to write")], parent: Parent = "tiny") -> None:
    """Write a recipe that extends another."""
    from recipe_runner.commands.show import init_recipe

    init_recipe(path, parent)


@app.command()
def schema(context: typer.Context) -> None:
    """Print the JSON Schema of recipes, for editors."""
    from recipe_runner.commands.show import print_schema

    print_schema(context.obj)


@app.command()
def verify(artifacts: Artifacts = None, store: StoreDir = DEFAULT_STORE, json: Json = False) -> None:
    """Hash artifacts again; exit 1 if one is damaged."""
    from recipe_runner.commands.store import verify as verify_artifacts

    verify_artifacts(store, artifacts or [], json)


@app.command()
def gc(store: StoreDir = DEFAULT_STORE, keep_last: KeepLast = 1, yes: Yes = False, json: Json = False) -> None:
    """Remove artifacts that no recent run names."""
    from recipe_runner.commands.store import collect

    collect(store, keep_last, yes, json)


@app.command()
def doctor(context: typer.Context, store: StoreDir = DEFAULT_STORE, json: Json = False) -> None:
    """Say what this machine has; exit 1 if something is broken."""
    from recipe_runner.commands.plugins import doctor as examine

    examine(context.obj, store, json)


@app.command()
def chat(
    context: typer.Context, run: RunName = "", store: StoreDir = DEFAULT_STORE,
    stage: Annotated[str, typer.Option(metavar="STAGE", help="which model; by default the last")] = "",
    prompt: Annotated[str, typer.Option(help="ask this and leave")] = "",
    use: Annotated[str, typer.Option(help="what talks: NAME, or {use: NAME, KEY: VALUE}")] = "default",
) -> None:  # fmt: skip
    """Talk to a model of a run, or to the model in a folder."""
    from recipe_runner.commands.plugins import chat as talk

    talk(context.obj, store, run, stage, prompt, use)


@app.command("x", context_settings={"allow_extra_args": True, "allow_interspersed_args": False})
def extra(context: typer.Context, name: Extra = "", json: Json = False) -> None:
    """Run a plugin's command with the arguments that follow its name."""
    from recipe_runner.commands.plugins import extra as run_extra

    run_extra(context.obj, name, context.args, json)


@plugins_app.command("list")
def plugins_list(context: typer.Context, json: Json = False) -> None:
    """List the plugins, with what became of each."""
    from recipe_runner.commands.plugins import list_plugins

    list_plugins(context.obj, json)


@plugins_app.command("show")
def plugins_show(context: typer.Context, name: str, json: Json = False) -> None:
    """Show a plugin's components, or one component, with fields and defaults."""
    from recipe_runner.commands.plugins import show_plugin

    show_plugin(context.obj, name, json)


def _options_first(arguments: list[str]) -> list[str]:
    """The options that stand before the command may stand after it too, but for `x`: what follows is a plugin's."""
    first: list[str] = []
    rest: list[str] = []
    words = iter(arguments)
    for word in words:
        if word == "--" or rest[:1] == ["x"]:
            return [*first, *rest, word, *words]
        whole = [word, *(islice(words, 1) if word == "-p" else ())]
        early = word in ("--strict-plugins", "--debug") or (word[:2] == "-p" and whole != ["-p"])
        (first if early else rest).extend(whole)
    return [*first, *rest]


def main(argv: list[str] | None = None) -> int:
    """The entry of the command `recipe`; returns the exit code."""
    from recipe_runner.errors import RecipeError

    arguments = _options_first(sys.argv[1:] if argv is None else argv)
    try:
        status = app(args=arguments, standalone_mode=False)
        return status if isinstance(status, int) else 0
    except RecipeError as error:
        if "--debug" in arguments:
            import traceback

            traceback.print_exc()
        print(f"error:\n{error.render()}", file=sys.stderr)
        return int(error.exit_code)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 141
    except Exception as error:
        shown = getattr(error, "show", None)  # typer's own usage errors
        if shown is None:
            raise
        shown()
        return int(getattr(error, "exit_code", 2))


if __name__ == "__main__":
    sys.exit(main())
