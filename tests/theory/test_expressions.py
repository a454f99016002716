"""The small grammar: derivatives against finite differences, stability, and what it refuses."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from villani.errors import InputError
from villani.theory.enclosures import enclose
from villani.theory.expressions import FUNCTIONS, parse

POINTS = np.array([[0.3, -0.7, 1.9, 0.05], [1.1, 0.4, -0.8, 2.0]])

SMOOTH = [
    "log(1+exp(-3*x*y))", "x**4/4 - x*y + sqrt(1+y**2)", "sin(x)*cos(y) - tanh(x+2*y)", "atan(x*y) + erf(x) / (2+y**2)",
    "logsumexp(x, y, x*y, 0.5)", "-log(cosh(2*x-y)) + softplus(y)*sigmoid(x)", "exp(-x**2)*cosh(y) + sinh(x)/3",
    "log(exp(x)+exp(2*y)+3)", "1/(1+exp(-x)) - +y**3",
]  # fmt: skip


@pytest.mark.parametrize("text", SMOOTH)
def test_derivatives_equal_finite_differences(text):
    function = parse(text)
    jet = function.jet(POINTS)
    step = 1e-5
    for i in range(2):
        shift = np.zeros((2, 1))
        shift[i] = step
        above, below = function.jet(POINTS + shift), function.jet(POINTS - shift)
        assert jet.gradient[i] == pytest.approx((above.value - below.value) / (2 * step), rel=1e-7, abs=1e-8)
        assert jet.hessian[i] == pytest.approx((above.gradient - below.gradient) / (2 * step), rel=1e-7, abs=1e-8)
    assert jet.hessian == pytest.approx(jet.hessian.swapaxes(0, 1), abs=1e-15)


def test_values_equal_python():
    values = {"x": 0.3, "y": 1.1}
    for text in SMOOTH[:3]:
        expected = eval(text, {"__builtins__": {}}, {**vars(math), **values})
        assert parse(text)(POINTS[:, :1])[0] == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_every_function_has_its_derivatives(name):
    x, step = np.array([0.31, 0.77, 1.9]), 1e-5
    value, slope, bend = FUNCTIONS[name](x)
    above, below = FUNCTIONS[name](x + step), FUNCTIONS[name](x - step)
    assert slope == pytest.approx((above[0] - below[0]) / (2 * step), rel=1e-7, abs=1e-8)
    assert bend == pytest.approx((above[1] - below[1]) / (2 * step), rel=1e-7, abs=1e-8)
    assert value.shape == x.shape


def test_logarithms_of_exponentials_do_not_overflow():
    jet = parse("log(1+exp(-a*x))", {"a": 1e3}).jet(np.array([[-50.0, 50.0]]))
    assert jet.value == pytest.approx([5e4, 0.0])
    assert jet.gradient[0] == pytest.approx([-1e3, 0.0])
    assert parse("-log(cosh(x))")(np.array([[1e4]])) == pytest.approx(-1e4 + math.log(2))


def test_equal_expressions_are_equal():
    assert parse("a*w", {"a": 2}) == parse("a*w", {"a": 2.0})
    assert parse("a*w", {"a": 2}) != parse("a*w", {"a": 3})
    assert len({parse("a*w", {"a": 2}), parse("a*w", {"a": 2})}) == 1


def test_parameters_are_not_coordinates():
    assert parse("a*w**2 + pi", {"a": 2}).variables == ("w",)
    assert parse("3").variables == ("w",)
    assert parse("b*a*w").variables == ("a", "b", "w")


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ("__import__('os').system('ls')", "not arithmetic"),
        ("__import__('os')", "unknown function __import__"),
        ("w.__class__", "Attribute"),
        ("[w for w in ()]", "ListComp"),
        ("(lambda: w)()", "not arithmetic"),
        ("w if w else 1", "IfExp"),
        ("w**w", "exponent"),
        ("w**9**9**9**9", "no finite number"),
        ("1" + "0" * 400 + "*w", "not readable"),
        ("w^2", "write **"),
        ("1j*w", "not a real number"),
        ("True*w", "not a real number"),
        ("'w'", "Constant"),
        ("exp(w, w)", "one argument"),
        ("exp(x=w)", "one argument"),
        ("exp + w", "is a function"),
        ("foo(w)", "unknown function foo"),
        ("log(1+exp(w)", "not readable"),
        ("", "not readable"),
        ("w = 3", "not readable"),
        ("w" * 3000, "at most"),
        ("(" * 900 + "w" + ")" * 900, "not readable"),
        ("-" * 1900 + "w", "inside one another"),
    ],
)
def test_what_is_not_arithmetic_is_refused_in_one_line(text, fragment):
    with pytest.raises(InputError, match=r"^(?!.*\n)") as refused:
        parse(text)
    assert fragment in str(refused.value)
    assert len(str(refused.value)) < 400


@pytest.mark.parametrize("pieces", [("{}+w", 299), ("w-({})", 150), ("1/({})", 150), ("-{}", 299), ("sin({})", 190)])
def test_what_is_nested_as_deep_as_may_be_is_evaluated_enclosed_and_compared(pieces):
    form, depth = pieces
    text = "w"
    for _ in range(depth):
        text = form.format(text)

    def from_below(frames):
        if frames:
            return from_below(frames - 1)
        function = parse(text)
        assert function == parse(text)
        assert hash(function) == hash(parse(text))
        low = np.full((1, 1), 0.4)
        box = enclose(function, low, low + 0.2).value
        return function(low + 0.1)[0], box.low[0], box.high[0]

    value, low, high = from_below(150)  # calls of a program about it
    assert not value < low
    assert not value > high


@pytest.mark.parametrize("count", [301, 350, 400, 600, 990])
def test_what_is_nested_deeper_is_refused(count):
    with pytest.raises(InputError, match="more than 300 operations inside one another"):
        parse("+".join(["w"] * count))


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="wx01.+-*/()**exploginsqrt, _'[]{}:;=<>&|^%@#\\\n", max_size=60))
def test_any_text_is_a_function_or_one_line(text):
    try:
        function = parse(text)
    except InputError as error:
        assert "\n" not in str(error)  # noqa: PT017
    else:
        assert function(np.full((len(function.variables), 3), 0.5)).shape == (3,)
