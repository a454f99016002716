"""Differences of two measurements against plain formulas, and how often their intervals cover, few groups included."""

import numpy as np
import pytest
from scipy.stats import t as student

from villani.measurement.differences import Point, difference, psi_weights, same_groups
from villani.statistics import GroupSums, finite_statistics, sampled_statistics

UNIT = np.eye(4)
LEVEL = 1 - 0.05 / 4  # of one interval where four hold together: no comparison of measurements has fewer


def sums(rng, groups=6, size=3, probes=2, sketched=False):
    """Groups of unequal size."""
    tokens = rng.integers(20, 60, groups).astype(float)
    noise = rng.standard_normal((groups, 3 + size))
    traces = tokens[:, None] * (40 + noise[:, 2:3] + rng.standard_normal((groups, probes)))
    return GroupSums(
        tokens,
        tokens * (5 + noise[:, 0]),
        tokens[:, None] * (0.5 + noise[:, 3:]),
        tokens * noise[:, 1],
        traces,
        sketched,
    )


def like(rng, other):
    """Another θ on the same groups: most of the noise is the same."""
    moved = {
        name: getattr(other, name) * (1 + 0.02 * rng.standard_normal(getattr(other, name).shape)) + 0.3
        for name in ("loss", "gradient", "gradient_dot_parameters", "hessian_trace")
    }
    return GroupSums(other.tokens, sketched=other.sketched, **moved)


def statistics(s, chosen):
    """The four statistics on chosen groups, by their definitions."""
    n, g = s.tokens[chosen], s.gradient[chosen]
    pairs = [(i, j) for i in range(len(n)) for j in range(len(n)) if i != j]
    norm = sum(g[i] @ g[j] for i, j in pairs) / sum(n[i] * n[j] for i, j in pairs)
    means = [x[chosen].sum() / n.sum() for x in (s.loss, s.gradient_dot_parameters, s.hessian_trace.mean(axis=1))]
    return np.array([means[0], norm, means[1], means[2]])


def test_paired_is_the_jackknife_of_the_difference():
    rng = np.random.default_rng(0)
    first = sums(rng)
    second = like(rng, first)
    weights = (psi_weights(0.1, 0.5), psi_weights(0.3, 2.0))
    count = len(first.tokens)
    everything = np.arange(count)

    def psi(chosen):
        return weights[1] @ statistics(second, chosen) - weights[0] @ statistics(first, chosen)

    left_out = np.array([psi(np.delete(everything, g)) for g in everything])
    variance = (count - 1) / count * ((left_out - left_out.mean()) ** 2).sum()
    mean = [s.gradient.sum(axis=0) / s.tokens.sum() for s in (first, second)]
    own = [(s.gradient - s.tokens[:, None] * m) / s.tokens.mean() for s, m in zip((first, second), mean, strict=True)]
    for i in range(count):
        for j in range(count):
            if i != j:
                kernel = weights[1][1] * own[1][i] @ own[1][j] - weights[0][1] * own[0][i] @ own[0][j]
                variance += 4 * kernel**2 / (count * (count - 1)) ** 2
    points = [Point.of(sampled_statistics(s), s) for s in (first, second)]
    assert same_groups(*points)
    estimate = difference(*points, weights, "paired", offset=7.0)
    assert estimate.value == pytest.approx(count * psi(everything) - (count - 1) * left_out.mean() + 7.0)
    assert estimate.sem == pytest.approx(variance**0.5)
    assert (estimate.n, estimate.degrees_of_freedom) == (count, count - 1)
    alone = [difference(*points, (UNIT[0], UNIT[0]), relation).sem for relation in ("paired", "independent")]
    assert alone[0] < 0.5 * alone[1]


def test_independent_variances_add_and_dependent_errors_do():
    rng = np.random.default_rng(1)
    points = [Point.of(sampled_statistics(s), s) for s in (sums(rng, 4), sums(rng, 9))]
    assert not same_groups(*points)
    v, w = (p.joint.covariance[3, 3] for p in points)
    estimate = difference(*points, (UNIT[3], UNIT[3]), "independent")
    assert estimate.sem == pytest.approx((v + w) ** 0.5)
    assert estimate.degrees_of_freedom == pytest.approx((v + w) ** 2 / (v**2 / 3 + w**2 / 8))
    assert estimate.value == pytest.approx(points[1].joint.values[3] - points[0].joint.values[3])
    worst = difference(*points, (UNIT[3], UNIT[3]), "dependent")
    assert (worst.sem, worst.degrees_of_freedom) == (pytest.approx(v**0.5 + w**0.5), 3)


def test_nothing_sampled_is_exact():
    rng = np.random.default_rng(2)
    own = sums(rng)
    point = Point.of(sampled_statistics(own), own)
    for weights in ((UNIT[3], UNIT[3]), (psi_weights(0.1, 1.0), psi_weights(0.1, 1.0))):
        estimate = difference(point, point, weights, "paired", offset=2.0)
        assert (estimate.value, estimate.interval(0.95)) == (2.0, (2.0, 2.0))


def test_a_whole_data_set_is_paired_probe_by_probe():
    rng = np.random.default_rng(3)
    first = sums(rng, probes=3)
    second = like(rng, first)
    points = [Point.of(finite_statistics(s, 0.5 * i), s, finite=True) for i, s in enumerate((first, second))]
    estimate = difference(*points, (UNIT[3], UNIT[3]), "paired")
    gap = (second.hessian_trace - first.hessian_trace) / first.tokens.sum()
    parts = gap.var(axis=1, ddof=1) / 3
    assert estimate.value == pytest.approx(gap.mean(axis=1).sum())
    assert estimate.sem == pytest.approx(parts.sum() ** 0.5)
    assert estimate.degrees_of_freedom == pytest.approx(parts.sum() ** 2 / (parts**2 / 2).sum())
    assert difference(*points, (UNIT[1], UNIT[1]), "paired").interval(0.95) == (0.5, 0.5)


def test_what_sketches_add_is_bounded():
    """CountSketches of two gradients with the same signs, over many signs; without group noise."""
    rng = np.random.default_rng(4)
    size, buckets, groups = 60, 6, 4
    a, b = rng.standard_normal((2, size))
    found = {0.0: [], 0.9: [], 1.0: []}
    bounds = {share: [] for share in found}
    for _ in range(300):
        signs = rng.choice([-1.0, 1.0], size)
        for share in found:
            both = [x * signs for x in (a, share * a + (1 - share) * b)]
            both = [np.tile(x.reshape(-1, buckets).sum(axis=0), (groups, 1)) for x in both]
            ones, none = np.ones(groups), np.zeros(groups)
            own = [GroupSums(ones, none, x, none, none[:, None], sketched=True) for x in both]
            points = [Point.of(sampled_statistics(s), s) for s in own]
            estimate = difference(*points, (UNIT[1], UNIT[1]), "paired")
            found[share].append(estimate.value)
            bounds[share].append(estimate.sem**2)
    for share, values in found.items():
        assert np.var(values) <= 1.1 * np.mean(bounds[share]) <= 4 * np.var(values) + 1e-9


@pytest.mark.parametrize("groups", [3, 12])
@pytest.mark.parametrize(("directions", "size"), [(1, 2.2), (1, 0.0), (40, 2.0)])
def test_intervals_of_the_gradient_cover_where_it_is_as_large_as_its_noise(groups, directions, size):
    """The worst regime of ‖∇L‖² (docs/measuring.md): noise in one direction, from 3 groups on."""
    rng = np.random.default_rng([5, groups, directions])
    truth = size**2 / groups
    shift = np.zeros(directions)
    shift[0] = size / groups**0.5
    none = np.zeros(groups)
    covered = {"paired": 0, "independent": 0}
    repeats = 1000
    for _ in range(repeats):
        own = 0.1 * rng.standard_normal((groups, directions)), rng.standard_normal((groups, directions)) + shift
        made = [GroupSums(np.ones(groups), none, g, none, none[:, None]) for g in own]
        points = [Point.of(sampled_statistics(s), s) for s in made]
        for relation in covered:
            low, high = difference(*points, (UNIT[1], UNIT[1]), relation).interval(LEVEL)
            covered[relation] += low <= truth <= high
    assert min(covered.values()) >= 0.93 * repeats


@pytest.mark.parametrize("groups", [3, 6])
@pytest.mark.parametrize("correlation", [-1.0, 0.0, 0.95])
def test_intervals_of_a_mean_cover(groups, correlation):
    """At 95 % each: paired and dependent whatever the correlation, independent where there is none; one is noisier."""
    rng = np.random.default_rng([6, groups, int(100 * correlation) + 100])
    none, one = np.zeros(groups), np.ones(groups)
    names = ("paired", "dependent", *(("independent",) if not correlation else ()))
    covered = dict.fromkeys(names, 0)
    repeats = 800
    for _ in range(repeats):
        z, w = rng.standard_normal((2, groups))
        own = z, 2.0 + 3 * (correlation * z + (1 - correlation**2) ** 0.5 * w)
        made = [GroupSums(one, none, none[:, None], none, x[:, None]) for x in own]
        points = [Point.of(sampled_statistics(s), s) for s in made]
        for relation in names:
            low, high = difference(*points, (UNIT[3], UNIT[3]), relation).interval(0.95)
            covered[relation] += low <= 2.0 <= high
    assert min(covered.values()) >= 0.93 * repeats


def test_few_groups_widen_by_students_quantile():
    rng = np.random.default_rng(7)
    own = sums(rng, 3)
    points = [Point.of(sampled_statistics(s), s) for s in (own, like(rng, own))]
    estimate = difference(*points, (UNIT[0], UNIT[0]), "paired")
    low, high = estimate.interval(LEVEL)
    assert (high - low) / 2 == pytest.approx(student.ppf(0.5 + LEVEL / 2, 2) * estimate.sem)
