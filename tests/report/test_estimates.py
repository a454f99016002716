"""Estimates in cells: their own rounding, and a dash where there is none; colours; and records as rows of a table."""

from types import SimpleNamespace

import pytest

from tests.records import estimate
from villani.outwards import UNAVAILABLE
from villani.report.colours import NEGATIVE, POSITIVE, UNRESOLVED, sign_colour
from villani.report.elements import Status
from villani.report.estimates import at, interval, rows_of, uncertain
from villani.work.records import EstimateRecord


def test_values_have_the_digits_of_their_error():
    given = estimate(1234.567, 12.0)
    assert uncertain(given) == "1235 ± 12"
    low, high = (float(end.strip()) for end in interval(given).strip("[]").replace(" to ", ",").split(","))
    assert (low, high) == pytest.approx(given.interval, abs=1.5)


def test_nothing_is_a_dash():
    assert uncertain(None) == interval(None)
    assert len(uncertain(None)) == 1


@pytest.mark.parametrize(
    ("value", "colour"), [(5.0, POSITIVE), (-5.0, NEGATIVE), (0.5, UNRESOLVED), (-0.5, UNRESOLVED)]
)
def test_colours_go_by_the_interval_and_not_by_the_value(value, colour):
    assert sign_colour(estimate(value, 1.0)) == colour


def test_a_field_is_shown_by_what_it_is():
    known = EstimateRecord(value=1.5, sem=0.25, n=4, interval=(1.0, 2.0), status="estimated")
    record = SimpleNamespace(name="a", count=12345, size=0.1234567, rate=known, fit=SimpleNamespace(rate=None))
    columns = {
        "what": "name", "how many": "count", "size": "size", "rate": "rate", "within": "fit.rate",
        "own": lambda one: f"{one.count:.1e}", "from, to": "rate.interval", "no reach": "fit.rate.interval",
        "of the rate": "rate.status",
    }  # fmt: skip
    [row] = rows_of([record], columns)
    shown = ["a", "12,345", "0.123457", "1.5 ± 0.2", UNAVAILABLE, "1.2e+04", "[1.00, 2.00]", UNAVAILABLE, "estimated"]
    assert row == dict(zip(columns, shown, strict=True))
    assert isinstance(row["of the rate"], Status)
    assert rows_of([], columns) == []


def test_where_a_record_is():
    assert at(SimpleNamespace(weight_decay=0.1, temperature=1e-3)) == "λ = 0.1, s = 0.001"
