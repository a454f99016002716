"""What would rescue criterion (iv): the λ of the guard is the one at which the audit's s is no longer refuted."""

import math
import re

import pytest

from tests.criteria.test_orbits import binary, factors
from villani.criteria.differential import audit_differential
from villani.criteria.rescue import RESCUES, rescues
from villani.objective.objective import Objective


def audited(temperature, *values, weight_decay=0.1):
    return audit_differential(factors(binary(0.5), *values, weight_decay=weight_decay), temperature, search=0)


def test_the_guard_is_where_the_threshold_meets_the_temperature():
    """s* = 4λ² of two factors at t = 0: at s = 0.3 at least λ = √0.075 is needed, and that is told rounded down."""
    refuted = audited(0.3, 0.0, 3.0)
    told = rescues(refuted)
    assert told.keys() == {"more weight decay (guard)", *RESCUES}
    stated = float(re.search(r"λ ≥ ([\d.]+)", told["more weight decay (guard)"])[1])
    exact = math.sqrt(0.3 / 4)
    assert exact * 0.99 < stated <= exact
    assert audited(0.3, 0.0, 3.0, weight_decay=exact).refuted_above == pytest.approx(0.3)


def test_no_decay_helps_against_an_orbit_of_theorem_d():
    text = rescues(audited(0.1, 3.0, 3.0, 0.0))["more weight decay (guard)"]
    assert text.startswith("At s = 0.1: no λ helps")


def test_below_the_threshold_no_orbit_lets_psi_fall():
    text = rescues(audited(1e-4, 1.0, 3.0))["more weight decay (guard)"]
    assert "no orbit that was confirmed lets Ψ fall at this s" in text


def test_nothing_to_rescue_where_nothing_is_refuted():
    alone = factors(lambda t: (t - 1) ** 2, 0.5, weight_decay=0.1)
    assert isinstance(alone, Objective)
    found = audit_differential(alone, 0.1, search=0)
    assert found.outcome.verdict == "not refuted"
    assert rescues(found) == {}
    assert found.refuted_above == pytest.approx(math.inf)
