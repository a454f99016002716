"""A claimed bound of s* beside the one that is found: what counts as reproduced, and what is told."""

import math

import pytest

from villani.commands.audit.claims import bound_checks, scale_checks
from villani.commands.audit.record import ThresholdRecord
from villani.criteria.orbits import Threshold
from villani.statistics import Estimate

GRADIENT, TRACE = Estimate(0.3, 0.02, 9, "statistical", 8.0), Estimate(2.0, 0.1, 9, "statistical", 8.0)


def found(value=0.2, upper=0.25, level=0.95, norm=0.1):
    return Threshold(value, upper, level, norm, GRADIENT, TRACE)


def claimed(**changes):
    """s* = (λ²‖A‖² + ‖∇_B L‖²)/Δ_B L = (0.1 + 0.3)/2."""
    fields = {"value": 0.2, "upper": 0.25, "level": 0.95, "norm_squared": 0.1, "gradient_norm_squared": GRADIENT,
              "laplacian": TRACE}  # fmt: skip
    return ThresholdRecord.model_validate(fields | changes)


def holds(claim, replayed):
    return all(check.holds for check in bound_checks(claim, replayed))


def test_what_was_found_again_holds_and_is_told_with_both_bounds():
    checks = bound_checks(claimed(), found())
    assert [check.holds for check in checks] == [True]
    assert "claimed s* < 0.25 at confidence 95%; these groups give s* < 0.25 at confidence 95%" in checks[0].sentence
    assert "refuted again for every s above that" in checks[0].sentence


@pytest.mark.parametrize(("factor", "kept"), [(1.0, True), (1.99, True), (2.01, False)])
def test_sampled_bounds_may_differ_by_two(factor, kept):
    assert holds(claimed(), found(upper=0.25 * factor)) == kept


@pytest.mark.parametrize(("factor", "kept"), [(1.0005, True), (1.01, False)])
def test_exact_bounds_may_not(factor, kept):
    assert holds(claimed(level=1.0), found(level=1.0, upper=0.25 * factor)) == kept


def test_no_bound_again_is_not_refuted_again():
    checks = bound_checks(claimed(), found(upper=math.inf))
    assert [check.holds for check in checks] == [False]
    assert "criterion (iv) is not refuted again" in checks[0].sentence


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"upper": None}, "claims no bound"),
        ({"level": 1.0}, "these groups reach less"),
        ({"upper": 0.19, "value": 0.19}, "not borne out"),
        ({"value": 0.3, "upper": 0.4}, "does not follow from the others"),
        ({"norm_squared": 0.2, "value": 0.25}, "λ²‖A‖² is 0.1 and not 0.2"),
        ({"laplacian": Estimate(9.0, 0.1, 9, "statistical", 8.0)}, "Δ_B L is 2 and not 9"),
        ({"gradient_norm_squared": Estimate(1.3, 0.02, 9, "statistical", 8.0)}, "‖∇_B L‖² is 0.3 and not 1.3"),
        ({"upper": 0.1}, "the bound lies below the estimate"),
    ],
)
def test_every_number_that_is_wrong_is_told(changes, words):
    wrong = [check.sentence for check in bound_checks(claimed(**changes), found()) if not check.holds]
    assert any(words in sentence for sentence in wrong), wrong


@pytest.mark.parametrize(
    "scales", [(), (1 + 1e-9,), (1.0, 2.0), (2.0, 2.0), (4.0, 2.0), (3.0,), (2.0, 2.0**20), (-2.0,), (0.5,)]
)
def test_scales_that_walk_nowhere_are_replaced_and_told(scales):
    [check], taken = scale_checks(scales, (2.0, 4.0), 4096.0)
    assert not check.holds
    assert taken == [2.0, 4.0]


def test_ascending_powers_of_two_are_taken():
    assert scale_checks((2.0, 4.0, 64.0), (2.0,), 4096.0) == ([], [2.0, 4.0, 64.0])
