"""Constants in Python as the record of the command, as rows, and as a page without a model."""

import pytest

from villani.commands.constants.results import plain_rows, record, records_of, rows, section
from villani.theory.comparison import compare, model_constants
from villani.theory.constants import exact_quadratic, preprint


def test_the_record_has_every_constant_at_its_point():
    result = model_constants(1000, 0.1, 2.0, 50, time=100.0)
    made = record(result)
    assert (made.parameters, made.vocabulary, made.time) == (1000, 50, 100.0)
    assert [(one.name, one.value) for one in made.points[0].constants] == [
        (one.name, one.value) for one in result.comparison.constants
    ]
    assert {(row["weight_decay"], row["temperature"]) for row in rows(made)} == {(0.1, 2.0)}
    assert [row["value"] for row in rows(made)] == [one.value for one in result.comparison.constants]


def test_constants_of_one_law_need_no_model():
    """exp(−λ|x|²/s) is Gaussian with variance s/(2λ), whose log-Sobolev constant is twice that, s/λ."""
    exact = exact_quadratic(0.1, 1.0)
    assert [row["value"] for row in plain_rows(records_of(exact))] == [exact.value]
    assert exact.value == pytest.approx(10.0)
    made = section(compare([exact, preprint(0.1, 1.0, 10)]))
    assert made.headline.startswith("2 bounds")
    assert section(exact).headline == str(exact)
