"""What points miss: spikes, walls, wells far away. Truths from a Markov chain on a mesh that knows where they are."""

import math
from functools import partial

import numpy as np
import pytest

from villani.errors import InputError
from villani.theory.applicable import lower_bounds, upper_bounds
from villani.theory.catalogue import named
from villani.theory.comparison import compare
from villani.theory.constants import preprint
from villani.theory.exact import solve
from villani.theory.expressions import parse
from villani.theory.extremes import Line
from villani.theory.potential import potential
from villani.theory.resolution import tail


def integral(energy, left, right, sign):
    """∫ e^{sign·U} over each cell, by four Gauss nodes."""
    points, weights = np.polynomial.legendre.leggauss(4)
    half = (right - left)[:, None] / 2
    x = (left + right)[:, None] / 2 + half * points
    return (half * np.exp(np.minimum(sign * energy(x), 700))) @ weights


def chain_constant(text, decay, at, width, size=5_000, reach=40.0):
    """C_P of a finite-volume chain, by inverse iteration; nodes crowd around `at`. Two meshes, extrapolated."""
    loss = parse(text)

    def raw(w):
        return loss(w.reshape(1, -1)).reshape(w.shape) + decay / 2 * w**2

    found = []
    for count in (size, 2 * size):
        top = np.arcsinh(2 * reach / width)
        nodes = np.union1d(np.linspace(-reach, reach, count), at + width * np.sinh(np.linspace(-top, top, count)))
        nodes = nodes[(np.abs(nodes) <= reach)]
        nodes = nodes[np.concatenate([[True], np.diff(nodes) > 1e-12])]
        least = raw(nodes).min()
        energy = partial(lambda least, w: raw(w) - least, least)
        middle = (nodes[1:] + nodes[:-1]) / 2
        mass = np.append(integral(energy, nodes[:-1], middle, -1), 0) + np.append(
            0, integral(energy, middle, nodes[1:], -1)
        )
        resistance = integral(energy, nodes[:-1], nodes[1:], 1) * mass.sum()
        mass = mass / mass.sum()
        f = (nodes - nodes @ mass) / np.sqrt(np.maximum(mass, 1e-280))  # of weight wherever a mode may live
        f = f - f @ mass
        half = np.searchsorted(np.cumsum(mass), 0.5)
        constant, before = 0.0, math.inf
        while abs(constant - before) > 1e-13 * constant:
            before = constant
            moved = mass * f
            left, right = np.cumsum(moved)[:-1], -np.cumsum(moved[::-1])[::-1][1:]
            steps = -resistance * np.where(np.arange(len(left)) < half, left, right)
            f = np.append(0, np.cumsum(steps))
            f = f - f @ mass
            constant = f**2 @ mass / (steps**2 / resistance).sum()
            f = f / math.sqrt(f**2 @ mass)
        found.append(constant)
    return found[1] + (found[1] - found[0]) / 3


@pytest.mark.parametrize(
    ("text", "decay", "at", "width"),
    [
        ("14*exp(-(w-0.7077)**2/(2*0.001**2))", 0.1, 0.7077, 0.001),  # 1639.03, not 10
        ("-12*exp(-(w-5.0051)**2/(2*0.0003**2))", 0.1, 5.0051, 0.0003),  # 33.699, not 10
        ("16*exp(-(w+1.33333)**2/(2*0.000001**2))", 0.1, -1.33333, 1e-6),
        ("5*atan(100000*(w-0.1))", 0.1, 0.1, 1e-5),
        ("10/(1+1000000*(w-0.9)**2)", 0.1, 0.9, 1e-3),
        ("exp(30*(w-2))", 0.1, 1.9, 0.05),
        ("-60*exp(-(w-30.0007)**2/(2*0.002**2))", 0.1, 30.0007, 0.002),  # far, narrow and deep
        ("-3*sqrt(0.00000001+(w-0.77)**2)", 0.5, 0.77, 1e-4),
    ],
)
def test_narrow_features_are_found_and_the_digits_are_right(text, decay, at, width):
    truth = solve(potential(text, weight_decay=decay, beta=1.0), sobolev=False)
    assert (truth.status, truth.why) == ("certified", "")
    assert truth.error < 3e-8
    assert truth.poincare == pytest.approx(chain_constant(text, decay, at, width), rel=2e-7)
    assert truth.floor <= truth.poincare


def test_a_spike_turns_consistent_into_refuted():
    case = potential("14*exp(-(w-0.7077)**2/(2*0.001**2))", weight_decay=0.1, beta=1.0)
    comparison = compare([*upper_bounds(case)[0], *lower_bounds(solve(case, sobolev=False))])
    assert [c.id for c in comparison.refuted] == ["C8"]
    assert comparison.failed == ()


def test_a_theorem_is_not_refuted_where_a_search_missed_a_spike():
    """C2 of a convex loss with a spike: intervals see that it is not convex, and drop the bound."""
    text = "log(1+exp(-2*w))+10*exp(-(w-0.5021)**2/(2*0.0009**2))"
    case = potential(text, weight_decay=0.25, beta=1.0)
    truth = solve(case, sobolev=False)
    assert truth.poincare == pytest.approx(chain_constant(text, 0.25, 0.5021, 0.0009), rel=2e-7)
    upper, missing = upper_bounds(case)
    assert "C2" in {gone.id for gone in missing}
    assert compare([*upper, *lower_bounds(truth)]).refuted == ()
    spike = Line(case).concavity
    assert spike.bound == pytest.approx(10 / 0.0009**2, rel=1e-2)
    assert spike.seen <= spike.bound


@pytest.mark.parametrize(
    ("text", "options", "fragment"),
    [
        ("-5000*exp(-(w-5000)**2/(2*0.3**2))", {}, "a well near 5000"),
        ("sin(10000*w)", {}, "varies too fast"),
        ("-9*exp(-(x-0.93*y-0.113)**2/(2*0.004**2))", {"weight_decay": 0.5}, "2-D"),
        ("-2000*exp(-((x-50)**2+(y-0.3)**2)/(2*0.1**2))", {"weight_decay": 0.5}, r"near \(50"),
        ("w", {"parameters": {"a": math.nan}}, "a=nan"),
        ("w", {"parameters": {"a": math.inf}}, "a=inf"),
        ("1e999*w", {}, "not finite"),
        ("log(cosh())", {}, "one argument"),
    ],
)
def test_what_cannot_be_resolved_is_refused_in_one_line(text, options, fragment):
    with pytest.raises(InputError, match=fragment) as refused:
        solve(potential(text, **{"weight_decay": 0.1, "beta": 1.0, **options}), sobolev=False)
    assert "\n" not in str(refused.value)


def test_a_trench_on_the_plane_is_found_and_no_plane_is_called_certified():
    """Width 0.004, depth 9: the product of a line and a Gaussian, 2.2723 instead of 2."""
    plane = solve(potential("-9*exp(-(x-0.3)**2/(2*0.004**2)) + 0*y", weight_decay=0.5, beta=1.0))
    line = solve(potential("-9*exp(-(w-0.3)**2/(2*0.004**2))", weight_decay=0.5, beta=1.0), sobolev=False)
    assert plane.status == "estimated"
    assert plane.poincare == pytest.approx(line.poincare, rel=1e-6)
    assert 0.5 * line.poincare < plane.floor < line.poincare


def test_a_plane_refutes_by_its_certified_floor_alone(truths):
    truth = truths("ce2")
    assert truth.status == "estimated"
    assert preprint(10, 1, 2).value < truth.floor < truth.poincare
    case = named("ce2")
    comparison = compare([*upper_bounds(case.potential, case.proved)[0], *lower_bounds(truth)])
    assert [c.id for c in comparison.refuted] == ["C8"]
    certified = [c for c in comparison.constants if c.direction == "lower" and c.status == "certified"]
    assert [c.id for c in certified] == ["C9"]


def test_a_radial_shell_that_points_miss_is_no_gaussian():
    """Its gradient underflows to 0 at every point that is looked at; the spike makes C_P finite but not 1/(βλ)."""
    case = potential("-3*exp(-(r-1.0051)**2/(2*0.02**2))", weight_decay=1.0, beta=1.0, dimension=2, shape="radial")
    assert not case.constant
    truth = solve(case)
    assert truth.log_sobolev is None
    assert potential("0*r", weight_decay=1.0, beta=1.0, dimension=2, shape="radial").constant
    assert truth.status == "certified"


def test_tails_of_a_gaussian_against_their_closed_forms():
    """U = w²/2 beyond b = 3: ∫_b^∞ e^{−U}/e^{−U(b)} is Mills' ratio, and A lies within Muckenhoupt's bounds."""
    found = tail(potential("0*w", weight_decay=1.0, beta=1.0), 3.0, 1, 1.0)
    x = np.linspace(3, 14, 400_001)
    step = x[1] - x[0]
    after = np.cumsum(np.exp(-(x**2) / 2)[::-1])[::-1] * step
    before = np.cumsum(np.exp(x**2 / 2)) * step
    assert after[0] * math.exp(4.5) <= found.mass * (1 + 1e-4) <= 2 * after[0] * math.exp(4.5)
    assert (before * after).max() <= found.hardy * (1 + 1e-3)
    assert found.trouble == 3.0
    heavy = tail(potential("sqrt(1+w**2)", weight_decay=0.0, beta=1.0), 40.0, 1, 10.0)
    assert (
        1 <= heavy.hardy <= 4.01
    )  # of an exponential tail it is 1; its slope was enclosed on cells as wide as its distance
