"""Rates and step counts against exact Gaussian truths."""

import math

import numpy as np
import pytest

from villani.errors import InputError
from villani.theory.rates import (
    Chain,
    GaussianLaw,
    chi_squared_at,
    diffusion_gap,
    eyring_kramers,
    gaussian_ula,
    gaussian_ula_limit,
    gibbs_quadratic,
    kl_at,
    ornstein_uhlenbeck,
)


def test_quadratic_rates():
    """T1: gap 0.1, KL rate 0.2 at λ = 0.1, β = 4."""
    assert diffusion_gap(2.5, 4) == pytest.approx(0.1)
    assert kl_at(3.0, 2.5, 4, 7.0) == pytest.approx(7 * math.exp(-0.6))
    assert chi_squared_at(3.0, 2.5, 4, 7.0) == pytest.approx(7 * math.exp(-0.6))


@pytest.mark.parametrize("start", [GaussianLaw(3.0, 2.5, 2), GaussianLaw(0.0, 9.0, 2), GaussianLaw(-1.0, 0.1, 2)])
def test_ornstein_uhlenbeck_obeys_the_kl_bound_and_meets_it_from_a_shift(start):
    decay, beta = 0.1, 4.0
    target = gibbs_quadratic(decay, beta, 2)
    for time in (0.0, 0.1, 1.0, 10.0, 100.0):
        kl = ornstein_uhlenbeck(start, decay, beta, time).kl(target)
        bound = kl_at(time, 1 / (beta * decay), beta, start.kl(target))
        assert kl <= bound * (1 + 1e-12) + 1e-15
        if start.variance == target.variance:
            assert kl == pytest.approx(bound, rel=1e-9)


def test_gaussian_ula_is_the_recursion_it_says():
    decay, beta, step = 0.7, 3.0, 0.9
    mean, variance = 2.0, 0.4
    for _ in range(5):
        mean, variance = (1 - step * decay) * mean, (1 - step * decay) ** 2 * variance + 2 * step / beta
    law = gaussian_ula(GaussianLaw(2.0, 0.4), decay, beta, step, 5)
    assert (law.mean, law.variance) == pytest.approx((mean, variance), rel=1e-13)
    for product, printed in ((0.1, 6.691423e-4), (0.5, 2.282563e-2)):
        bias = gaussian_ula_limit(1.0, 1.0, product).kl(gibbs_quadratic(1.0, 1.0))
        ratio = 1 / (1 - product / 2)
        assert bias == pytest.approx(printed, rel=5e-7)
        assert bias == pytest.approx(0.5 * (ratio - 1 - math.log(ratio)), rel=1e-12)


def test_kl_of_gaussians_by_quadrature():
    p, q = GaussianLaw(0.3, 0.5), GaussianLaw(-0.2, 1.7)
    x = np.linspace(-12, 12, 400_001)
    density = np.exp(-((x - 0.3) ** 2) / 1.0) / math.sqrt(math.pi)
    log_ratio = -((x - 0.3) ** 2) / 1.0 - 0.5 * math.log(0.5) + (x + 0.2) ** 2 / 3.4 + 0.5 * math.log(1.7)
    assert p.kl(q) == pytest.approx((density * log_ratio).sum() * (x[1] - x[0]), rel=1e-10)


@pytest.mark.parametrize("dimension", [1, 40])
@pytest.mark.parametrize("decay", [0.1, 3.0])
def test_the_ula_bound_holds_on_gaussians(dimension, decay):
    """No violation at any step size that is allowed, from near and far; M = λ."""
    beta = 5.0
    target = gibbs_quadratic(decay, beta, dimension)
    chain = Chain(dimension, beta, 1 / (beta * decay), decay)
    for share in (1.0, 0.3, 0.01):
        step = share * chain.largest_step
        for start in (GaussianLaw(4.0, 0.01, dimension), GaussianLaw(0.0, 30.0, dimension)):
            for count in (0, 1, 10, 300):
                law = gaussian_ula(start, decay, beta, step, count)
                assert law.kl(target) <= chain.kl_after(count, step, start.kl(target))


@pytest.mark.parametrize("noise", [0.0, 0.01, 1.0])
def test_the_sgld_bound_holds_on_gaussians(noise):
    """Gradient noise N(0, σ²/d) per coordinate adds to the variance of a step."""
    decay, beta, dimension = 0.5, 2.0, 3
    chain = Chain(dimension, beta, 1 / (beta * decay), decay, noise=noise)
    step = chain.largest_step
    target = gibbs_quadratic(decay, beta, dimension)
    mean, variance = 2.0, 0.5
    start = GaussianLaw(mean, variance, dimension).kl(target)
    for count in range(60):
        assert GaussianLaw(mean, variance, dimension).kl(target) <= chain.kl_after(count, step, start)
        mean *= 1 - step * decay
        variance = (1 - step * decay) ** 2 * variance + 2 * step / beta + step**2 * noise / dimension


def test_steps_reach_the_accuracy():
    chain = Chain(100, 10.0, 2.0, 3.0)
    plan = chain.steps_to(0.01, 50.0)
    # THEORY.md §4: η = (1/(4βC M²)) min(1, ε/(4d)), k ≥ (βC/η) ln(2KL₀/ε)
    assert plan.step == pytest.approx(chain.largest_step * 0.01 / 400)
    assert plan.count == math.ceil(20 / plan.step * math.log(2 * 50 / 0.01))
    assert plan.kl <= 0.01
    assert chain.kl_after(plan.count // 2, plan.step, 50.0) > 0.01
    noisy = Chain(100, 10.0, 2.0, 3.0, noise=1e-6)
    assert noisy.steps_to(0.01, 50.0).kl <= 0.01
    assert noisy.noise_floor == pytest.approx(2.2 * 100 * 1e-6 * 2)


def test_no_certified_steps_for_a_model_with_a_rescaling_pair():
    with pytest.raises(InputError, match=r"rescaling pair W_V/W_O .* infinite"):
        Chain(10, 1.0, 1.0, 5.0, rescaling_pair="W_V/W_O")


@pytest.mark.parametrize(
    "call",
    [
        lambda: Chain(10, 1.0, 1.0, math.inf),
        lambda: Chain(10, 1.0, -1.0, 1.0),
        lambda: Chain(10, 1.0, 1.0, 1.0, noise=-1.0),
        lambda: Chain(10, 1.0, 1.0, 1.0).kl_after(3, 0.26, 1.0),
        lambda: Chain(10, 1.0, 1.0, 1.0, noise=0.1).kl_after(3, 0.13, 1.0),
        lambda: Chain(10, 1.0, 1.0, 1.0, noise=0.1).steps_to(0.1, 1.0),
        lambda: gaussian_ula_limit(1.0, 1.0, 2.0),
        lambda: kl_at(-1.0, 1.0, 1.0, 1.0),
        lambda: eyring_kramers(1.0, -0.1, 1.0, 1.0),
    ],
)
def test_conditions_that_fail_are_refused(call):
    with pytest.raises(InputError):
        call()


def test_eyring_kramers_is_labelled_and_ten_percent_off_at_beta_ten():
    """T16: 0.369512 against the true 0.335452873."""
    found = eyring_kramers(10, 0.25, -1.0, 2.0)
    assert found.label == "asymptotic"
    assert found.value == pytest.approx(0.369512, rel=2e-6)
    assert found.value / 0.335452873 - 1 == pytest.approx(0.1, abs=0.005)
