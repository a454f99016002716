"""The set that holds the best, margins, and held-out bounds: closed forms, and coverage by simulation."""

import math

import numpy as np
import pytest
from scipy.stats import t as student_t

from villani.choice.selection import (
    GridLosses,
    held_out_bound,
    indistinguishable,
    joined,
    margin,
    nearest,
)
from villani.errors import InputError
from villani.theory.constants import Smoothing


def simulated(rng, means, seeds, units, of_seed, of_unit, of_both):
    """Losses of units whose noise is that of seeds, of units and of both; what all λ share cancels."""
    shape = (len(means), seeds, units)
    noise = of_seed * rng.standard_normal((len(means), seeds, 1)) + of_both * rng.standard_normal(shape)
    noise += of_unit * rng.standard_normal((len(means), 1, units)) + 3 * rng.standard_normal((1, seeds, units))
    counts = np.full(units, 10.0)
    return GridLosses(tuple(range(len(means))), (np.asarray(means)[:, None, None] + noise) * counts, counts)


@pytest.mark.parametrize("noise", [(0.1, 0.0, 0.0), (0.0, 0.5, 0.0), (0.05, 0.3, 0.3)], ids=["seeds", "units", "all"])
@pytest.mark.parametrize("means", [(0.0, 0.0, 0.0, 0.0), (0.0, 0.02, 0.1, 1.0)], ids=["equal", "apart"])
def test_the_set_holds_the_best_and_margins_cover(noise, means):
    rng = np.random.default_rng(1)
    count, held, covered, sizes = 150, 0, 0, []
    for _ in range(count):
        losses = simulated(rng, means, 3, 30, *noise)
        kept = indistinguishable(losses, 0.9)
        held += 0 in kept
        sizes.append(len(kept))
        found = margin(losses, losses.sums[1], 0.9, own=1)
        covered += found.low <= means[1] <= found.high
    allowed = 0.9 - 4 * math.sqrt(0.9 * 0.1 / count)
    assert held / count >= allowed
    assert covered / count >= allowed
    assert np.mean(sizes) < 4 if means[-1] else np.mean(sizes) > 3.5  # sharp where it can be


@pytest.mark.parametrize(("count", "seeds", "units", "of_seed"), [(8, 2, 40, 5.0), (7, 3, 200, 5.0), (7, 3, 200, 0.1)])
def test_ties_of_few_seeds_do_not_lose_the_best(count, seeds, units, of_seed):
    """All λ are equally good; `of_seed` is the error of seeds over that of units."""
    rng = np.random.default_rng(5)
    tries, lost, missed = 250, 0, 0
    for _ in range(tries):
        losses = simulated(rng, [0.0] * count, seeds, units, of_seed * math.sqrt(seeds / units), 1.0, 0.0)
        lost += 0 not in indistinguishable(losses)
        missed += margin(losses, losses.sums[0], own=0).low > 0
    allowed = 0.05 + 4 * math.sqrt(0.05 * 0.95 / tries)
    assert max(lost, missed) / tries <= allowed  # estimated degrees of freedom lost 24 % of the first


def test_without_correction_the_best_would_be_lost():
    rng = np.random.default_rng(2)
    lost = 0
    for _ in range(150):
        losses = simulated(rng, [0.0] * 8, 1, 30, 0, 0.5, 0)
        for i in range(1, 8):
            found = losses.difference(0, i)
            if found.value > student_t.ppf(0.9, found.degrees_of_freedom) * found.sem:
                lost += 1
                break
    assert lost / 150 > 0.3  # so that the test above can fail


def test_diverged_values_are_out_and_a_grid_of_them_is_told():
    sums = np.ones((3, 2, 4)) * np.arange(1, 4)[:, None, None]
    sums[0] = np.nan
    losses = GridLosses((0.0, 0.1, 1.0), sums, np.ones(4))
    assert losses.best == 1
    assert indistinguishable(losses) == [1]
    with pytest.raises(InputError, match="diverged at every"):
        _ = GridLosses((0.0, 1.0), np.full((2, 1, 3), np.nan), np.ones(3)).best


def test_a_margin_off_the_grid_may_be_negative():
    rng = np.random.default_rng(3)
    losses = simulated(rng, (0.0, 1.0), 3, 30, 0.01, 0, 0.01)
    better = losses.sums[0] - 0.5 * losses.counts
    found = margin(losses, better)
    assert found.value == pytest.approx(-0.5)
    assert found.high < 0
    assert margin(losses, losses.sums[0], own=0).low == 0


@pytest.mark.parametrize(
    ("grid", "shape", "words"),
    [((0.1, 0.0), (2, 1, 3), "increasing"), ((0.0, 0.1), (2, 3), "shape"), ((0.0, 0.1), (2, 1, 1), "at least 2")],
)
def test_bad_grids_are_refused(grid, shape, words):
    with pytest.raises(InputError, match=words):
        GridLosses(grid, np.zeros(shape), np.ones(shape[-1]))


def test_the_nearest_value_is_so_on_a_logarithmic_scale():
    grid = [0.0, 0.01, 1.0]
    assert nearest(grid, 0.09) == 1
    assert nearest(grid, 0.11) == 2
    assert nearest(grid, 1e-9) == 1
    assert nearest(grid, 0.0) == 0
    assert nearest([0.1, 1.0], 0.0) is None


def test_held_out_bounds_cover_and_know_what_documents_are():
    smoothing = Smoothing(50, 0.1)
    rng = np.random.default_rng(4)
    truth, misses = 0.0, 0
    law = np.array([0.3, 2.5])  # losses of the two kinds of tokens
    truth = float(law.mean())
    counts, documents = np.full(40, 20.0), np.repeat(np.arange(20), 2)
    for _ in range(60):
        tokens = law[rng.integers(2, size=(40, 20))]
        smoothed = np.stack([tokens.sum(axis=1), (tokens**2).sum(axis=1)])
        found = held_out_bound(smoothed, counts, documents, smoothing, 0.2)
        assert found.documents > found.tokens  # 20 of them, and 800 tokens
        misses += found.tokens < truth or found.documents < truth
    assert misses / 60 <= 0.2 + 4 * math.sqrt(0.2 * 0.8 / 60)
    part = held_out_bound(smoothed, counts, np.full(40, -1), smoothing, 0.2)
    assert part.documents is None
    assert part.tokens == found.tokens
    assert held_out_bound(smoothed, counts, documents, smoothing, 0.02).tokens > found.tokens


def test_blocks_add_up_to_documents_where_there_are_enough():
    documents = np.array([-1, 0, 0, 1, -1])
    sums = np.arange(5.0)[None]
    added, counts = joined(sums, np.ones(5), documents, least=4)
    assert added.tolist() == [[0, 3, 3, 4]]
    assert counts.tolist() == [1, 2, 1, 1]
    assert joined(sums, np.ones(5), documents, least=5)[0] is sums
