import weakref

import numpy as np
import pytest
import torch

from tests.conftest import dense, make_model, make_pool
from villani.curvature.group import GroupPass, group_statistics
from villani.curvature.sketch import GradientSketch
from villani.curvature.trace import sampler_for
from villani.curvature.ways import Way
from villani.objective.objective import Objective
from villani.objective.parameters import double_dot

WAYS = [
    Way("gauss-newton"), Way("hutchinson"), Way("hutchinson", products="forward-over-reverse"),
    Way("hutchinson", products="finite-differences"), Way("taylor"), Way("taylor", "layer"),
]  # fmt: skip


@pytest.mark.parametrize("way", WAYS, ids=lambda way: f"{way.key}-{way.products}")
def test_every_way_makes_the_same_pass(way):
    """Tokens, loss and gradient beside the samples are those of plain autograd, whatever the way and the probes."""
    model, pool = make_model("gpt2"), make_pool()
    objective = Objective(model, pool)
    oracle = dense(model, pool[1])
    sampler = sampler_for(objective, way)
    sampler.prepare(1)
    statistics = group_statistics(objective, 1, 2, 3, sampler, GradientSketch(objective.parameters, 3))
    theta = torch.cat([t.detach().reshape(-1) for t in objective.parameters.tensors]).numpy()
    assert statistics.tokens == oracle.tokens
    assert statistics.loss == pytest.approx(oracle.loss, abs=1e-8)
    assert np.allclose(statistics.gradient, oracle.gradient, atol=1e-8)
    assert statistics.dots.sum() == pytest.approx(oracle.gradient @ theta, abs=1e-7)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: f"{way.key}-{way.products}")
def test_more_probes_cost_more(way):
    objective = Objective(make_model("gpt2"), make_pool())
    sampler = sampler_for(objective, way)
    assert 1 < sampler.cost(1) < sampler.cost(2) < sampler.cost(9)


def test_nothing_of_a_graph_is_left_when_its_gradient_is_added(monkeypatch):
    """Else Taylor sweeps would hold the memory of a backward pass that is over, and sketches that of the logits."""
    objective = Objective(make_model("gpt2"), make_pool())
    one = GroupPass(objective, 0, GradientSketch(objective.parameters, 0))
    logits, seen = [], []
    forward, add = objective.forward, one.add_gradient

    def watched(batch):
        result = forward(batch)
        logits.append(weakref.ref(result.logits))
        return result

    def added(gradient):
        seen.append(logits[-1]())
        add(gradient)

    monkeypatch.setattr(objective, "forward", watched)
    monkeypatch.setattr(one, "add_gradient", added)
    with objective.evaluating():
        for _ in one.differentiated():
            assert logits[-1]() is None
        assert seen == [None] * len(logits)
        for _, result in one.forwards():
            del result
            assert logits[-1]() is None
    assert len(logits) == 2 * len(seen) > 0


def test_inner_products_are_in_float64():
    """2²⁰ + 1 entries of 1 beside one of 10⁹: float32 would lose all of them."""
    a = torch.ones((1 << 20) + 2)
    a[-1] = 1e9
    assert double_dot(a, torch.ones_like(a)) == 1e9 + (1 << 20) + 1
