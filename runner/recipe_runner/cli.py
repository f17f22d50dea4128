"""The command line: thin signatures. The work is imported inside the bodies, so `--help` pays for none of it.

stdout is data, stderr is for people. Exit codes are those of `recipe_runner.errors.ExitCode`.
"""

from __future__ import annotations

import sys
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
    strict_plugins: Annotated[bool, typer.Option(help="stop at the first broken plugin")] = False,
    debug: Annotated[bool, typer.Option(help="show tracebacks of users' errors too")] = False,
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
    json: Json = False,
) -> None:
    """Say what would run, why, and what it costs."""
    from recipe_runner.commands.plan import show_plan

    show_plan(context.obj, recipe, overrides or [], store, force or [], check, json)


@app.command()
def check(context: typer.Context, recipe: RecipePath, overrides: Overrides = None, json: Json = False) -> None:
    """Check a recipe: keys, types, components, inputs. Imports no torch."""
    from recipe_runner.commands.check import check_recipe

    check_recipe(context.obj, recipe, overrides or [], json)


def main(argv: list[str] | None = None) -> int:
    """The entry of the command `recipe`; returns the exit code."""
    from recipe_runner.errors import RecipeError

    arguments = sys.argv[1:] if argv is None else argv
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
