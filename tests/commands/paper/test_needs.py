"""What a study takes: units counted, parts beside each other as timed studies had them, and what lies on disk."""

import pytest

from villani.commands.paper.needs import memory, tokens, units, vectors, weights, with_parts
from villani.commands.paper.parts import PARTS
from villani.commands.paper.settings import read_settings
from villani.work.budget import Needs, Shape

MINUTES = {"landscape": 4, "spectra": 6, "convergence": 5, "certificates": 2, "estimators": 2}  # docs/rerunning.md


def sweep_tokens(settings):
    sweep = settings.sweep
    points = 2 + sweep.steps // sweep.evaluate_every
    return units(settings)["sweep"] * (sweep.steps * sweep.batch + points * sweep.held_out_blocks / 3) * sweep.block


def test_parts_take_what_they_took_beside_the_sweep():
    """14 minutes of size small were training; every part within a factor of three, and all within 1.5."""
    settings = read_settings(None, "small")
    each = sweep_tokens(settings) / 14
    told = {part: value / each for part, value in tokens(settings, 64, 600).items()}
    for part, minutes in MINUTES.items():
        assert minutes / 3 < told[part] < 3 * minutes, part
    assert sum(told[part] for part in MINUTES) == pytest.approx(sum(MINUTES.values()), rel=0.5)


@pytest.mark.parametrize("size", ["125m", "pretrained"])
def test_large_sizes_fit_a_machine_of_two_cores(size):
    """At 4 seconds for a gradient over 512 tokens of 135M parameters: four hours, and the limit of the disk."""
    settings = read_settings(None, size, model="m")
    whole = sweep_tokens(settings) + sum(tokens(settings, settings.sweep.held_out_blocks, 7000).values())
    assert whole / 512 * 4.0 < 4 * 3600
    assert (weights(settings) + vectors(settings, 2)) * 4 * 1.345e8 < 24 * 2**30
    assert settings.cuts()


def test_a_part_that_is_left_out_takes_nothing_and_is_named():
    whole = read_settings(None, "pretrained", model="m")
    less = read_settings(None, "pretrained", model="m", without=["spectra", "landscape"])
    before, after = (tokens(one, 16, 100) for one in (whole, less))
    assert {"spectra", "landscape"} == {part for part in before if not after.get(part)} - {"criteria"}
    assert units(less)["landscape"] == units(less)["spectra"] == units(less)["criteria"] == 0
    assert units(whole)["landscape"] == len(whole.sweep.weight_decay)  # of one training seed
    assert f"{PARTS['spectra']}: left out" in less.cuts()
    assert f"{PARTS['spectra']}: left out" not in whole.cuts()
    assert weights(less) + vectors(less) < weights(whole) + vectors(whole)


def test_each_process_has_a_basis_and_a_graph_of_its_own():
    settings = read_settings(None, "pretrained", model="m")
    assert vectors(settings) == 11  # a basis of 10, and a pair
    assert vectors(settings, 9) == vectors(settings, 5) == 55  # one a model, and there are five
    shape = Shape(parameters=134_515_008, layers=30, width=576, heads=9, vocabulary=49152)
    assert memory(settings, shape) == 6.0 * 2**30  # that E2 may take
    only = read_settings(None, "pretrained", model="m", without=["spectra"])
    assert memory(only, shape) == pytest.approx(8 * 4 * shape.parameters + 3 * shape.activations(128, 128))
    only = read_settings(None, "pretrained", model="m", without=["spectra", "landscape"])
    assert memory(only, shape) == pytest.approx(5 * 4 * shape.parameters + 3 * shape.activations(128, 128))
    assert memory(read_settings(None, "long"), shape) == 0.0
    whole = with_parts(Needs(memory=1.0, disk=1.0, seconds=2.0), settings, shape, 2)
    assert (whole.memory, whole.seconds) == (6.0 * 2**30, 2.0)
    assert whole.disk == (weights(settings) + 22) * 4 * shape.parameters
    large = Needs(memory=1e12, disk=1e12)
    assert with_parts(large, settings, shape, 2) == large
