"""Ψ along an orbit, measured and expanded, against Theorem C's closed form for two factors."""

import numpy as np
import pytest

from tests.criteria.test_orbits import binary, examined, factors
from villani.criteria.orbits import exponents_of
from villani.criteria.parts import part_statistics, parts_of
from villani.criteria.walks import walk_orbit

DECAY = 0.1


@pytest.fixture(scope="module")
def setting():
    """L = log(1 + e^{ab}) − ab/2 at (0, 3), the orbit that lets b grow, and how statistics are measured."""
    objective = factors(binary(0.5), 0.0, 3.0, weight_decay=DECAY)
    orbits = [orbit for orbit, _ in examined(objective)[0]]
    parts = parts_of(objective.parameters, [o.exponents for o in orbits])
    orbit = next(o for o in orbits if o.name.startswith("w.1"))
    return objective, orbit, exponents_of(orbit, parts), lambda _: part_statistics(objective, parts, [0])


def closed_form(scale, temperature):
    """T9 at R = 3·scale: R²(λ²/s − 1/4) − 2λ."""
    return (3 * scale) ** 2 * (DECAY**2 / temperature - 0.25) - 2 * DECAY


@pytest.mark.parametrize(("temperature", "falls"), [(0.05, True), (0.03, False)])
def test_psi_is_measured_and_expanded_at_every_scale(temperature, falls, setting):
    objective, orbit, along, measure = setting
    before = objective.parameters.checksum()
    steps = walk_orbit(objective, orbit, along, measure, temperature, (2.0, 8.0))
    assert objective.parameters.checksum() == before
    assert [s.scale for s in steps] == [1.0, 2.0, 8.0]
    for step in steps:
        assert step.loss_change == 0
        assert step.predicted.value == pytest.approx(closed_form(step.scale, temperature), rel=1e-9)
        assert step.measured.value == pytest.approx(closed_form(step.scale, temperature), rel=1e-9)
    assert (steps[-1].measured.value < steps[0].measured.value) == falls


def test_a_walk_goes_on_until_psi_has_fallen(setting):
    """At s = 0.03 it never falls, and doubles up to the end; at s = 0.05 it has fallen at once."""
    objective, orbit, along, measure = setting
    longest = walk_orbit(objective, orbit, along, measure, 0.03, (2.0,), until=20.0)
    assert [s.scale for s in longest] == [1.0, 2.0, 4.0, 8.0, 16.0]
    assert [s.scale for s in walk_orbit(objective, orbit, along, measure, 0.05, (2.0,), until=20.0)] == [1.0, 2.0]


def test_statistics_are_asked_for_at_the_moved_theta(setting):
    objective, orbit, along, measure = setting
    seen = {}

    def watched(scale):
        seen[scale] = [float(t.detach()) for t in objective.parameters.tensors]
        return measure(scale)

    walk_orbit(objective, orbit, along, watched, 0.05, (2.0, 4.0))
    assert seen == {1.0: [0.0, 3.0], 2.0: [0.0, 6.0], 4.0: [0.0, 12.0]}
    assert np.ndim(along) == 1
