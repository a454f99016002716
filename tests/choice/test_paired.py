"""Means over seeds and units, and changes in pairs: closed forms, coverage and power by simulation."""

import math

import numpy as np
import pytest
from scipy.stats import nct
from scipy.stats import t as student_t

from villani.choice.paired import Change, detectable, half_width, paired
from villani.statistics import over_seeds


def test_one_seed_of_equal_units_is_the_paired_t_test():
    rng = np.random.default_rng(0)
    losses = rng.standard_normal((1, 20))
    found = paired(losses * 7, np.full(20, 7.0))
    assert found.value == pytest.approx(losses.mean())
    assert found.sem == pytest.approx(losses.std(ddof=1) / math.sqrt(20))
    assert found.degrees_of_freedom == 19


def test_seeds_alone_are_the_t_test_over_seeds():
    each = np.array([1.0, 2.0, 4.0])
    found = paired(np.repeat(each[:, None], 50, axis=1) * 5, np.full(50, 5.0))
    assert found.sem == pytest.approx(each.std(ddof=1) / math.sqrt(3))
    assert found.degrees_of_freedom == pytest.approx(2)


def test_units_weigh_by_their_tokens():
    counts = np.array([1.0, 3.0, 6.0, 2.0])
    found = paired((np.array([2.0, 5.0, 4.0, 1.0]) * counts)[None], counts)
    assert found.value == pytest.approx(43 / 12)
    assert paired(2.5 * counts[None], counts).sem == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.99, 1.0])
def test_two_sources_of_error_cover_together(seeds, share):
    """Of a normal mean whose variance of 1 is seeds' by `share`; exact where it is all of one."""
    rng = np.random.default_rng(6)
    tries, units, level = 40_000, 20, 0.9
    of_seeds = share * rng.chisquare(seeds - 1, tries) / (seeds - 1)
    of_units = (1 - share) * rng.chisquare(units - 1, tries) / (units - 1)
    halves = np.array([half_width(a, b, seeds, units, level) for a, b in zip(of_seeds, of_units, strict=True)])
    covered = float((np.abs(rng.standard_normal(tries)) <= halves).mean())
    noise = 4 * math.sqrt(level * (1 - level) / tries)
    assert covered >= level - noise
    if share in (0.0, 1.0):
        assert covered <= level + noise
    one, other = half_width(2.0, 0.0, seeds, units, level), half_width(0.0, 3.0, seeds, units, level)
    assert one == pytest.approx(student_t.ppf(0.95, seeds - 1) * math.sqrt(2))
    assert half_width(2.0, 3.0, seeds, units, level) == pytest.approx(math.hypot(one, other))
    assert half_width(2.0, 3.0, seeds, units, level) <= student_t.ppf(0.95, seeds - 1) * math.sqrt(5)  # than K − 1


@pytest.mark.parametrize(("seeds", "level", "power"), [(2, 0.95, 0.8), (3, 0.95, 0.8), (4, 0.99, 0.5), (30, 0.95, 0.9)])
def test_a_change_that_seeds_would_show_is_that_of_the_t_test(seeds, level, power):
    """The power of a t-test is a non-central t-law's; the scale comes out of it, and units may be the only source."""
    least = detectable(0.04, 0.0, seeds, 50, level=level, power=power)
    at, shift = student_t.ppf(0.5 + level / 2, seeds - 1), least / 0.2
    assert nct.sf(at, seeds - 1, shift) == pytest.approx(power, abs=2e-3)  # the other tail is nothing
    assert detectable(0.0, 0.04, 1, seeds, level=level, power=power) == pytest.approx(least)
    assert detectable(0.36, 0.0, seeds, 50, level=level, power=power) == pytest.approx(3 * least)
    assert detectable(0.0, 0.0, seeds, 50) == 0.0


def test_a_change_that_two_sources_would_show_is_shown_so_often():
    """3 seeds and 12 units, simulated: true changes of the size told are resolved in 80 % of studies."""
    rng, seeds, units = np.random.default_rng(0), 3, 12
    of_seeds, of_units = 0.3**2 / seeds, 0.8**2 / units
    least = detectable(of_seeds, of_units, seeds, units)
    a, b = rng.normal(0, 0.3, (4000, seeds)), rng.normal(0, 0.8, (4000, units))
    change = least + a.mean(axis=1) + b.mean(axis=1)
    variances = (a.var(axis=1, ddof=1) / seeds, b.var(axis=1, ddof=1) / units)
    half = np.sqrt(sum(student_t.ppf(0.975, n - 1) ** 2 * v for n, v in zip((seeds, units), variances, strict=True)))
    assert np.mean(np.abs(change) > half) == pytest.approx(0.8, abs=0.02)


def test_a_change_is_held_against_all_that_are_told_with_it():
    change = paired(np.array([[1.0, 1.2, 0.8, 1.1], [0.9, 1.3, 1.0, 1.1]]), np.ones(4))
    one, ten = Change.of(change, 1), Change.of(change, 10)
    assert (one.level, ten.level) == (pytest.approx(0.95), pytest.approx(0.995))
    assert (one.resolved, ten.resolved) == (1, 0)
    assert Change.of(-change, 1).resolved == -1
    assert ten.detectable > one.detectable > 0
    limits = change.limits
    errors = (limits.of_seeds, limits.of_units, limits.seeds, limits.units)
    assert ten.detectable == detectable(*errors, level=ten.level)
    seeds = over_seeds(np.array([1.0, 2.0, 4.0]))  # of a number alone: the t-test over seeds
    assert Change.of(seeds, 1).detectable == detectable(seeds.sem**2, 0.0, 3, 2)
