import numpy as np
import pytest
import torch

from tests.criteria.models import make
from tests.criteria.test_orbits import examined, factors, found
from villani import Objective, audit
from villani.criteria.orbits import exponents_of, orbits_of, pooled, replaced, threshold
from villani.criteria.parts import PartStatistics, parts_of
from villani.criteria.search import candidate, descent, pool


def squared(product):
    """L = (ab − 1)²/2."""
    return (product - 1) ** 2 / 2


def test_descent_leaves_what_the_decay_puts_into_the_threshold():
    """s* = (λ²a² + a²(ab − 1)²)/a² for B = b: λ² + (ab − 1)² at θ, λ² where L is least over b."""
    given = audit(factors(squared, 2.0, 1.0, weight_decay=0.3), temperature=1.0, search=0, rays=()).differential
    assert given.refuted_above == pytest.approx(0.09 + 1.0, rel=1e-9)
    objective = factors(squared, 2.0, 1.0, weight_decay=0.3)
    before = objective.parameters.checksum()
    searched = audit(objective, temperature=1.0, rays=()).differential
    assert objective.parameters.checksum() == before
    assert searched.refuted_above == pytest.approx(0.09, rel=1e-6)
    assert searched.findings[0].moved
    assert "at a θ that the search led to" in searched.outcome.reason
    for step in searched.findings[0].walk:
        assert step.measured.value == pytest.approx(step.predicted.value, rel=1e-6)


def test_descent_moves_the_block_alone():
    objective = make("gpt-neo-125m?window=3")
    basis = found(objective)
    parts = parts_of(objective.parameters, [g.exponents for g in basis])
    orbit = next(o for o in orbits_of(basis, objective.parameters) if o.theorem == "D")
    block = np.flatnonzero(exponents_of(orbit, parts) == -orbit.down).tolist()
    moved = descent(objective, parts, block, range(2), 3)
    inside = parts.confine([torch.ones_like(t) for t in objective.parameters.tensors], block)
    assert set(moved) == {i for i, t in enumerate(inside) if t.any()}
    for i, value in moved.items():
        there = objective.parameters.tensors[i].detach()
        assert torch.equal(value[inside[i] == 0], there[inside[i] == 0])
        assert not torch.equal(value, there)
    before = objective.loss()
    with replaced(objective, moved):
        assert objective.loss() < before


def noisy(trace_means, trace_noise, seed=0, groups=12):
    """Statistics of len(trace_means) one-entry parts: no gradient to speak of, traces with noise."""
    random = np.random.default_rng(seed)
    count = len(trace_means)
    gradients = random.standard_normal((groups, count))
    total = gradients.sum(axis=0)
    return PartStatistics(
        tokens=np.ones(groups), losses=np.ones(groups), norms=np.ones(count), dots=np.zeros((groups, count)),
        squares=gradients**2, products=gradients * total, totals=total**2,
        traces=(trace_means + trace_noise * random.standard_normal((groups, count)))[:, None], finite=False,
        exact=False,
    )  # fmt: skip


class Pairs(torch.nn.Module):
    """K pairs of factors."""

    def __init__(self, count):
        super().__init__()
        self.a = torch.nn.ParameterList(torch.nn.Parameter(torch.ones(())) for _ in range(count))
        self.b = torch.nn.ParameterList(torch.nn.Parameter(torch.ones(())) for _ in range(count))


def pairs(count):
    def loss(m, _):
        return sum((a * b - 1) ** 2 for a, b in zip(m.a, m.b, strict=True))

    return Objective(Pairs(count), [0.0] * 12, 0.0, loss_fn=loss)


def test_orbits_that_are_unsure_alone_are_pooled():
    objective = pairs(6)
    orbits = [o for o in orbits_of(found(objective), objective.parameters) if " b." in o.name]
    assert len(orbits) == 6
    parts = parts_of(objective.parameters, [o.exponents for o in orbits])
    statistics = noisy(np.ones(parts.count), 2.0)

    def exponents(orbit):
        return exponents_of(orbit, parts)

    together = pool(orbits, exponents, statistics, objective)
    assert together is not None
    assert "more at once" in together.name
    alone = threshold(exponents(orbits[0]), statistics, 0.0)
    assert threshold(exponents(together), statistics, 0.0).upper < alone.upper
    assert pool(orbits[:1], exponents, statistics, objective) is None
    assert pooled([orbits[0], orbits[0]], objective.parameters) is None, "exponent 2 is no orbit of the same kind"


def test_descent_starts_where_the_floor_is_lowest():
    small = make("gpt-neo-125m?window=3")
    ids = torch.randint(0, 13, (6, 2, 7), generator=torch.Generator().manual_seed(2))
    found_orbits, statistics = examined(Objective(small.model, ids, 0.1), probes=2)
    screened = {orbit.name: threshold(e, statistics, 0.1) for orbit, e in found_orbits}
    best = candidate([orbit for orbit, _ in found_orbits], screened)
    assert best is None or screened[best.name].laplacian.value > 2 * screened[best.name].laplacian.sem
    assert candidate([], {}) is None
