"""Laws on a line: log-Sobolev constants that are known, boxes that widen, digits as they are asked for."""

import math

import pytest

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
    monkeypatch.setattr(exact_line, "first_gap", lambda _: 0.748681)  # six digits of 0.748681672…
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
