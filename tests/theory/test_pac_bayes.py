"""Risk bounds: printed values, closed forms, and violation rates over thousands of synthetic data sets."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from villani.errors import InputError
from villani.theory.constants import Smoothing
from villani.theory.pac_bayes import (
    bernstein,
    bernstein_rates,
    best,
    catoni,
    empirical_bernstein,
    held_out,
    hoeffding,
    kl_inverse,
    linear,
    linear_rates,
    maurer,
    mcallester,
    monte_carlo,
    weaken,
)

SETS, DELTA = 2000, 0.1


def allowed(delta=DELTA, sets=SETS):
    """δ and four standard errors of a frequency."""
    return delta + 4 * math.sqrt(delta * (1 - delta) / sets)


def test_t24():
    for bound, printed in (
        (maurer(0.1, 1000, 50, 0.05), 0.230040655), (mcallester(0.1, 1000, 50, 0.05), 0.269030703),
        (catoni(0.1, 1000, 50, 0.05, 1.0), 0.224429682), (linear(0.1, 1000, 50, 0.05, 300.0), 0.314152441),
    ):  # fmt: skip
        assert bound.value == pytest.approx(printed, abs=5e-10)
        assert bound.excess == pytest.approx(bound.value - 0.1)


def test_t25_smoothing_has_the_range_and_the_loss_stays_in_it():
    smoothing = Smoothing(50257, 0.1)
    assert smoothing.oscillation == pytest.approx(13.0221319, abs=5e-8)
    assert smoothing.loss(0.0) == pytest.approx(smoothing.highest)
    assert smoothing.loss(1.0) == pytest.approx(smoothing.lowest)


@given(st.floats(0, 1), st.floats(0, 5))
def test_kl_inverse_is_an_inverse(risk, budget):
    r = kl_inverse(risk, budget)
    assert risk <= r <= 1
    if budget > 0 and 0 < risk < r < 1 - 1e-9:
        kl = risk * math.log(risk / r) + (1 - risk) * math.log((1 - risk) / (1 - r))
        assert kl == pytest.approx(budget, rel=1e-6, abs=1e-9)


@given(st.floats(0.01, 0.99), st.floats(0, 300), st.floats(0.5, 20), st.floats(-3, 3))
@settings(max_examples=50)
def test_a_shifted_and_stretched_loss_has_the_shifted_and_stretched_bound(risk, kl, span, lowest):
    for bound, more in (
        (maurer, ()), (mcallester, ()), (catoni, (0.7,)),
    ):  # fmt: skip
        unit = bound(risk, 500, kl, 0.05, *more).value
        scaled = bound(lowest + span * risk, 500, kl, 0.05, *more, span=span, lowest=lowest).value
        assert scaled == pytest.approx(lowest + span * unit, rel=1e-9, abs=1e-9)
    unit = linear(risk, 500, kl, 0.05, 100.0).value
    scaled = linear(lowest + span * risk, 500, kl, 0.05, 100.0 / span, span=span, lowest=lowest).value
    assert scaled == pytest.approx(lowest + span * unit, rel=1e-9, abs=1e-9)


def test_a_grid_costs_a_logarithm_and_loses_little():
    n, kl, span = 10**6, 800.0, 13.0
    ideal = span * math.sqrt((kl + math.log(1 / 0.05)) / (2 * n))
    rates = linear_rates(n, span)
    found = best(linear(5.0, n, kl, 0.05 / len(rates), beta, span=span, tokens=True) for beta in rates)
    assert ideal < found.excess < 1.02 * ideal
    assert found.choice in rates
    assert "observed contexts" in found.about


def test_bernstein_gains_where_losses_spread_less_than_they_could():
    """Optimum near √(2V(KL + ln 1/δ)/m): at V = 7 and Δ = 13, 2.4 times less than Hoeffding's."""
    m, kl, reach, second = 10**7, 500.0, 13.0, 7.0
    rates = bernstein_rates(reach)
    found = best(
        bernstein(5.0, second, m, kl, 0.05 / len(rates), rate, reach=reach, highest=13.1) for rate in rates
    )  # fmt: skip
    ideal = math.sqrt(2 * second * (kl + math.log(len(rates) / 0.05)) / m)
    assert ideal < found.excess < 1.1 * ideal
    flat = best(linear(5.0, m, kl, 0.05 / 32, beta, span=13.0, tokens=True) for beta in linear_rates(m, 13.0))
    assert found.excess < 0.5 * flat.excess


@given(st.floats(-1, 40), st.floats(0, 0.999))
def test_the_inequality_behind_bernstein(xi, x):
    """exp(xξ − ψ(x)ξ²) ≤ 1 + xξ for ξ ≥ −1, 0 ≤ x < 1."""
    psi = -math.log1p(-x) - x
    assert math.exp(x * xi - psi * xi**2) <= (1 + x * xi) * (1 + 1e-12) + 1e-15


# Coverage: how often a bound fails over data sets, with posteriors that chase the data


def posterior(losses, sharpness):
    """Gibbs law over hypotheses from each data set's empirical risks (S, H), and its KL to the uniform prior."""
    weights = np.exp(-sharpness * (losses - losses.min(axis=1, keepdims=True)))
    weights /= weights.sum(axis=1, keepdims=True)
    kl = (weights * np.log(np.maximum(weights, 1e-300) * losses.shape[1])).sum(axis=1)
    return weights, kl


def failures(bound, risks, truths, kls):
    return np.mean([truth > bound(risk, kl) for risk, truth, kl in zip(risks, truths, kls, strict=True)])


@pytest.mark.parametrize("sharpness", [5.0, 60.0])
def test_coverage_with_independent_documents(sharpness):
    n, generator = 40, np.random.default_rng(0)
    true = generator.uniform(0.2, 0.5, size=12)
    empirical = generator.binomial(n, true, size=(SETS, 12)) / n
    weights, kl = posterior(empirical, sharpness)
    risks, truths = (weights * empirical).sum(axis=1), weights @ true
    for bound in (
        lambda risk, k: maurer(risk, n, k, DELTA).value,
        lambda risk, k: mcallester(risk, n, k, DELTA).value,
        lambda risk, k: catoni(risk, n, k, DELTA, 0.8).value,
        lambda risk, k: linear(risk, n, k, DELTA, 20.0).value,
        lambda risk, k: best(linear(risk, n, k, DELTA / 8, b) for b in linear_rates(n, 1.0, 8)).value,
    ):
        assert failures(bound, risks, truths, kl) <= allowed()


def test_coverage_would_be_lost_without_the_complexity():
    """The same simulation tells a bound that forgets KL and δ from one that does not."""
    n, generator = 40, np.random.default_rng(0)
    empirical = generator.binomial(n, 0.4, size=(SETS, 12)) / n
    weights, kl = posterior(empirical, 60.0)
    risks = (weights * empirical).sum(axis=1)
    assert failures(lambda risk, k: risk, risks, np.full(SETS, 0.4), kl) > 0.9
    assert failures(lambda risk, k: risk + 0.05, risks, np.full(SETS, 0.4), kl) > allowed()


def dependent_losses(generator, sets, m, hypotheses):
    """Losses in [0, 1] whose conditional means follow the past; (S, H) empirical risks, true conditional ones, V̂."""
    state = np.zeros((sets, 1))
    quality = np.linspace(0.2, 0.4, hypotheses)
    sums = np.zeros((3, sets, hypotheses))
    for _ in range(m):
        mean = np.clip(quality + 0.3 * state, 0.0, 1.0)
        loss = (generator.random((sets, hypotheses)) < mean).astype(float)
        sums += loss, mean, (loss - 0.3) ** 2
        state = loss[:, :1] * 0.8  # the text goes on from what it was
    return sums / m


@pytest.mark.parametrize("sharpness", [10.0, 200.0])
def test_coverage_of_token_bounds_with_dependent_tokens(sharpness):
    m = 60
    empirical, conditional, second = dependent_losses(np.random.default_rng(1), SETS, m, 10)
    weights, kl = posterior(empirical, sharpness)
    risks, truths, spread = ((weights * x).sum(axis=1) for x in (empirical, conditional, second))
    assert failures(lambda r, k: linear(r, m, k, DELTA, 25.0, tokens=True).value, risks, truths, kl) <= allowed()
    rates = bernstein_rates(0.7, 6)
    fails = [
        truth > best(bernstein(r, v, m, k, DELTA / 6, t, reach=0.7, highest=1.0) for t in rates).value
        for r, truth, k, v in zip(risks, truths, kl, spread, strict=True)
    ]
    assert np.mean(fails) <= allowed()
    forgetful = [truth > r for r, truth in zip(risks, truths, strict=True)]
    assert np.mean(forgetful) > 0.3


def test_coverage_of_the_path_bound():
    """Noisy descent on data, one realised path each: the bound on the θ that came out, ln dQ/dP in place of KL."""
    generator, m, steps, span = np.random.default_rng(2), 30, 15, 1.0
    rate, noise, share, sharp = 0.5, 0.5, 0.5, 3.0

    def losses(theta):  # of the labels 1 and 0
        p = 1 / (1 + np.exp(-sharp * theta))
        return 1 - p, p

    def slope(theta, ones):  # of the empirical risk
        p = 1 / (1 + np.exp(-sharp * theta))
        return sharp * p * (1 - p) * (1 - 2 * ones)

    ones = generator.binomial(m, share, size=SETS) / m
    theta, ratio = generator.normal(size=SETS), np.zeros(SETS)
    for _ in range(steps):
        xi, push = generator.normal(size=SETS), rate * 8 * slope(theta, ones)
        ratio += push**2 / (2 * noise**2) - push * xi / noise
        theta = 0.9 * theta - push + noise * xi
    one, zero = losses(theta)
    risks, truths = ones * one + (1 - ones) * zero, share * one + (1 - share) * zero
    weights = np.exp(-ratio)  # dP/dQ, of mean 1 under Q
    assert abs(weights.mean() - 1) < 4 * weights.std() / SETS**0.5
    assert ratio.mean() > 0.3  # training did something
    bound = lambda r, k: linear(r, m, k, DELTA, 20.0, span=span, tokens=True).value
    assert failures(bound, risks, truths, ratio) <= allowed()
    assert failures(lambda r, k: r, risks, truths, ratio) > 0.4


def test_coverage_of_monte_carlo_limits():
    generator = np.random.default_rng(3)
    for count in (1, 60):
        draws = generator.beta(2, 5, size=(SETS, count))
        mean = 2 / 7
        assert np.mean([hoeffding(d.mean(), count, DELTA, 1.0) < mean for d in draws]) <= allowed()
        assert np.mean([monte_carlo(d, DELTA, span=1.0, lowest=0.0) < mean for d in draws]) <= allowed()
        if count > 1:
            assert np.mean([empirical_bernstein(d, DELTA, 1.0) < mean for d in draws]) <= allowed()
    assert monte_carlo(np.full(1000, 0.3), 0.01, span=1.0, lowest=0.0) < hoeffding(0.3, 1000, 0.01, 1.0)


def test_held_out_is_the_bound_without_complexity():
    rates = bernstein_rates(10.0)
    found = held_out(5.0, 7.0, 10**5, 0.05, reach=10.0, highest=13.0)
    assert found.value == min(
        bernstein(5.0, 7.0, 10**5, 0.0, 0.05 / len(rates), t, reach=10.0, highest=13.0).value for t in rates
    )
    assert found.delta == 0.05
    assert weaken(found, "statistical", 0.01).delta == pytest.approx(0.06)


def test_no_bound_is_above_the_range():
    assert linear(0.5, 10, 1e6, 0.05, 1.0).value == 1.0
    assert mcallester(2.0, 10, 1e6, 0.05, span=3.0, lowest=1.0).value == 4.0
    assert catoni(0.5, 10, 1e6, 0.05, 1.0).value == 1.0
    assert bernstein(5.0, 7.0, 100, 1e6, 0.05, 0.01, reach=10.0, highest=13.0).value == 13.0


@pytest.mark.parametrize(
    ("call", "fragment"),
    [
        (lambda: maurer(0.1, 7, 1.0, 0.05), "n=7"),
        (lambda: maurer(0.1, 10, -1.0, 0.05), "kl=-1"),
        (lambda: maurer(1.1, 10, 1.0, 0.05), "risk=1.1"),
        (lambda: mcallester(0.1, 10, 1.0, 0.0), "delta=0"),
        (lambda: catoni(0.1, 10, 1.0, 0.05, 0.0), "rate=0"),
        (lambda: linear(0.1, 10, math.inf, 0.05, 1.0), "kl=inf"),
        (lambda: linear(0.1, 10, 1.0, 0.05, -1.0), "beta=-1"),
        (lambda: linear(0.1, 10, 1.0, 0.05, 1.0, span=0.0), "span=0"),
        (lambda: bernstein(1.0, 1.0, 10, 1.0, 0.05, 0.2, reach=5.0, highest=6.0), "tB < 1"),
        (lambda: bernstein(1.0, -1.0, 10, 1.0, 0.05, 0.1, reach=5.0, highest=6.0), "second_moment"),
        (lambda: empirical_bernstein([0.5], 0.05, 1.0), "n=1"),
        (lambda: monte_carlo([0.5, 1.5], 0.05, span=1.0, lowest=0.0), "expected"),
    ],
)
def test_bad_input(call, fragment):
    with pytest.raises(InputError, match=fragment):
        call()
