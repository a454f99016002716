"""What is averaged over training seeds: steps to a level, changes seed by seed, trends."""

import math
from pathlib import Path

import numpy as np
import pytest

from tests.commands.synthetic import estimate, made
from villani.commands.paper.record import PathologyPoint, SpectrumPoint
from villani.commands.paper.training import (
    best_decay,
    learned_curvature,
    pathology_trends,
    steps_to,
    training_points,
    trend,
)
from villani.commands.recommend.cells import SweepCell
from villani.statistics import Estimate


def cell(decay, seed, held, train, *, curve=(), diverged=False, optimizer="sgd"):
    def known(x):
        return None if diverged else Estimate(x, 0.01, 8, "statistical")

    return SweepCell(
        optimizer, decay, seed, list(curve) or [(0, 8.0), (10, held)], known(train), known(held), np.zeros(0),
        np.zeros(0), np.zeros(0), np.zeros(0), 1.0, Path("x"), diverged,
    )  # fmt: skip


def test_steps_are_counted_to_a_level_on_straight_lines():
    curve = [(0, 8.0), (10, 6.0), (20, 5.0)]
    assert steps_to(curve, 7.0) == 5.0
    assert steps_to(curve, 5.5) == 15.0
    assert steps_to(curve, 9.0) == 0.0
    assert steps_to(curve, 4.0) is None


def test_changes_are_taken_seed_by_seed():
    shared = [0.0, 1.0, -1.0]  # what seeds have in common cancels
    cells = [cell(0.0, s, 5.0 + x, 4.0 + x) for s, x in enumerate(shared)]
    cells += [cell(0.1, s, 4.8 + x + 0.01 * s, 4.1 + x) for s, x in enumerate(shared)]
    cells += [cell(1.0, 0, 7.0, 7.0), cell(1.0, 1, 7.0, 7.0), cell(1.0, 2, 0, 0, diverged=True)]
    points, common = training_points(cells, "sgd")
    assert [p.diverged for p in points] == [0, 0, 1]
    assert points[0].held_out_change is None
    assert points[1].held_out_change.value == pytest.approx(-0.19)
    assert points[1].held_out_change.sem == pytest.approx(0.01 / math.sqrt(3))
    assert points[1].gap_change.value == pytest.approx(-0.29)
    assert points[1].held_out.sem > 0.5
    assert best_decay(cells, "sgd") == 0.1
    assert common == pytest.approx(8 + 0.9 * (4.81 - 8))
    assert points[2].steps is None  # one seed diverged


def test_a_trend_leaves_out_what_too_few_seeds_have():
    values = {("sgd", 0.0, 0): 1.0, ("sgd", 0.0, 1): 2.0, ("sgd", 0.1, 0): 4.0, ("sgd", 0.1, 1): 5.5}
    found = trend(values | {("sgd", 1.0, 0): 9.0}, ["sgd"], [0.0, 0.1, 1.0])
    assert [t.weight_decay for t in found] == [0.0, 0.1]
    assert found[1].change.value == pytest.approx(3.25)
    assert found[1].change.sem == pytest.approx(0.25)


def test_curvature_and_pathologies_are_averaged_over_their_seeds():
    """Of plain numbers: mean, and mean change seed by seed."""
    values = {(0.0, 0): 1.0, (0.0, 1): 3.0, (0.5, 0): 2.0, (0.5, 1): 5.0}
    spectra = [made(SpectrumPoint, weight_decay=d, seed=s, largest=estimate(v)) for (d, s), v in values.items()]
    first, second = learned_curvature(spectra, [0.0, 0.5])
    assert (first.value.value, first.change) == (2.0, None)
    assert (second.value.value, second.change.value) == (3.5, 1.5)
    points = [
        made(
            PathologyPoint,
            optimizer="sgd",
            weight_decay=d,
            seed=s,
            sink=None,
            activation=estimate(v),
            superposition=2 * v,
        )
        for (d, s), v in values.items()
    ]
    trends = pathology_trends(points, ["sgd"], [0.0, 0.5])
    assert set(trends) == {"massive activations", "embedding superposition"}, "attention that is not seen has no trend"
    assert trends["embedding superposition"][1].change.value == pytest.approx(3.0)


def test_without_a_lambda_at_which_all_seeds_held_there_is_no_best():
    assert best_decay([cell(0.1, 0, 0, 0, diverged=True), cell(0.1, 1, 5.0, 4.0)], "sgd") is None
