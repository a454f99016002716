import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import rankdata

from villani.statistics import (
    Estimate,
    GroupSums,
    exact,
    finite_statistics,
    jackknife_deviations,
    over_seeds,
    ratio_estimates,
    resolved_sign,
    sampled_statistics,
    serial_correlation,
    sketch_variance,
    squared_norm_replicates,
)

seeds = st.integers(0, 2**32 - 1)


def random_sums(seed: int, groups: int = 7, size: int = 5, probes: int = 2, mean: float = 1.0) -> GroupSums:
    rng = np.random.default_rng(seed)
    tokens = rng.integers(3, 40, groups).astype(float)
    noise = np.sqrt(tokens)
    gradient = tokens[:, None] * mean + noise[:, None] * rng.normal(size=(groups, size))
    loss, dots = tokens * 3 + noise * rng.normal(size=(2, groups))
    return GroupSums(tokens, loss, gradient, dots, tokens[:, None] + noise[:, None] * rng.normal(size=(groups, probes)))


@given(seeds)
def test_u_statistic_is_the_mean_over_pairs_of_different_groups(seed):
    sums = random_sums(seed)
    pairs = [(i, j) for i in range(7) for j in range(7) if i != j]
    top = sum(sums.gradient[i] @ sums.gradient[j] for i, j in pairs)
    bottom = sum(sums.tokens[i] * sums.tokens[j] for i, j in pairs)
    full, replicates = squared_norm_replicates(sums.gradient @ sums.gradient.T, sums.tokens)
    assert full[0] == pytest.approx(top / bottom, rel=1e-12)
    keep = np.arange(7) != 4
    again, _ = squared_norm_replicates(sums.gradient[keep] @ sums.gradient[keep].T, sums.tokens[keep])
    assert replicates[4, 0] == pytest.approx(again[0], rel=1e-9)


@given(seeds)
def test_jackknife_of_a_mean_is_its_classical_standard_error(seed):
    x = np.random.default_rng(seed).normal(size=(9, 2))
    replicates = (x.sum(axis=0) - x) / 8
    deviations = jackknife_deviations(replicates)
    assert np.allclose(deviations @ deviations.T, np.cov(x.T) / 9)


@given(seeds)
def test_equal_groups_need_no_bias_correction(seed):
    x = np.random.default_rng(seed).normal(size=(9, 1))
    values, sems = ratio_estimates(x * 10, np.full(9, 10.0))
    assert values[0] == pytest.approx(x.mean(), abs=1e-12)
    assert sems[0] == pytest.approx(x.std(ddof=1) / 3, rel=1e-9)


@given(seeds, st.floats(0.1, 10))
def test_statistics_scale_with_the_loss(seed, factor):
    """L → cL: loss, dot and trace by c, ‖∇L‖² by c²."""
    sums = random_sums(seed)
    scaled = GroupSums(sums.tokens, *(factor * x for x in (
        sums.loss, sums.gradient, sums.gradient_dot_parameters, sums.hessian_trace)))  # fmt: skip
    powers = np.array([1, 2, 1, 1])
    a, b = sampled_statistics(sums), sampled_statistics(scaled)
    assert np.allclose(b.values, a.values * factor**powers, rtol=1e-9)
    assert np.allclose(b.covariance, a.covariance * factor ** (powers[:, None] + powers), rtol=1e-6, atol=1e-12)


@given(seeds)
def test_order_of_groups_does_not_matter(seed):
    sums = random_sums(seed)
    order = np.random.default_rng(seed).permutation(7)
    turned = GroupSums(sums.tokens[order], sums.loss[order], sums.gradient[order],
                       sums.gradient_dot_parameters[order], sums.hessian_trace[order])  # fmt: skip
    assert np.allclose(sampled_statistics(sums).covariance, sampled_statistics(turned).covariance, rtol=1e-6)


@given(seeds, st.sampled_from([0.0, 1.0]))
def test_covariance_is_positive_semidefinite(seed, mean):
    eigenvalues = np.linalg.eigvalsh(sampled_statistics(random_sums(seed, groups=5, mean=mean)).covariance)
    assert eigenvalues.min() >= -1e-9 * eigenvalues.max()


def coverage(groups: int, norm: float, decay: float, repetitions: int = 2000, buckets: int = 0) -> tuple[float, float]:
    """Share of 95 % intervals that hold ‖g‖², and (mean error)/(its standard error); spectrum of the noise i^−decay."""
    rng = np.random.default_rng(3)
    size = 300
    deviations = np.arange(1, size + 1) ** -decay
    deviations /= np.linalg.norm(deviations)
    truth = rng.normal(size=size)
    truth *= norm / np.linalg.norm(truth)
    hits, errors = 0, []
    for _ in range(repetitions):
        gradient = truth + deviations * rng.normal(size=(groups, size))
        if buckets:
            signs = rng.choice([-1.0, 1.0], size)
            folded = np.zeros((groups, buckets))
            np.add.at(folded, (slice(None), np.arange(size) % buckets), gradient * signs)
            gradient = folded
        ones = np.ones(groups)
        estimate = sampled_statistics(
            GroupSums(
                ones,
                ones + 0.1 * rng.normal(size=groups),
                gradient,
                rng.normal(size=groups),
                rng.normal(size=(groups, 1)),
                sketched=bool(buckets),
            )
        ).component(1)
        low, high = estimate.interval(0.95)
        hits += low <= norm**2 <= high
        errors.append(estimate.value - norm**2)
    return hits / repetitions, float(np.mean(errors) / (np.std(errors) / np.sqrt(repetitions)))


@pytest.mark.parametrize(
    ("norm", "decay", "least", "most"),
    [
        (2.0, 0.0, 0.93, 0.97),
        (2.0, 0.5, 0.93, 0.97),
        (1.0, 0.5, 0.93, 0.97),
        (0.3, 0.0, 0.95, 0.99),
        (0.0, 0.5, 0.97, 1.0),
    ],
)
def test_squared_norm_is_unbiased_and_its_interval_covers(norm, decay, least, most):
    """From a large gradient to a stationary point, where the U-statistic is degenerate, the jackknife conservative."""
    share, drift = coverage(12, norm, decay)
    assert least <= share <= most
    assert abs(drift) < 4


@pytest.mark.parametrize("norm", [1.0, 2.0])
def test_sketched_squared_norm_covers_with_its_own_error(norm):
    """37 buckets for 300 entries: the sketch is a large part of the error, and is in the interval."""
    share, drift = coverage(12, norm, 0.5, buckets=37)
    assert 0.93 <= share <= 0.97
    assert abs(drift) < 4


def test_sketch_variance_matches_the_spread_over_signs():
    """Against the spread of ‖Sa‖² over many sign draws; the bound may be high where one entry rules a bucket."""
    rng = np.random.default_rng(6)
    a = rng.normal(size=4000)
    sketches = (rng.choice([-1.0, 1.0], (3000, 4000)) * a).reshape(3000, -1, 100).sum(axis=1)
    spread = (sketches**2).sum(axis=1).var()
    mean = np.mean([sketch_variance(np.tile(s, (5, 1)), np.ones(5)) for s in sketches])
    assert 0.9 < mean / spread < 1.2


def test_finite_statistics_have_probe_noise_only():
    sums = random_sums(7, probes=6)
    joint = finite_statistics(sums, 4.0)
    share = sums.hessian_trace / sums.tokens.sum()
    assert joint.values[1] == 4.0
    assert joint.component(0).sem == joint.component(1).sem == joint.component(2).sem == 0
    assert joint.component(0).status == "certified"
    assert joint.component(3).sem == pytest.approx(np.sqrt((share.var(axis=1, ddof=1) / 6).sum()))
    assert joint.component(3).status == "statistical"


def test_propagate_agrees_with_linear_and_with_the_delta_method():
    joint = sampled_statistics(random_sums(8))
    weights = np.array([1.0, -2.0, 0.5, 3.0])
    linear, propagated = joint.linear(weights), joint.propagate(lambda x: float(weights @ x))
    assert propagated.value == pytest.approx(linear.value)
    assert propagated.sem == pytest.approx(linear.sem)
    assert propagated.status == "estimated"
    squared = joint.propagate(lambda x: float(x[0] ** 2))
    assert squared.sem == pytest.approx(2 * joint.values[0] * joint.component(0).sem, rel=1e-9)


def test_intervals():
    assert exact(2.5).interval() == (2.5, 2.5)
    low, high = Estimate(1.0, 2.0, 12, "statistical").interval(0.95)
    assert (low, high) == pytest.approx(
        (1 - 2.200985 * 2, 1 + 2.200985 * 2), rel=1e-6
    )  # t table, 11 degrees of freedom
    with pytest.raises(ValueError, match="level=1"):
        exact(1.0).interval(1.5)


def test_too_few_groups_or_probes():
    sums = random_sums(9, groups=2)
    with pytest.raises(ValueError, match="groups=2: expected at least 3"):
        sampled_statistics(sums)
    with pytest.raises(ValueError, match="probes=1: expected at least 2"):
        finite_statistics(random_sums(9, probes=1), 0.0)


@pytest.mark.parametrize("sketched", [False, True])
def test_deviations_give_the_covariance_less_the_sketch(sketched):
    sums = replace(random_sums(0), sketched=sketched)
    for found, sketch in ((sampled_statistics(sums), sketched), (finite_statistics(sums, 1.0), False)):
        rest = found.covariance - found.deviations @ found.deviations.T
        expected = np.zeros((4, 4))
        expected[1, 1] = sketch_variance(sums.gradient, sums.tokens) * sketch
        assert np.allclose(rest, expected, rtol=1e-9, atol=1e-15)


def test_over_seeds_has_the_standard_error_of_amean_and_error():
    found = over_seeds([1.0, 2.0, 6.0])
    assert (found.value, found.n) == (3.0, 3)
    assert found.sem == pytest.approx(math.sqrt(7.0 / 3))
    low, high = found.interval()
    assert high - 3 == pytest.approx(4.302653 * found.sem, rel=1e-5)
    assert low == pytest.approx(6 - high)
    with pytest.raises(ValueError, match="at least 2"):
        over_seeds([1.0])


def test_signs_hold_all_at_once():
    generator = np.random.default_rng(0)
    draws = generator.standard_normal((600, 20, 5))
    wrong = 0
    for family in draws:
        wrong += any(resolved_sign(*mean_and_error(row), freedom=4, comparisons=20) for row in family)
    assert wrong < 600 * 0.05 + 4 * math.sqrt(600 * 0.05 * 0.95)
    assert wrong > 600 * 0.02  # and not by refusing to say anything
    assert resolved_sign(-1.0, 0.1, 4) == -1
    assert resolved_sign(1.0, 0.1, 4) == 1


def mean_and_error(row):
    return float(row.mean()), float(row.std(ddof=1)) / len(row) ** 0.5


@pytest.mark.parametrize("levels", [None, 3])
def test_serial_correlation_is_centred_in_random_order_with_and_without_ties(levels):
    generator = np.random.default_rng(0)
    draws = generator.standard_cauchy((3000, 40)) if levels is None else generator.integers(levels, size=(3000, 40))
    found = [serial_correlation(row) for row in draws]
    values = np.array([one.value for one in found])
    assert found[0].sem == pytest.approx(40**-0.5)
    assert abs(values.mean()) < 4 * values.std() / len(values) ** 0.5
    assert values.std() == pytest.approx(found[0].sem, rel=0.06)


@given(st.lists(st.integers(-3, 3) | st.floats(-1e300, 1e300), min_size=3, max_size=30))
def test_serial_correlation_is_that_of_ranks_of_which_ties_share_the_mean(values):
    ranks = rankdata(values) - (len(values) + 1) / 2
    expected = ranks[:-1] @ ranks[1:] / (ranks @ ranks) + 1 / len(values) if ranks.any() else 0.0
    assert serial_correlation(np.array(values)).value == pytest.approx(expected, abs=1e-12)


def test_serial_correlation_of_sorted_alternating_and_equal_values():
    assert serial_correlation(np.exp(np.arange(40.0))).value > 0.9
    assert serial_correlation(np.arange(40) // 20).value > 0.9
    assert serial_correlation(np.arange(40) % 2).value < -0.9
    assert serial_correlation(np.ones(40)).value == 0.0
