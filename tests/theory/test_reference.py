"""THEORY.md §9, row by row, to the printed digits; the two counterexample families and their growth."""

import math

import pytest

from villani.theory import reference
from villani.theory.reference import Check, ce1_growth

ROWS = {"§2.3", "§4", "§5", *(f"T{i}" for i in range(1, 28))}


def test_every_printed_digit_is_reproduced(found):
    assert [check for check in found if not check.passes] == []
    assert {check.row for check in found} == ROWS
    assert len(found) > 100


def test_a_wrong_digit_does_not_pass():
    assert Check("", "", "0.0662591101", 0.06625911011).passes
    assert not Check("", "", "0.0662591101", 0.06625911021).passes
    assert not Check("", "", "508.40", 508.406).passes
    assert not Check("", "", "5", 5.6).passes
    assert not Check("", "", "5", float("nan")).passes


def test_both_families_refute_the_claim(found):
    value = {(check.row, check.quantity): check.computed for check in found}
    for n, power in ((15, 4), (20, 5), (30, 8)):
        assert value["§2.3", f"CE1, N = {n}: C_P/1e{power}"] * 10**power > 10 * value["§2.3", f"CE1, N = {n}: claim"]
    for a in (100, 1000):
        assert value["T19", f"C_P, a = {a}"] > value["T19", f"Var, a = {a}"] > value["T19", "claim"]
    assert value["§2.3", "CE2, ten tokens: C_P"] > 100 * value["§2.3", "CE2, ten tokens: claim"]


def test_growth_is_the_barrier():
    """ln C_P(CE1, N)/N tends to F(0) − min F over N: 0.675672 at a = 20, λ = 0.1."""
    ratio = 0.1 / 40  # σ(−z) = λ/(2a) at the minimum, z = a·y²
    z = math.log(1 / ratio - 1)
    barrier = math.log(2) - (math.log1p(math.exp(-z)) + ratio * z)
    assert barrier == pytest.approx(0.675672, abs=1e-6)
    assert ce1_growth() == pytest.approx(barrier, abs=1e-4)


def test_psi_and_critical_temperature_from_derivatives():
    loss = reference.parse("log(1+exp(x*y)) - x*y/2")
    for radius in (1.0, 7.0):
        assert reference.psi(loss, [0.0, radius], 0.1, 0.05) == pytest.approx(radius**2 * (0.2 - 0.25) - 0.2)
