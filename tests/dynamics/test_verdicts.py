"""Promises of theory beside what a run saw: never confirmed, refuted only by what is certain."""

import math

import pytest

from villani.dynamics.convergence import Ceiling
from villani.dynamics.verdicts import MARGIN, Claim, Evidence, claims, judge
from villani.theory.constants import Constant


def claim(rate, **changes):
    return Claim("C8", math.log(rate), "as-claimed", **changes)


def seen(limit=None, **changes):
    ceilings = () if limit is None else (Ceiling("autocorrelation of u·θ", limit / 1.2, limit, 0.1 * limit, 4),)
    given = {"gap": None, "obstacle": "", "fitted": None, "time": 10.0} | changes
    return Evidence(ceilings, **given)


@pytest.mark.parametrize(
    ("promise", "run", "verdict"),
    [
        (claim(1.0), seen(0.5), "refuted"),
        (claim(1.0), seen(0.9), "consistent"),  # within the margin
        (claim(1.0), seen(5.0), "consistent"),
        (claim(1.0), seen(), "not identifiable"),
        (claim(1.0), seen(0.5, obstacle="not at equilibrium"), "not identifiable"),
        (claim(1.0), seen(fitted=0.001), "not identifiable"),  # a slow transient refutes nothing
        (claim(1.0, obstacle="another law"), seen(0.5), "not identifiable"),
        (claim(1.0), seen(gap=0.5), "refuted"),
        (claim(1.0), seen(gap=1.5), "consistent"),
        (Claim("C4", -2000.0, "certified"), seen(0.5), "consistent"),  # beyond floats
    ],
)
def test_verdicts(promise, run, verdict):
    found, sentence = judge(promise, run)
    assert found == verdict
    assert sentence.endswith(".")
    assert "confirm" not in sentence


def test_what_is_quoted_has_room_for_the_bias_of_chains():
    _, sentence = judge(claim(1.0), seen(0.5))
    assert "bounds the gap by 0.625 (95 % for all bounds of the run at once, 1.25 times for O(η) bias)" in sentence
    _, sentence = judge(claim(0.3), seen(1 / 3))
    assert "0.417" in sentence  # 5/12, rounded up


def test_a_constant_promises_the_rate_of_its_bound():
    """1/(βC), from logarithms that floats do not hold; C8 alone is no theorem."""
    for log_value, beta in ((math.log(3.0), 4.0), (2000.0, 0.5)):
        constant = Constant("C3", "log-Sobolev", log_value, "upper", "log-Sobolev", "none", "certified", "")
        promise = claims(constant, beta, prefix="for F: ")
        assert promise.log_rate == pytest.approx(-log_value - math.log(beta))
        assert promise.theorem
        assert promise.name == "for F: C3 log-Sobolev"


def test_a_theorem_is_never_refuted():
    promise = Claim("C3", 0.0, "certified", theorem=True)
    for run in (seen(0.01), seen(gap=0.01), seen(gap=0.01, status="estimated")):
        verdict, words = judge(promise, run)
        assert verdict == "not identifiable"
        assert "hypothesis" in words


@pytest.mark.parametrize("limit", [0.3, 1.0])
def test_the_margin_is_where_verdicts_change(limit):
    """Against MARGIN times an upper limit, for any promise."""
    for factor, verdict in ((1.001, "refuted"), (0.999, "consistent")):
        assert judge(claim(factor * MARGIN * limit), seen(limit))[0] == verdict


def test_an_estimated_gap_refutes_only_by_a_certified_ceiling():
    assert judge(claim(1.0), seen(gap=0.5, status="estimated"))[0] == "not identifiable"
    assert judge(claim(1.0), seen(gap=0.5, status="estimated", ceiling=0.9))[0] == "refuted"
    assert judge(claim(1.0), seen(gap=0.5, status="estimated", ceiling=1.1))[0] == "not identifiable"
