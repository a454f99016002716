"""An estimate as a number: formats by its own error, arithmetic with exact numbers, equality and hash."""

import math
import re
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import t as student

from villani import Estimate, InputError
from villani.statistics import exact

FINITE = st.floats(-1e12, 1e12)
SIGMA = Estimate(-3.14159, 0.21, 16, "statistical")


def numbers(text: str) -> list[float]:
    """What a text of `format_uncertain` or `format_interval` says, as floats."""
    power = re.search(r"·10([⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+)$", text)
    scale = 10.0 ** int(power[1].translate(str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789"))) if power else 1.0
    digits = text[: power.start()] if power else text
    return [float(one.replace("−", "-")) * scale for one in re.findall(r"−?\d+(?:\.\d+)?", digits)]


def test_it_prints_as_people_write_it():
    assert f"{SIGMA}" == str(SIGMA) == "−3.1 ± 0.2"
    assert f"{SIGMA:.3g}" == "-3.14 ± 0.21"
    assert f"{SIGMA:+.2e}" == "-3.14e+00 ± +2.10e-01"
    assert f"{SIGMA:>14}" == "    −3.1 ± 0.2"
    assert f"{exact(17.625)}" == "17.625"
    assert f"{exact(17.625):.1f}" == "17.6"
    assert f"{exact(0.1 + 0.2)}" == "0.3"
    assert repr(exact(17.625)) == "Estimate(17.625, exact, certified)"
    assert f"{Estimate(3.25, math.nan, 1, 'estimated')}" == "3.25 ± —"
    with pytest.raises(ValueError, match="format"):
        f"{SIGMA:.3q}"


@given(st.floats(-1e9, 1e9), st.floats(1e-6, 1e6), st.integers(3, 300))
def test_its_text_is_within_a_digit_of_its_error_and_bounds_go_outwards(value, sem, n):
    one = Estimate(value, sem, n, "statistical")
    assert "\n" not in repr(one)
    assert len(repr(one)) < 160
    if abs(value) > 1e9 * sem:
        return
    centre, error = numbers(str(one))
    assert error == pytest.approx(sem, rel=0.34)
    assert abs(centre - value) <= 0.51 * sem
    half = student.ppf(0.975, n - 1) * sem
    low, high = numbers(re.search(r"95 % in (.*?), statistical", repr(one))[1])
    slack = 1e-12 * (abs(value) + half)
    assert low <= value - half + slack
    assert high >= value + half - slack


@given(FINITE, st.floats(0, 1e6), FINITE, st.floats(-1e6, 1e6).filter(lambda k: abs(k) > 1e-6), st.floats(0.5, 0.99))
def test_exact_numbers_move_error_and_interval_as_they_move_the_value(value, sem, shift, factor, level):
    one = Estimate(value, sem, 9, "statistical", 5.5)
    moved = factor * one + shift
    assert float(moved) == factor * value + shift
    assert moved.sem == abs(factor) * sem
    half = student.ppf(0.5 + level / 2, 5.5) * abs(factor) * sem
    np.testing.assert_allclose(
        moved.interval(level), [float(moved) - half, float(moved) + half], rtol=1e-9, atol=1e-300
    )
    assert (moved.n, moved.status, moved.degrees_of_freedom) == (9, "statistical", 5.5)
    assert float(one / factor) == value / factor
    assert float(shift - one) == shift - value
    assert (one - shift) == (one + (-shift))
    assert -one == 0 - one == one * -1
    assert exact(factor) * one == one * factor == np.float64(factor) * one


def test_laws_of_intervals_move_too():
    one = Estimate(0.5, 0.1, 4, "statistical", limits=lambda level: (0.2, 0.9 + level / 100))
    low, high = (1 - 2 * one).interval(0.95)
    assert low == pytest.approx(1 - 2 * 0.9095)
    assert high == pytest.approx(1 - 2 * 0.2)


def test_parts_still_add_up():
    psi = Estimate(5.0, 0.3, 8, "statistical", parts={"a": exact(2.0), "b": Estimate(3.0, 0.3, 8, "statistical")})
    assert {name: float(part) for name, part in (psi / 2).parts.items()} == {"a": 1.0, "b": 1.5}
    assert (psi + 1).parts == {}


@pytest.mark.parametrize(
    "work",
    [
        lambda e: e + e, lambda e: e - e, lambda e: e * e, lambda e: e / e, lambda e: sum([e, e]), lambda e: 1 / e,
        lambda e: e**2, lambda e: 2**e, lambda e: exact(1.0) / e, lambda e: e + Estimate(1.0, 0.0, 1, "estimated"),
    ],
)  # fmt: skip
def test_what_takes_a_covariance_or_bends_is_refused_with_what_to_use(work):
    with pytest.raises(InputError, match=r"measurement\.propagate\(function\)") as caught:
        work(SIGMA)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "work", [lambda e: e * math.inf, lambda e: e + math.nan, lambda e: e / 0, lambda e: 1e308 * (e * 1e3)]
)
def test_numbers_that_leave_nothing_finite_are_refused(work):
    with pytest.raises(InputError):
        work(SIGMA)


def test_what_is_no_number_is_no_operand():
    for other in ("1", None, [1.0], np.ones(2), 1j, True):
        with pytest.raises(TypeError):
            SIGMA + other
        with pytest.raises(TypeError):
            other * SIGMA


@given(FINITE, st.floats(0, 1e3) | st.just(math.nan), st.integers(1, 9), st.dictionaries(st.text(max_size=3), FINITE))
def test_equal_where_all_is_equal_and_then_of_one_hash(value, sem, n, parts):
    def make(**changes):
        given = {"value": value, "sem": sem, "n": n, "status": "statistical"} | changes
        return Estimate(**given, parts={name: exact(x) for name, x in parts.items()})

    one = make()
    assert (one == make()) is True
    assert hash(one) == hash(make())
    assert len({one, make(), make(value=np.float64(value))}) == 1
    assert (one == make(n=n + 1)) is False
    assert (one != make(status="estimated")) is True
    assert (one == value) is False
    assert make(value=0.0) == make(value=-0.0)
    assert hash(make(value=0.0)) == hash(make(value=-0.0))


def test_an_estimate_needs_neither_torch_nor_plotly_to_print():
    code = "import sys, villani; e = villani.Estimate(1.0, 0.2, 5, 'statistical'); print(e, repr(e), 2 * e == e + 1); "
    code += "print({'torch', 'plotly', 'pydantic'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"
