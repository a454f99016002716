"""Interval jets hold what they say: random points of random cells, of every rule, lie inside."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from villani.theory.enclosures import REACH, Interval, enclose
from villani.theory.expressions import FUNCTIONS, parse

RULES = [
    *(f"{name}(w)" for name in sorted(FUNCTIONS) if name not in ("log", "sqrt", "abs")),
    "log(2+w**2)", "sqrt(1+w**2)", "(w**2+1)**0.7", "(w**2+0.3)**-1.5", "w**3-w**5", "1/(w-0.3)**2", "w/(1+w**2)",
    "14*exp(-(w-0.7)**2/(2*0.001**2))", "logsumexp(w,2*w,-w,0.3)", "log(1+exp(w))-0.3*w", "log(cosh(2*w))",
    "tanh(w)*sin(5*w)", "exp(-w**2)*erf(w)",
]  # fmt: skip


@pytest.mark.parametrize("text", RULES)
def test_points_of_random_cells_lie_inside(text):
    function, rng = parse(text), np.random.default_rng(len(text))
    for scale in (1e-6, 1.0, 30.0, 1e4):
        centre = rng.normal(size=400) * scale
        half = np.abs(rng.normal(size=400)) * scale * 10.0 ** rng.uniform(-14, 0.5, 400)
        low, high = centre - half, centre + half
        found = enclose(function, low[None], high[None])
        for share in (0.0, 1.0, *rng.random(3)):
            at = np.clip(low + share * (high - low), low, high)
            jet = function.jet(at[None])
            for value, part in zip((jet.value, jet.gradient[0], jet.hessian[0, 0]), found.on_line, strict=True):
                room = 2e-13 * np.abs(value) + 1e-290  # of the value itself, which is rounded too
                known = np.isfinite(value)
                assert (part.low - room <= value)[known].all()
                assert (value <= part.high + room)[known].all()


def test_points_of_random_boxes_on_the_plane_lie_inside():
    rng = np.random.default_rng(0)
    for text in ("log(1+exp(-7*x*y))", "x**2*y-3*tanh(x*y)", "exp(-(x-0.3*y)**2)*cos(y)"):
        function = parse(text)
        low = rng.normal(size=(2, 300)) * 2
        high = low + np.abs(rng.normal(size=(2, 300))) * 10.0 ** rng.uniform(-6, 0, 300)
        found = enclose(function, low, high)
        for _ in range(4):
            jet = function.jet(low + rng.random((2, 300)) * (high - low))
            pairs = [(jet.value, found.value), *((jet.gradient[i], found.gradient[i]) for i in range(2))]
            pairs += [(jet.hessian[key], part) for key, part in found.hessian.items()]
            for value, part in pairs:
                assert (part.low - 1e-12 * (1 + np.abs(value)) <= value).all()
                assert (value <= part.high + 1e-12 * (1 + np.abs(value))).all()


@settings(max_examples=200, deadline=None, derandomize=True)
@given(*[st.floats(-1e300, 1e300)] * 4, st.floats(0, 1), st.floats(0, 1))
def test_arithmetic_rounds_outwards(a, b, c, d, s, t):
    from fractions import Fraction

    with np.errstate(all="ignore"):
        left = Interval(np.array([min(a, b)]), np.array([max(a, b)]))
        right = Interval(np.array([min(c, d)]), np.array([max(c, d)]))
        total, product = left + right, left * right
    for x, y in ((left.low[0], right.high[0]), (left.high[0], right.low[0]), (left.low[0], right.low[0])):
        for exact, part in ((Fraction(x) + Fraction(y), total), (Fraction(x) * Fraction(y), product)):
            assert part.low[0] == -np.inf or Fraction(float(part.low[0])) <= exact
            assert part.high[0] == np.inf or exact <= Fraction(float(part.high[0]))


def test_a_function_that_is_not_real_has_no_bounds():
    for text in ("log(w)", "sqrt(w)", "1/w", "w**-0.5"):
        found = enclose(parse(text), np.array([[-1.0]]), np.array([[1.0]]))
        assert found.gradient[0].size[0] == np.inf


def test_a_constant_is_one_exactly():
    span = np.array([[REACH]])
    assert enclose(parse("0*w"), -span, span).gradient[0].size[0] == 0
    assert enclose(parse("1e-30*exp(-(w-3)**2*1e12)"), -span, span).gradient[0].size[0] > 0


def test_an_underflow_is_no_zero():
    """e^{−800} and e^{−800}·u² are positive; their enclosures say so although floats do not."""
    found = enclose(parse("exp(a-800)*u**2"), np.array([[0.0], [1.0]]), np.array([[0.0], [1.0]]))
    assert found.value.high[0] > 0
