import math

import pytest

from villani.report.numbers import (
    format_count,
    format_interval,
    format_number,
    format_power,
    format_uncertain,
    listed,
    readable,
)


@pytest.mark.parametrize(
    ("value", "sem", "text"),
    [
        (-3.12e5, 2.2e4, "(−3.1 ± 0.2)·10⁵"),
        (4.1123, 0.0031, "4.112 ± 0.003"),
        (2.5, 0.14, "2.50 ± 0.14"),
        (1.0, 0.0996, "1.00 ± 0.10"),
        (9.996, 0.04, "10.00 ± 0.04"),
        (99_960, 900.0, "(1.000 ± 0.009)·10⁵"),
        (-22.0, 41.0, "−20 ± 40"),
        (-0.3, 200.0, "0 ± 200"),
        (1e-9, 3e-8, "(0 ± 3)·10⁻⁸"),
        (0.0, 0.02, "0.00 ± 0.02"),
        (1.0, 1e-20, "1 ± 1·10⁻²⁰"),
        (-219456.0, 0.0, "−219456"),
        (math.nan, 1.0, "—"),
        (1.0, math.inf, "—"),
    ],
)
def test_format_uncertain_rounds_by_the_error(value, sem, text):
    assert format_uncertain(value, sem) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"), (-0.0, "0"), (0.001, "0.001"), (1e-7, "1·10⁻⁷"), (2195328.0, "2195328"), (1.5e12, "1.5·10¹²"),
        (1 / 3, "0.333333"), (-math.inf, "—"), (math.nan, "—"),
    ],
)  # fmt: skip
def test_format_number(value, text):
    assert format_number(value) == text


@pytest.mark.parametrize(
    ("low", "high", "text"),
    [
        (-3.55e5, -2.66e5, "[−3.55, −2.66]·10⁵"),
        (-0.0112, 0.0072, "[−0.0112, 0.0072]"),
        (1.0, 1.0, "no sampling error"),
        (math.nan, 1.0, "—"),
    ],
)
def test_format_interval(low, high, text):
    assert format_interval(low, high) == text


@pytest.mark.parametrize(("count", "text"), [(0, "0 groups"), (1, "1 group"), (2048, "2,048 groups")])
def test_format_count_has_a_singular(count, text):
    assert format_count(count, "group") == text


@pytest.mark.parametrize(
    ("log10", "way", "text"),
    [
        (8528.89, 0, "8·10⁸⁵²⁸"), (8528.89, 1, "8·10⁸⁵²⁸"), (8528.89, -1, "7·10⁸⁵²⁸"), (-4000.3, -1, "5·10⁻⁴⁰⁰¹"),
        (500.0, 1, "10⁵⁰⁰"), (500.99, 1, "10⁵⁰¹"), (math.inf, 1, "—"), (7.17e9, 1, "10^(7.17·10⁹)"),
    ],
)  # fmt: skip
def test_powers_beyond_floats_have_one_digit_rounded_outwards(log10, way, text):
    """10^0.89 = 7.76; 10^−4000.3 = 10^0.7 · 10^−4001 = 5.01 · 10^−4001."""
    assert format_power(log10, way) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("at most 10^8,528.9, for", "at most 8·10⁸⁵²⁸, for"), ("a gap of 10^-43.5 to", "a gap of 3·10⁻⁴⁴ to"),
        ("it would take λ = 10^8,531,192: the", "it would take λ = 10^(8.54·10⁶): the"),
        ("takes 7.32e+04 times", "takes 7.32·10⁴ times"), ("by 9.46e-06 nats", "by 9.46·10⁻⁶ nats"),
        ("L = x^10 + 10^2 and 10^5", "L = x^10 + 10^2 and 10^5"), ("sha 3e10, v1.2e+03x", "sha 3e10, v1.2e+03x"),
    ],
)  # fmt: skip
def test_sentences_of_records_have_powers_that_people_read(text, shown):
    assert readable(text) == shown


def test_lists_in_a_sentence():
    assert [listed("abc"[:n]) for n in (1, 2, 3)] == ["a", "a and b", "a, b and c"]
