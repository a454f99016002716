"""Laws on a line: log-Sobolev constants that are known, boxes that widen, digits as they are asked for."""

import math

import numpy as np
import pytest
from numpy.polynomial import hermite_e
from scipy.optimize import minimize

from villani.errors import InputError
from villani.theory import exact_line
from villani.theory.catalogue import named
from villani.theory.exact import solve
from villani.theory.potential import potential


@pytest.mark.parametrize(
    ("text", "decay", "expected"),
    [("log(1+exp(w))-0.8*w", 0.1, 1 / 0.1), ("c*w**2/2", 0.1, 1 / 3.1), ("0*w", 0.5, 2.0), ("sqrt(1+w**2)", 0.2, 5.0)],
)
def test_log_sobolev_constants_that_are_known(text, decay, expected):
    """Convex L of bounded slope: C2 says 1/(βλ), and tests carried to infinity reach it."""
    truth = solve(potential(text, weight_decay=decay, beta=2.0, parameters={"c": 3.0}))
    assert truth.log_sobolev == pytest.approx(expected / 2, rel=1e-6)
    assert truth.log_sobolev >= truth.poincare * (1 - 1e-9)


def test_log_sobolev_constants_whose_limit_at_infinity_is_not_known():
    """An oscillating L has no U″(∞): what is said is variational, and above C_P; heavy tails have no constant."""
    waves = solve(potential("sin(3*w)", weight_decay=0.8, beta=0.5))
    assert "oscillates" in waves.log_sobolev_note
    assert (1 - 1e-9) * waves.poincare <= waves.log_sobolev <= math.exp(0.5 * 2) / (0.5 * 0.8)  # C3
    heavy = solve(potential("sqrt(1+w**2)", weight_decay=0.0, beta=3.0), digits=1)
    assert heavy.log_sobolev is None
    assert "infinite" in heavy.log_sobolev_note


def test_a_box_that_is_too_small_is_widened(monkeypatch):
    """From 3 nats the bound on what lies beyond widens the box until eight digits are certified."""
    whole = solve(named("mixture").potential, sobolev=False)
    monkeypatch.setattr(exact_line, "DEPTHS", (3.0, 3.0))
    found = solve(named("mixture").potential, sobolev=False)
    assert found.status == "certified"
    assert found.poincare == pytest.approx(whole.poincare, rel=found.error + whole.error)


def test_digits_are_what_was_asked_for(monkeypatch):
    case = named("double-well", beta=4.0).potential
    truth = solve(case, digits=2, sobolev=False)
    assert (truth.status, truth.digits) == ("certified", 2)
    assert 1e-9 < truth.error < 5e-3
    assert solve(case, digits=11, sobolev=False).status == "estimated"  # beyond what double precision can prove
    found = {18: exact_line.gaps, 14: lambda _: np.array([0.748681])}  # six digits of 0.748681672…, of the coarser mesh
    monkeypatch.setattr(exact_line, "gaps", lambda of: found[len(of.mesh.reference.nodes)](of))
    with pytest.raises(InputError, match="fewer digits"):
        solve(case, digits=9, sobolev=False)
    with pytest.raises(InputError, match="digits=13"):
        solve(case, digits=13)


@pytest.mark.parametrize("dimension", [1, 3])
def test_nothing_is_told_beyond_a_gap_that_rounding_hides(dimension):
    """Two wells 40 nats deep, by themselves and beside two Gaussian coordinates, whose gap need not be the second."""
    truth = solve(potential("20*(w**2-1)**2", weight_decay=1e-3, beta=2.0, dimension=dimension), sobolev=False)
    assert len(truth.gaps) == 1
    assert truth.poincare == pytest.approx(1 / truth.gaps[0])
    milder = solve(potential("5*(w**2-1)**2", weight_decay=1e-3, beta=2.0, dimension=dimension), sobolev=False)
    assert len(milder.gaps) == 3
    assert (milder.gaps[1] == pytest.approx(2e-3)) == (dimension == 3)


@pytest.mark.parametrize(("text", "decay"), [
    ("20*exp(-2*w**2)-48*exp(-(w-20)**2/2)", 1.0),  # the second gap, 9e-4, is that of a well that the box leaves out
    ("sqrt(1+w**2)+14*exp(-w**2)", 0.0),  # beyond the first there is no other: from 1/4 on the spectrum is continuous
])  # fmt: skip
def test_nothing_is_told_that_may_lie_outside_the_box(text, decay):
    """The box is as wide as the first gap, which is small, needs; what is left out may have gaps before its next."""
    truth = solve(potential(text, weight_decay=decay, beta=1.0), sobolev=False)
    assert truth.status == "certified"
    assert len(truth.gaps) == 1


@pytest.mark.parametrize("frequency", [0.31, 1.0, 1.282, 1.4, 2.9])
def test_no_log_sobolev_constant_is_above_a_theorem(frequency):
    """U″ oscillates at infinity; at 1.282 six points looked like a limit, and C_LS = 18.6 stood beside C3's 10.8."""
    truth = solve(potential(f"0.04*cos({frequency}*w)", weight_decay=0.1, beta=1.0))
    assert truth.poincare * (1 - 1e-9) <= truth.log_sobolev <= math.exp(0.08) / 0.1


@pytest.mark.parametrize(("text", "decay", "beta"), [
    ("(w**2-1)**2/4+0.02*w", 0.0, 4.0), ("w**4/4+w**2/2+0.1*w**3", 0.0, 1.0), ("log(1+exp(-3*w))", 0.1, 1.0),
])  # fmt: skip
def test_log_sobolev_quotients_are_climbed_to_their_top(text, decay, beta):
    """Against polynomials in place of modes, from many starts: where alternating creeps, it stopped at C_P before."""
    case = potential(text, weight_decay=decay, beta=beta)
    x = np.linspace(-14, 14, 8001)
    weights = np.exp(-(case.energy(x[None]) - case.energy(x[None]).min()))
    weights /= weights.sum()
    scale = 3 / float(np.sqrt(weights @ x**2))
    basis = hermite_e.hermevander(x * scale, 14) / np.array([math.sqrt(math.factorial(k)) for k in range(15)])
    slopes = np.column_stack(
        [np.zeros(len(x)), basis[:, :-1] * scale * np.sqrt(np.arange(1, 15))]
    )  # He_k′ = k He_{k−1}

    def fallen(at):
        f, steep = basis @ at, slopes @ at
        mean, energy = weights @ f**2, weights @ steep**2
        excess = np.log(np.maximum(f**2 / mean, 1e-290))
        quotient = (weights @ (f**2 * excess)) / (2 * energy)
        return -quotient, -(basis.T @ (weights * f * excess) - 2 * quotient * slopes.T @ (weights * steep)) / energy

    rng = np.random.default_rng(0)
    starts = [np.eye(15)[0] + 0.3 * rng.normal(size=15) / np.arange(1, 16) ** 2 for _ in range(4)]
    other = max(-minimize(fallen, start, jac=True, method="BFGS").fun for start in starts)
    truth = solve(case)
    assert truth.log_sobolev >= other * (1 - 1e-6)
    assert "not converged" not in truth.log_sobolev_note
