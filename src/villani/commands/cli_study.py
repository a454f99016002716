"""The command line of studies: parse, call, show."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from villani.commands.options import Command, Data, Json, Run, path_of
from villani.report.plain_text import print_json

study = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


class SizeChoice(StrEnum):
    """--size."""

    tiny = "tiny"
    small = "small"
    large = "125m"


@study.callback()
def _studies() -> None:
    """Studies of several experiments, by one command."""


@study.command(cls=Command)
def paper(
    config: Annotated[
        Path | None, typer.Option(help="a study in TOML; a run's settings.toml is one", parser=path_of, metavar="PATH")
    ] = None,
    size: Annotated[SizeChoice | None, typer.Option(help="a study that comes with villani")] = None,
    text: Annotated[
        str | None, typer.Option(help="instead of the study's: ptb, wikitext, builtin, hub:NAME, or UTF-8 files")
    ] = None,
    model: Annotated[str | None, typer.Option(help="instead of the study's: folder, hub id or config:NAME")] = None,
    data: Data = None,
    run: Run = None,
    json: Json = False,
) -> None:
    """Rerun the preprint's experiments, with seeds and intervals, and judge its abstract claim by claim.

    Killed or interrupted, the same command goes on where it was.
    """
    from villani.commands.paper.run import study_paper
    from villani.commands.paper.settings import read_settings
    from villani.report.terminal import print_paper, progress

    settings = read_settings(config, size.value if size else None, text=text, model=model)
    with progress() as bar:
        directory, record = study_paper(settings, run, data, bar)
    if json:
        print_json(record)
    else:
        print_paper(record, directory)
