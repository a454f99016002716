"""Estimates for people, in cells and in sentences; a dash where there is none."""

from typing import Any

from villani.outwards import UNAVAILABLE
from villani.report.numbers import format_interval, format_number, format_uncertain
from villani.work.records import EstimateRecord


def uncertain(estimate: EstimateRecord | None) -> str:
    """Value ± standard error."""
    return UNAVAILABLE if estimate is None else format_uncertain(estimate.value, estimate.sem)


def interval(estimate: EstimateRecord | None) -> str:
    """Its interval."""
    return UNAVAILABLE if estimate is None else format_interval(*estimate.interval)


def at(point: Any) -> str:
    """At which λ and s a record is."""
    return f"λ = {format_number(point.weight_decay)}, s = {format_number(point.temperature)}"
