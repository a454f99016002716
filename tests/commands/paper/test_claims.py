"""The preprint's claims, one by one: verdicts that follow measurements, and two that theory alone refutes."""

from types import SimpleNamespace

import numpy as np
import pytest

from tests.commands.synthetic import made
from villani.commands.paper.claims import (
    claims,
    counterexample,
    linear_gaussian_bound,
    loosening_bound,
    sentence,
)
from villani.commands.paper.record import TrendRecord
from villani.commands.recommend.record import GridPoint, OptimizerRecord
from villani.theory.catalogue import named
from villani.theory.exact import relative_entropy, solve
from villani.work.records import EstimateRecord


def record(value, sem, n=3):
    return EstimateRecord(value=value, sem=sem, n=n, interval=(value - 2 * sem, value + 2 * sem), status="statistical")


def nothing(**given):
    empty = dict.fromkeys(
        ("criteria", "landscape", "spectra", "learned", "convergence", "training", "certificates", "choices"), ()
    )
    return SimpleNamespace(**({"parameters": 100, "estimators": None} | empty | given))


def bounds(*values):
    return [SimpleNamespace(weight_decay=d, path=SimpleNamespace(value=v)) for d, v in values]


def verdict_of(found, words):
    (one,) = [c for c in claims(found) if words in c.claim]
    return one.verdict


def test_the_claimed_constant_is_refuted_on_a_line():
    found = counterexample()
    assert (found.verdict, found.status) == ("refuted", "certified")
    assert "the claim is 2." in found.measured
    assert "86.2588" in found.measured  # THEORY.md §9, T14


@pytest.mark.parametrize("decay", [0.01, 0.1, 1.0, 10.0])
def test_an_exact_bound_that_loosens(decay):
    """E_ρL + KL/β from the exact law, against the closed form."""
    one = named("linear-gaussian", weight_decay=decay, beta=100.0)
    theta = np.linspace(-2, 4, 200_001)
    weights = np.exp(-100 * (0.5 * (theta - 1) ** 2 + decay / 2 * theta**2 - 0.5 * decay / (1 + decay)))
    risk = (0.5 * (theta - 1) ** 2 * weights).sum() / weights.sum()
    entropy = relative_entropy(one.potential, solve(one.potential, sobolev=False)).value
    assert linear_gaussian_bound(decay, 100.0) == pytest.approx(risk + entropy / 100, rel=1e-6)
    assert loosening_bound().verdict == "refuted"


def test_verdicts_follow_what_was_measured():
    assert verdict_of(nothing(certificates=bounds((0.1, 6.0), (1.0, 6.5))), "λ increases.") == "refuted"
    assert verdict_of(nothing(certificates=bounds((1.0, 6.0), (0.1, 6.5))), "λ increases.") == "consistent"
    assert verdict_of(nothing(certificates=bounds((0.1, 6.0), (1.0, 6.01))), "λ increases.") == "not identifiable"

    def learned(change):
        return [
            TrendRecord(optimizer="sgd", weight_decay=0.5, seeds=3, value=record(1, 0.1), change=change),
        ]

    assert verdict_of(nothing(learned=learned(record(-0.4, 0.01))), "spectrum") == "consistent"  # the shift wins
    assert verdict_of(nothing(learned=learned(record(-0.6, 0.01))), "spectrum") == "refuted"
    assert verdict_of(nothing(learned=learned(record(-0.6, 0.1))), "spectrum") == "not identifiable"
    assert [c.experiment for c in claims(nothing())] == ["exact", "exact"]  # what was not measured is not judged
    assert "confirmed" not in sentence(claims(nothing()))


def chosen(*changes):
    """One optimiser; of every λ, the change, its sign where resolved, and what would have been seen."""
    points = [
        made(GridPoint, weight_decay=2.0**k, change=record(value, sem), resolved=resolved, detectable=0.0123)
        for k, (value, sem, resolved) in enumerate(changes)
    ]
    return nothing(choices=[made(OptimizerRecord, optimizer="adamw", points=points)])


@pytest.mark.parametrize(
    ("changes", "verdict", "words"),
    [
        ([(-0.2, 0.01, -1), (-0.5, 1.0, 0)], "consistent", "better at 1 of 2 pairs of optimiser and λ, worse at 0"),
        ([(-0.2, 0.01, -1), (-0.5, 1.0, 0)], "consistent", "Largest gain: AdamW, λ = 1, -0.2 ["),
        ([(-0.0002, 0.00001, -1), (0.5, 1.0, 0)], "consistent", "less than 0.01 nats"),
        ([(0.2, 0.01, 1), (0.3, 0.01, 1)], "refuted", "worse at 2. Lowest change: AdamW, λ = 1, +0.2 ["),
        ([(0.2, 0.01, 1), (-0.3, 1.0, 0)], "not identifiable", "One of 0.013 would have been seen"),
    ],
)
def test_generalisation_is_judged_by_seeds_and_text_and_by_how_much(changes, verdict, words):
    [one] = [c for c in claims(chosen(*changes)) if "generalisation" in c.claim]
    assert one.verdict == verdict
    assert words in one.measured
    assert ("less than" in words) == ("less than" in one.measured)


def orbit_through(decay, *walk):
    """A model where (iv) is refuted above some s; `walk`: (R, Ψ, its standard error)."""
    steps = [SimpleNamespace(scale=r, measured=record(*psi), loss_change=0.0) for r, *psi in walk]
    return SimpleNamespace(
        weight_decay=decay,
        refuted_above=0.01 * decay,
        level=0.95,
        rays=(),
        orbit=SimpleNamespace(name="an orbit", walk=steps),
    )


def test_the_fall_that_is_told_is_one_beyond_its_error():
    """Not the steepest, which may be noise; and where there is none, that is said."""
    noise = orbit_through(0.1, (1.0, -100.0, 1.0), (8.0, -1e9, 6e8))
    fall = orbit_through(1.0, (1.0, -1000.0, 2.0), (4.0, -3000.0, 400.0))
    for models, words in (
        ([noise, fall], "(λ = 1) it goes from −1000 ± 2 at R = 1 to (−3.0 ± 0.4)·10³ at R = 4 at the largest s"),
        ([noise], "Ψ falls at none beyond its own error."),
        ([orbit_through(1.0)], "at the one where it is smallest (λ = 1, an orbit)."),
    ):
        [claim] = [c for c in claims(nothing(landscape=models)) if c.claim.startswith("Ψ_s → ∞")]
        assert claim.verdict == "refuted"
        assert words in claim.measured
        assert claim.measured.endswith(("last bit.", "own error.", "an orbit)."))
