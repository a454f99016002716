"""Ranking, refutation, looseness, and the sentence about a model."""

import math

import pytest

from villani.errors import InputError
from villani.theory.comparison import compare, model_constants, powers
from villani.theory.constants import (
    Constant,
    bakry_emery,
    dissipative,
    holley_stroock,
    lipschitz,
    preprint,
    variance_quotient,
)


def statuses(constants):
    return {constant.id: constant.status for constant in compare(constants).constants}


def test_ranks_and_measures_looseness():
    upper = [holley_stroock(1, 1, 2, True), preprint(1, 1, 3), bakry_emery(1, 1, 0.5, True)]
    comparison = compare([*upper, variance_quotient(0.5, 1, "certified", "x")])
    assert [c.id for c in comparison.constants] == ["C2", "C8", "C3", "C9"]
    assert comparison.best.id == "C2"
    assert comparison.floor.id == "C9"
    assert comparison.log_looseness == pytest.approx(math.log(4))
    assert comparison.refuted == ()


def test_certified_comes_before_estimated_and_claims_are_never_used():
    assert compare([bakry_emery(1, 1, 0, False), holley_stroock(1, 1, 9, True)]).best.id == "C3"
    assert compare([bakry_emery(1, 1, 0, False), preprint(1, 1, 1)]).best.id == "C2"
    assert compare([preprint(1, 1, 1)]).best is None


def test_only_solid_and_matching_lower_bounds_refute():
    claim = preprint(10, 1, 2)  # 0.12, on log-Sobolev
    assert statuses([claim, variance_quotient(0.1617, 1, "certified", "x")])["C8"] == "refuted"
    assert statuses([claim, variance_quotient(0.1617, 1, "statistical", "x")])["C8"] == "refuted"
    assert statuses([claim, variance_quotient(0.1617, 1, "estimated", "x")])["C8"] == "as-claimed"
    assert statuses([claim, variance_quotient(0.1199, 1, "certified", "x")])["C8"] == "as-claimed"
    sobolev = Constant("truth", "C_LS", math.log(50), "lower", "log-Sobolev", "none", "certified", "")
    seventh = dissipative(10, 1, 2, 10, 0, 0, True)  # on Poincaré: a log-Sobolev constant above it is no contradiction
    assert statuses([claim, seventh, sobolev]) == {"C8": "refuted", "C7": "certified", "truth": "certified"}


@pytest.mark.parametrize("status", ["certified", "statistical", "estimated"])
def test_a_theorem_is_never_refuted_its_hypothesis_fails(status):
    """An input that was searched for missed a spike: the bound leaves the list, and is said to have failed."""
    comparison = compare([bakry_emery(1, 1, 0, False), variance_quotient(2, 1, status, "x")])
    assert [c.id for c in comparison.failed] == ["C2"]
    assert [c.id for c in comparison.constants] == ["C9"]
    assert comparison.refuted == ()
    assert comparison.best is None


def test_an_estimate_above_a_proved_bound_is_what_is_wrong():
    comparison = compare([lipschitz(1, 1, 0, True), variance_quotient(2, 1, "estimated", "x")])
    assert comparison.failed == ()
    assert comparison.best.id == "C4"


def test_gpt_neo_125m():
    """λ = 0.1 at β = 1: claimed 1.25e10, certified 4.5e6, 3.4 orders of magnitude apart (THEORY.md §3)."""
    found = model_constants(125_198_592, 0.1, 2.0, 50257, time=100.0, gradient_norms=[0.5, 2.0], curvature=0.05)
    constants = {c.id: c for c in found.comparison.constants}
    assert constants["C8"].value == pytest.approx(1.25e10, rel=2e-3)
    assert constants["C3"].value == pytest.approx(4.52e6, rel=1e-3)
    assert constants["C2"].status == constants["C4"].status == "estimated"
    assert found.comparison.best.id == "C3"
    assert found.visible == 100
    for fragment in (
        "1.26·10¹⁰",
        "4.53·10⁶",
        "3.4 orders of magnitude below",
        "8.1 orders",
        "4.7 orders",
        "0.106 nats",
    ):
        assert fragment in found.sentence


def test_curvature_beyond_the_decay_says_nothing_and_samples_may_refute():
    lower = [variance_quotient(2e10, 1, "statistical", "samples")]
    found = model_constants(125_198_592, 0.1, 2.0, 50257, curvature=3.0, lower=lower)
    # above a theorem whose hypothesis is proved, samples are wrong or of another law, and refute nothing
    assert {c.id: c.status for c in found.comparison.constants} == {
        "C3": "certified",
        "C8": "as-claimed",
        "C9": "statistical",
    }
    assert "κ = 3 ≥ λ, rules C2 out" in found.sentence
    assert "Samples of 2·10¹⁰ contradict the certified constant" in found.sentence
    lower = [variance_quotient(1e6, 1, "statistical", "samples")]
    found = model_constants(125_198_592, 0.1, 2.0, 50257, curvature=0.05, lower=lower)
    assert "the hypothesis of C2 fails" in found.sentence
    assert [c.id for c in found.comparison.failed] == ["C2"]


@pytest.mark.parametrize(
    ("log10", "shown"),
    [(math.log10(0.12), "0.12"), (math.log10(3010), "3010"), (6.65536, "4.53·10⁶"), (-7.0, "1·10⁻⁷"),
     (math.log10(4423690), "4.43·10⁶"), (11309.04, "10^11,309.1")],
)  # fmt: skip
def test_values_for_people(log10, shown):
    constant = Constant("C3", "", log10 * math.log(10), "upper", "log-Sobolev", "", "certified", "")
    assert powers(constant) == shown


@pytest.mark.parametrize(
    ("log10", "shown"), [(6.65536, "4.52·10⁶"), (math.log10(0.1299), "0.129"), (11309.09, "10^11,309.0")]
)
def test_lower_bounds_are_rounded_down(log10, shown):
    constant = Constant("C9", "", log10 * math.log(10), "lower", "log-Sobolev", "", "certified", "")
    assert powers(constant) == shown


@pytest.mark.parametrize(
    "options", [{"temperature": 0.0}, {"dimension": 0}, {"alpha": 1.0}, {"vocabulary": 1}, {"weight_decay": 0.0}]
)
def test_bad_input(options):
    asked = {"dimension": 10, "weight_decay": 0.1, "temperature": 1.0, "vocabulary": 100, "alpha": 0.1, **options}
    with pytest.raises(InputError):
        model_constants(**asked)
