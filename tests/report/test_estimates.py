"""Records as rows of a table: what is shown of each kind of figure."""

from types import SimpleNamespace

from villani.outwards import UNAVAILABLE
from villani.report.estimates import at, rows_of
from villani.work.records import EstimateRecord


def test_a_field_is_shown_by_what_it_is():
    known = EstimateRecord(value=1.5, sem=0.25, n=4, interval=(1.0, 2.0), status="estimated")
    record = SimpleNamespace(name="a", count=12345, size=0.1234567, rate=known, fit=SimpleNamespace(rate=None))
    columns = {
        "what": "name", "how many": "count", "size": "size", "rate": "rate", "within": "fit.rate",
        "own": lambda one: f"{one.count:.1e}",
    }  # fmt: skip
    [row] = rows_of([record], columns)
    shown = ["a", "12,345", "0.123457", "1.5 ± 0.2", UNAVAILABLE, "1.2e+04"]
    assert row == dict(zip(columns, shown, strict=True))
    assert rows_of([], columns) == []


def test_where_a_record_is():
    assert at(SimpleNamespace(weight_decay=0.1, temperature=1e-3)) == "λ = 0.1, s = 0.001"
