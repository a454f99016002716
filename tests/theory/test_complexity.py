"""Every KL bound against exact truths: Gaussians, 1-D Gibbs laws, heavy balls, and chains on a grid."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from villani.errors import InputError
from villani.theory.catalogue import named
from villani.theory.complexity import (
    NoisyDescent,
    gaussian,
    jeffreys,
    least,
    log_sobolev,
    path,
    stam,
    thermodynamic_integration,
)
from villani.theory.exact import relative_entropy
from villani.theory.potential import potential

RATES = st.floats(0.03, 0.9)  # ηλ


def gaussian_kl(mean, variance, prior):
    return 0.5 * (variance / prior - 1 - math.log(variance / prior) + mean**2 / prior)


def quadratic_gibbs(beta, decay, c, m):
    """KL(ρ‖π), E_ρ‖∇L‖², E_ρθ², E_πL, E_ρL for L = (c/2)(θ − m)²."""
    mean, variance = c * m / (c + decay), 1 / (beta * (c + decay))
    prior = 1 / (beta * decay)
    squared = c**2 * (variance + (mean - m) ** 2)
    losses = c / 2 * (prior + m**2), c / 2 * (variance + (mean - m) ** 2)
    return gaussian_kl(mean, variance, prior), squared, variance + mean**2, *losses


@given(st.floats(0.1, 1e3), st.floats(1e-3, 10), st.floats(1e-3, 10), st.floats(-3, 3))
@settings(max_examples=50, deadline=None)
def test_gibbs_bounds_are_above_the_truth_and_stam_is_exact_for_gaussians(beta, decay, c, m):
    kl, squared, norm, prior_loss, loss = quadratic_gibbs(beta, decay, c, m)
    determinant = stam(decay, beta, norm, [c], status="certified").value
    assert determinant == pytest.approx(kl, rel=1e-6, abs=1e-9)
    assert log_sobolev(decay, beta, squared, "certified").value >= kl * (1 - 1e-9)
    assert jeffreys(beta, prior_loss, loss, "certified").value >= kl * (1 - 1e-9)


@pytest.mark.parametrize("name", ["binary-ce", "tied", "linear-gaussian"])
def test_gibbs_bounds_on_the_line(name, truths):
    entropy = relative_entropy(named(name).potential, truths(name))
    assert min(entropy.log_sobolev, entropy.stam, entropy.jeffreys) >= entropy.value * (1 - 1e-6)


def test_the_trace_form_is_weaker_than_the_determinant():
    eigenvalues = [0.5, 4.0, 30.0]
    sharp = stam(0.1, 10.0, 7.0, eigenvalues, status="estimated").value
    weak = stam(0.1, 10.0, 7.0, dimension=3, laplacian=sum(eigenvalues), status="estimated").value
    assert sharp == pytest.approx(10 * 0.1 / 2 * 7 - 1.5 + 0.5 * sum(math.log(1 + e / 0.1) for e in eigenvalues))
    assert weak > sharp


def test_gaussian_in_many_dimensions_adds_up():
    """T23, and the sum of one-dimensional KLs."""
    assert gaussian(1000, 0.01, 0.1, 4.0).value == pytest.approx(2974.37764, abs=5e-6)
    shifts = np.array([0.3, -1.2, 0.0])
    parts = sum(gaussian_kl(x, 0.49, 2.0) for x in shifts)
    assert gaussian(3, 0.7, 2.0, float(shifts @ shifts)).value == pytest.approx(parts)


def test_thermodynamic_integration_brackets_and_closes(solved):
    """T4, through the laws ρ_t ∝ exp(−tβL)π, which are Gibbs laws of tL."""
    case = named("binary-ce").potential
    truth = relative_entropy(case, solved(case, sobolev=False)).value
    brackets = []
    for count in (2, 4):
        times = np.linspace(0, 1, count + 1)
        energies = []
        for t in times:
            scaled = potential(f"{float(t)!r}*(log(1+exp(w))-0.8*w)", weight_decay=case.weight_decay, beta=case.beta)
            at = solved(scaled, sobolev=False).moments.loss
            energies.append(case.beta * at / t if t else _prior_energy(case))
        lower, upper = thermodynamic_integration(list(times), energies)
        assert lower <= truth <= upper
        brackets.append(upper - lower)
    assert brackets[1] == pytest.approx(brackets[0] / 2)


def _prior_energy(case):
    nodes, weights = np.polynomial.hermite_e.hermegauss(120)
    points = nodes / math.sqrt(case.beta * case.weight_decay)
    return float(case.beta * (weights @ case.loss(points[None])) / weights.sum())


# c4


def test_t22_and_what_the_best_shares_gain():
    decay, beta, c, m, rate = 0.1, 100.0, 1.0, 1.0, 0.05
    for steps, kl, printed in ((10, 0.93854767, 17.6451733), (2000, 4.85478047, 8.78525057)):
        chain = NoisyDescent.constant(decay, beta, rate, steps)
        mean, variance, squares, truth = 0.0, chain.variance, [], 0.0
        a = 1 - rate * decay
        for _ in range(steps):
            squares.append(c**2 * (variance + (mean - m) ** 2))
            mean, variance = (a - rate * c) * mean + rate * c * m, (a - rate * c) ** 2 * variance + 2 * rate / beta
            truth = gaussian_kl(mean, variance, chain.variance)
        halves = chain.bounds(squares, 0.5)[-1]
        assert truth == pytest.approx(kl, abs=5e-9)
        assert halves == pytest.approx(printed, abs=5e-8)
        assert halves == pytest.approx(float(chain.weights(0.5) @ squares), rel=1e-12)
        assert truth <= chain.bounds(squares)[-1] < halves


def test_best_shares_are_exact_in_the_limit_of_a_constant_pull():
    """A constant direction shifts the prior by G/λ: KL = G²/(2λ²v), which the bound reaches and the halves do not."""
    chain = NoisyDescent.constant(0.5, 40.0, 0.02, 3000)
    limit = 3.0**2 / (2 * 0.5**2 * chain.variance)
    assert chain.bounds(9.0)[-1] == pytest.approx(limit, rel=1e-6)
    assert chain.bounds(9.0, 0.5)[-1] == pytest.approx(limit, rel=0.02)
    assert chain.bounds(9.0, 0.5)[-1] > limit
    shares = chain.best_shares(9.0)
    assert float(chain.weights(shares).sum() * 9.0) == pytest.approx(chain.bounds(9.0)[-1], rel=1e-9)
    assert chain.clipped(3.0).value == pytest.approx(limit, rel=1e-6)


def test_the_clipped_bound_scales_as_one_over_the_weight_decay():
    """βG²/(2λ) at small steps: tenfold λ, a tenth of the bound."""
    values = [NoisyDescent.constant(d, 50.0, 1e-3 / d, 20_000).clipped(2.0).value for d in (0.1, 1.0, 10.0)]
    assert values[0] == pytest.approx(50 * 4 / (2 * 0.1), rel=1e-3)
    assert values[0] / values[1] == pytest.approx(10, rel=1e-9)
    assert values[1] / values[2] == pytest.approx(10, rel=1e-9)


@given(
    st.lists(RATES, min_size=2, max_size=25), st.floats(0.2, 5), st.floats(-1, 0.95), st.floats(0, 6), st.floats(-2, 2),
    st.floats(0.05, 20),
)  # fmt: skip
@settings(max_examples=80, deadline=None)
def test_heavy_ball_with_schedules_never_beats_its_bounds(products, decay, momentum, c, m, variance):
    """(θ, velocity) is Gaussian: exact KL of θ at every step, momentum and schedule included."""
    chain = NoisyDescent(decay, variance, np.array(products) / decay)
    mean, covariance = np.zeros(2), np.diag([variance, 0.0])
    squares, truths = [], []
    for rate, kept, noise in zip(chain.rates, chain.contractions, chain.noises, strict=True):
        pull = np.array([c, momentum])  # velocity⁺ = momentum·velocity + c(θ − m)
        velocity_mean = pull @ mean - c * m
        squares.append(pull @ covariance @ pull + velocity_mean**2)
        move = np.array([[kept - rate * c, -rate * momentum], pull])
        mean = move @ mean + np.array([rate * c * m, -c * m])
        covariance = move @ covariance @ move.T + np.diag([noise**2, 0.0])
        truths.append(gaussian_kl(mean[0], covariance[0, 0], variance))
    for bounds in (chain.bounds(squares), chain.bounds(squares, 0.5), chain.bounds(squares, 0.9)):
        assert (np.array(truths) <= bounds * (1 + 1e-9) + 1e-9).all()
    assert np.array(truths)[-1] <= chain.path_cost(squares) * (1 + 1e-9) + 1e-9


@given(
    st.lists(RATES, min_size=2, max_size=8), st.floats(0.1, 4), st.floats(0.5, 10), st.floats(-2, 2),
    st.booleans(),
)  # fmt: skip
@settings(max_examples=20, deadline=None)
def test_clipped_chains_on_a_grid_never_beat_their_bounds(products, clip, slope, m, sign):
    """Exact transition kernels on a line: directions clipped, or not even continuous."""
    chain = NoisyDescent(1.0, 1.0, np.array(products))
    x = np.linspace(-8, 8, 481)
    step = x[1] - x[0]
    raw = slope * (np.sign(x - m) if sign else (x - m))
    direction = np.clip(raw, -clip, clip)
    prior = np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
    density, squares, truths = prior.copy(), [], []
    for rate, kept, noise in zip(chain.rates, chain.contractions, chain.noises, strict=True):
        squares.append(float((density * direction**2).sum() * step))
        centre = kept * x - rate * direction
        kernel = np.exp(-((x[:, None] - centre) ** 2) / (2 * noise**2)) / (noise * math.sqrt(2 * math.pi))
        density = kernel @ density * step
        inside = density > 1e-300
        truths.append(float((density[inside] * np.log(density[inside] / prior[inside])).sum() * step))
        assert density.sum() * step == pytest.approx(1, abs=1e-5)
    truths = np.array(truths)
    assert (truths <= chain.bounds(squares) + 1e-6).all()
    assert (truths <= chain.bounds(squares, 0.5) + 1e-6).all()
    assert truths[-1] <= chain.clipped(clip).value + 1e-6
    assert chain.bounds(squares)[-1] <= chain.clipped(clip).value * (1 + 1e-9)


def test_bounds_would_fail_without_their_hypotheses():
    """A start at a point instead of the prior: the same sum of squares no longer bounds the KL."""
    chain = NoisyDescent.constant(0.1, 100.0, 0.05, 3)
    variance = 0.0
    for noise, a in zip(chain.noises, chain.contractions, strict=True):
        variance = a**2 * variance + noise**2
    assert gaussian_kl(0.0, variance, chain.variance) > chain.bounds(0.0)[-1] + 0.5


def test_complexities_are_ranked_and_carry_their_status():
    found = [gaussian(1, 1.0, 1.0, 4.0), log_sobolev(0.1, 10.0, 0.01, "estimated"), path(-3.0, 7)]
    assert [one.value for one in found] == pytest.approx([2.0, 0.5, 0.0])  # a path has a floor
    assert least(found[:2]).id == "c1"
    assert [one.status for one in found] == ["certified", "estimated", "certified"]


@pytest.mark.parametrize(
    ("call", "fragment"),
    [
        (lambda: NoisyDescent(0.1, 1.0, np.array([25.0])), "η < 2/λ"),
        (lambda: NoisyDescent.constant(0.0, 1.0, 0.1, 3), "weight_decay=0"),
        (lambda: NoisyDescent(0.1, 1.0, np.array([])), "learning rates"),
        (lambda: NoisyDescent(0.1, 1.0, np.array([0.1])).weights(0.0), "shares"),
        (lambda: NoisyDescent(0.1, 1.0, np.array([0.1])).bounds(-1.0), "gradient_squared"),
        (lambda: jeffreys(1.0, 1.0, 2.0, "estimated"), "cannot be"),
        (lambda: stam(0.1, 1.0, 1.0, [-0.2], status="estimated"), "no Gibbs law"),
        (lambda: stam(0.1, 1.0, 1.0, status="estimated"), "dimension and laplacian"),
        (lambda: thermodynamic_integration([0, 0.5], [2, 1]), "from 0 to 1"),
        (lambda: thermodynamic_integration([0, 0.5, 1], [1, 2, 1]), "energies increase"),
        (lambda: path(math.nan, 1), "log_ratio"),
    ],
)
def test_bad_input(call, fragment):
    with pytest.raises(InputError, match=fragment):
        call()


@given(st.floats(-16, 0), st.floats(0.5, 2))
def test_noise_of_the_smallest_decay_has_all_its_digits(exponent, variance):
    """τ² = v(1 − a²) of a = 1 − ηλ, against rational arithmetic: at ηλ = 1e-16 a is 1 in floats."""
    step = 10.0**exponent
    chain = NoisyDescent(step, variance, np.ones(3))
    exact = float(Fraction(variance) * (1 - (1 - Fraction(step)) ** 2))
    assert chain.noises[0] ** 2 == pytest.approx(exact, rel=1e-14)
    beta = 2.0
    same = NoisyDescent.constant(step, beta, 1.0, 3)
    assert same.noises == pytest.approx([math.sqrt(2 / beta)] * 3, rel=1e-14)
    assert np.isfinite(chain.bounds(1.0)).all()
