"""Records made from their own declarations, so that a page can be shown any record without a run behind it."""

import types
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from villani.commands.pages import sections
from villani.report.page import Section
from villani.work.records import EstimateRecord

NUMBERS = {"value": 2.5, "sem": 0.25, "n": 9, "interval": (2.0, 3.0), "status": "statistical"}


def made(kind: type[BaseModel], **changes: Any) -> Any:
    """A record with a plain value in every field: one entry in lists, nothing where a field may be null.

    Args:
        kind: of record.
        changes: fields that are to be others.
    """
    plain = NUMBERS if issubclass(kind, EstimateRecord) else {}
    values = {
        name: plain[name] if name in plain else _value(field.annotation, name)
        for name, field in kind.model_fields.items()
        if name not in changes and (field.is_required() or name in plain)
    }
    return kind(**values | changes)


def told(*records: Any) -> Section:
    """What the page says of records that are told of together."""
    [section] = sections(records, {})
    return section


def estimate(value: float, sem: float = 0.25, n: int = 9) -> EstimateRecord:
    """An estimate whose interval is two errors to either side."""
    return EstimateRecord(value=value, sem=sem, n=n, interval=(value - 2 * sem, value + 2 * sem), status="statistical")


def _value(kind: Any, name: str) -> Any:
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return None if type(None) in inner else _value(inner[0], name)
    if origin is Literal:
        return inner[0]
    if origin is list:
        return [_value(inner[0], name)]
    if origin is tuple:
        return tuple(_value(each, name) + i for i, each in enumerate(inner) if each is not Ellipsis)
    if origin is dict:
        return {name: _value(inner[1], name)}
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return made(kind)
    return {bool: False, int: 3, float: 0.5, str: f"{name} of it"}[kind]
