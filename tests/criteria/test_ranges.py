"""Intervals hold what is computed, and are tight where criteria lean on them."""

import math

import pytest
import torch
from torch.nn import functional as F

from tests.criteria.models import closed, make
from tests.criteria.test_smoothness import SMOOTH
from villani.criteria.intervals import Range, of_tensor
from villani.criteria.patterns import pieces
from villani.criteria.ranges import ranges
from villani.objective.graph import trace_loss


def check_contains(objective, radius, seeds):
    """Every value of the graph, at random θ within a box, lies in the range promised; constants being float32."""
    graph = trace_loss(objective, pieces(objective)[0])
    tensors = [t.detach().double() for t in objective.parameters.tensors]
    box = {i: Range(float(t.min()) - radius, float(t.max()) + radius) for i, t in enumerate(tensors)}
    promised = ranges(graph, box)
    finite = 0
    for seed in range(seeds):
        generator = torch.Generator().manual_seed(seed)
        moved = [t + radius * (2 * torch.rand(t.shape, generator=generator).double() - 1) for t in tensors]
        with objective.evaluating(), torch.no_grad():
            values = graph.values(moved, graph.nodes)
        for node, value in values.items():
            if not isinstance(value, torch.Tensor) or not value.is_floating_point():
                continue
            found, seen = promised[node], of_tensor(value)
            slack = 1e-6 * (1 + abs(seen.low) + abs(seen.high)) if math.isfinite(seen.low + seen.high) else 0.0
            assert found.low <= seen.low + slack, node
            assert found.high >= seen.high - slack, node
            assert not found.positive or seen.low > 0, node
            finite += found.bounded
    return finite


@pytest.mark.parametrize("spec", ["gpt2", "llama-160m?kv_heads=2"])
def test_models_stay_within(spec):
    assert check_contains(make(spec), 1.0, 3) > 100


def test_functions_stay_within():
    functions = [function for case, function in SMOOTH.items() if "−∞" not in case]
    assert check_contains(closed(lambda w: sum(function(w) for function in functions)), 3.0, 50) > 1000


OVER_ALL_OF_SPACE = [
    (lambda w: w.square().sum(), 0.0, math.inf),
    (lambda w: (w * w).mean() + 2, 2.0, math.inf),
    (lambda w: w.sigmoid().sum(), 0.0, 3.0),
    (lambda w: F.softplus(w).sum(), 0.0, math.inf),
    (lambda w: F.cross_entropy(w[None], torch.tensor([1])), 0.0, math.inf),
    (lambda w: F.binary_cross_entropy_with_logits(w, torch.tensor([0.0, 1.0, 0.3])), 0.0, math.inf),
    (lambda w: (w * torch.rsqrt(w.pow(2).mean(0, keepdim=True) + 1e-6)).sum(), -3 * 3**0.5, 3 * 3**0.5),
    (lambda w: F.layer_norm(w, (3,)).sum(), -3 * 3**0.5, 3 * 3**0.5),
    (lambda w: w.tanh().exp().sum(), 3 * math.exp(-1), 3 * math.e),
    (lambda w: (w**3).sum(), -math.inf, math.inf),
    # the norm of something else is no normalisation
    (lambda w: (w.exp() * torch.rsqrt(w.pow(2).mean(0, keepdim=True) + 1e-6)).sum(), 0.0, math.inf),
]


def test_over_all_of_space():
    """One loss that stacks them, so that it is traced once."""
    graph = trace_loss(closed(lambda w: torch.stack([f(w) for f, _, _ in OVER_ALL_OF_SPACE]).sum()), 0.0)
    joined = next(n for n in graph.nodes if n.target is torch.ops.aten.cat.default)
    found = ranges(graph, {})
    for node, (_, low, high) in zip(joined.args[0], OVER_ALL_OF_SPACE, strict=True):
        assert (found[node].low, found[node].high) == pytest.approx((low, high)), node
