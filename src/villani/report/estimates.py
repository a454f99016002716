"""Estimates and other figures of records for people, in cells and in sentences; a dash where there is none."""

from collections.abc import Callable, Iterable, Mapping
from functools import reduce
from typing import Any

from villani.outwards import UNAVAILABLE
from villani.report.elements import Row, Status
from villani.report.numbers import format_interval, format_number, format_uncertain
from villani.work.records import EstimateRecord

Columns = Mapping[str, str | Callable[[Any], str]]  # heading → a field, `a.b` for one within it, or text of the record


def uncertain(estimate: EstimateRecord | None) -> str:
    """Value ± standard error."""
    return UNAVAILABLE if estimate is None else format_uncertain(estimate.value, estimate.sem)


def interval(estimate: EstimateRecord | None) -> str:
    """Its interval."""
    return UNAVAILABLE if estimate is None else format_interval(*estimate.interval)


def at(record: Any) -> str:
    """At which λ and s a record is."""
    return f"λ = {format_number(record.weight_decay)}, s = {format_number(record.temperature)}"


def rows_of(records: Iterable[Any], columns: Columns) -> list[Row]:
    """A row of a table for each record: estimates ± errors, intervals, numbers to 6 digits, counts with commas."""
    cells = {name: cell if callable(cell) else _field(cell) for name, cell in columns.items()}
    return [{name: cell(record) for name, cell in cells.items()} for record in records]


def _field(name: str) -> Callable[[Any], str]:
    def cell(record: Any) -> str:
        value = reduce(lambda one, part: None if one is None else getattr(one, part), name.split("."), record)
        return Status(value) if value and name.endswith("status") else _shown(value)

    return cell


def _shown(value: Any) -> str:
    if value is None or isinstance(value, EstimateRecord):
        return uncertain(value)
    if isinstance(value, float):
        return format_number(value)
    if isinstance(value, tuple):
        return format_interval(*value)
    return f"{value:,}" if isinstance(value, int) else str(value)
