"""The content of `records.json`: records of every kind that a command has."""

from functools import cache, reduce
from operator import or_
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, create_model

from villani.commands.registry import COMMANDS
from villani.errors import InputError
from villani.work import foreign
from villani.work.records import Record


class _Content(Record):
    """The content of `records.json`."""

    schema_version: Literal[1] = 1
    villani: str = Field(description="version of villani that wrote the file")
    title: str


def run_records() -> type[Any]:
    """The model of `records.json`: `schema_version`, `villani`, `title`, and `records` of every kind."""
    return _model(tuple(kind for command in COMMANDS for kind in command.records))


@cache
def _model(kinds: tuple[type[Record], ...]) -> type[Any]:
    one: Any = Annotated[reduce(or_, kinds), Field(discriminator="kind")]
    return create_model("RunRecords", __base__=_Content, __doc__=_Content.__doc__, records=(list[one], ...))


_SCHEMA_VERSION = _Content.model_fields["schema_version"].default


def read_records(path: Path, remedy: str = "run the measurement again") -> Any:
    """The records of a run, whoever wrote them.

    Raises:
        InputError: no such file, not JSON, of another schema version, or not records; `remedy` ends the line.
    """
    content = foreign.read_json(path, remedy)
    version = content.get("schema_version", _SCHEMA_VERSION) if isinstance(content, dict) else None
    if isinstance(content, dict) and version != _SCHEMA_VERSION:
        raise InputError(
            f"{path}: schema version {foreign.clipped(repr(version))}, but this villani reads {_SCHEMA_VERSION}; "
            "use the version that wrote it."
        )
    return foreign.validated(run_records(), content, f"{path}: not a villani record", remedy)
