"""The command line, built from the registry: parse, check, run, show. No mathematics here.

Progress goes to stderr. Exit codes: 0 done, 2 bad input (one line), 1 anything else; `session` sees to them.
"""

import inspect
import re
import sys
from collections.abc import Callable
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Console
from typer.core import TyperCommand
from typer.exceptions import TyperException

from villani import __version__
from villani.commands.blocks import Settings, first_problem
from villani.commands.option import Form, forms
from villani.commands.registry import COMMANDS, Command, command_for
from villani.commands.session import run as run_session
from villani.errors import InputError
from villani.inputs.folders import local_path
from villani.report.plain_text import degrade, print_json

Handle = Callable[[Command, Settings, dict[str, Any]], int]
RUN = "Run"  # the heading of options that every command has


def path_of(text: str) -> Path:
    """A path as it was typed, with `~` filled in; used as `parser`, so that the message names the option."""
    if not text:
        raise typer.BadParameter("'' is no path: name one, or leave the option out")
    try:
        return local_path(text, "path")
    except InputError as error:
        raise typer.BadParameter(str(error)) from None


_PATH: dict[str, Any] = {"parser": path_of, "metavar": "PATH", "rich_help_panel": RUN}
_RUN = Annotated[Path | None, typer.Option(help="run directory; made from the settings when not given", **_PATH)]
_DATA = Annotated[
    Path | None, typer.Option(help="folder of PTB, WikiText and GPT-2 BPE files; default VILLANI_DATA", **_PATH)
]
_JSON = Annotated[
    bool, typer.Option("--json", help="print one record on stdout, and nothing else", rich_help_panel=RUN)
]


@cache
def build(commands: tuple[Command, ...]) -> Callable[..., int | None]:
    """The command line, made once; the context's object is the `Handle` that is called with what was asked for."""
    app = typer.Typer(
        help="What weight decay does to a Transformer's loss landscape, and which guarantees really follow.",
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    groups = {"": app}
    for command in commands:
        *above, name = command.name.split()
        if above and above[0] not in groups:
            groups[above[0]] = typer.Typer(rich_markup_mode=None)
            groups[above[0]].callback(invoke_without_command=True)(_studies)
            app.add_typer(groups[above[0]], name=above[0])
        parent = groups[above[0] if above else ""]
        parent.command(name, cls=_parser(command))(_signature(command))
    app.command()(report)
    app.command()(doctor)
    app.callback(invoke_without_command=True)(_root)
    return typer.main.get_command(app)


def _parser(command: Command) -> type[TyperCommand]:
    class Parser(TyperCommand):
        """Reads settings from what was given, and leaves the defaults to them."""

        def invoke(self, ctx: Any) -> Any:
            given = {
                name: value
                for name, value in ctx.params.items()
                if (source := ctx.get_parameter_source(name)) is not None and source.name == "COMMANDLINE"
            }
            invocation = {name: given.pop(name, None) for name in ("run", "data", "json")}
            known = forms(command.settings)
            settings = command.settings.given(**{name: known[name].read(value) for name, value in given.items()})
            if code := ctx.obj(command, settings, invocation):
                raise typer.Exit(code)

        def format_options(self, ctx: Any, formatter: Any) -> None:
            """Options under the headings that their fields declare."""
            headings: dict[str, list[tuple[str, str]]] = {}
            for parameter in self.get_params(ctx):
                if (row := parameter.get_help_record(ctx)) is not None:
                    heading = getattr(parameter, "rich_help_panel", None) or "Options"
                    headings.setdefault(heading, []).append(row)
            for heading, rows in headings.items():
                with formatter.section(heading):
                    formatter.write_dl(rows)

    return Parser


def _signature(command: Command) -> Callable[..., None]:
    """A function whose parameters are the options of a command; typer reads nothing else of it."""

    def parameters() -> None: ...

    own = [_parameter(form) for form in forms(command.settings).values()]
    own.append(_keyword("run", _RUN, Path(command.directory) if command.directory else None))
    if "text" in command.settings.model_fields:
        own.append(_keyword("data", _DATA, None))
    own.append(_keyword("json", _JSON, False))
    parameters.__doc__ = inspect.cleandoc(command.settings.__doc__ or "")
    parameters.__signature__ = inspect.Signature(own)  # type: ignore[attr-defined]
    parameters.__annotations__ = {one.name: one.annotation for one in own}
    return parameters


def _keyword(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _parameter(form: Form) -> inspect.Parameter:
    option = form.option
    kind: Any = str if form.is_text else form.kind
    default = form.default
    words = option.help
    if form.is_text:
        default = None if default is ... else " ".join(form.write(default)[1:]) or "none"
        if option.each or option.default or default == "none":
            default = None
        kind = list[str] | None if option.each else str | None
    elif default is None or form.optional:
        kind = kind | None
    if option.default:
        words = f"{words}; default: {option.default}"
    shared: dict[str, Any] = {"help": words, "metavar": option.metavar or ("<float>" if form.kind is float else None)}
    if option.path:
        shared |= {"parser": lambda text: str(path_of(text)), "metavar": option.metavar or "PATH"}
    if option.argument:
        required = inspect.Parameter.empty if default is ... else default
        return _keyword(form.name, Annotated[kind, typer.Argument(**shared)], required)
    how = typer.Option(*form.flags, rich_help_panel=option.group or None, **shared)
    return _keyword(form.name, Annotated[kind, how], default)


def _studies(ctx: typer.Context) -> None:
    """Studies of several experiments, by one command."""
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help())
        raise typer.Exit(2)  # nothing was asked for


def report(run: Annotated[Path, typer.Argument(help="run directory", parser=path_of, metavar="RUN")]) -> None:
    """Write RUN/report.html, one self-contained page, from the run's records."""
    from villani.commands.pages import write_report

    typer.echo(str(write_report(run)))


def doctor(data: _DATA = None) -> None:
    """Show versions, device, threads, attention support and data found; exit 1 if measuring would not work."""
    from villani.commands.doctor.run import examine, show

    findings = examine(data)
    show(findings)
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


def _root(
    ctx: typer.Context, version: Annotated[bool, typer.Option("--version", help="print the version and stop")] = False
) -> None:
    if version:
        typer.echo(f"villani {__version__}")
        raise typer.Exit
    _studies(ctx)  # no command: what there is


def perform(command: Command, settings: Settings, invocation: dict[str, Any]) -> int:
    """Run a command and show its record; its exit code."""
    from villani.commands.running import execute
    from villani.report.terminal import progress, say
    from villani.work.team import Team, join

    if settings.lists and not (invocation["run"] or invocation["json"]):  # a list is no record to keep or to print
        command.page.show_names(Console(highlight=False))
        return 0
    device = getattr(settings, "device", "cpu")
    with join(device) if command.shared else nullcontext(Team()) as team:
        with progress() if team.main else nullcontext() as bar:
            run = invocation["run"] or (Path(command.directory) if command.directory else None)
            directory, record = execute(settings, run, invocation["data"], bar, team)
        if not team.main:
            return 0
    page = command_for(record).page
    if invocation["json"]:
        print_json(record)
    else:
        console = Console(highlight=False)
        page.show(record, directory, console)
        say(console, "The page: ", path=directory / "report.html")
    exit_code = getattr(page, "exit_code", None)
    return exit_code(record) if exit_code else 0


def parse(words: list[str]) -> tuple[Command, Settings, dict[str, Any]]:
    """What a command line asks for, without doing it.

    Raises:
        InputError: it asks for nothing that can be done.
    """
    asked: list[tuple[Command, Settings, dict[str, Any]]] = []

    def keep(command: Command, settings: Settings, invocation: dict[str, Any]) -> int:
        asked.append((command, settings, invocation))
        return 0

    _invoke(keep, words)
    if not asked:
        raise InputError(f"{' '.join(words)!r}: no command with settings")
    return asked[0]


def _invoke(handle: Handle, words: list[str] | None = None) -> int | None:
    try:
        code = build(tuple(COMMANDS))(words, standalone_mode=False, obj=handle)
    except InputError as error:
        raise InputError(with_flags(str(error))) from error
    except TyperException as error:
        message = error.format_message()
        if re.search(r"No such option: -[^-]", message):  # all that there are begin with two
            message += "; an expression or a path that begins with a minus goes last, after --"
        raise InputError(message) from error
    except ValidationError as error:
        raise InputError(first_problem(error)) from error
    if code == 130:  # what typer makes of Ctrl-C
        raise KeyboardInterrupt
    return code


def with_flags(message: str) -> str:
    """A message of the library as the command line says it: `finite=True` is --finite."""
    flags = {f.name: f.flags[0] for command in COMMANDS for f in forms(command.settings).values() if f.is_flag}
    return re.sub(r"\b([a-z]\w*)=True\b", lambda match: flags.get(match[1], match[0]), message)


def command() -> int | None:
    """Parse and run one command; its exit code."""
    degrade(sys.stdout, sys.stderr)
    return _invoke(perform)


def main() -> None:
    """Run a command and turn what goes wrong into one line and an exit code; see `villani.commands.session`."""
    run_session(command)
