"""Rules of interval arithmetic are tight: their ends are reached by the function on the box, up to rounding."""

import math
from decimal import Decimal, localcontext

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tests.criteria.models import closed
from villani.criteria.enclosed_functions import near, sigmoid, soft
from villani.criteria.intervals import Range
from villani.criteria.ranges import ranges
from villani.objective.graph import trace_loss

BOXES = [(-2.0, 3.0), (0.5, 4.0), (-5.0, -0.25)]
OF_ONE = {  # name → function of one number and, where it needs x > 0, True
    "exp": (torch.exp, False), "tanh": (torch.tanh, False), "sigmoid": (torch.sigmoid, False),
    "softplus": (F.softplus, False), "softplus, β = −2": (lambda x: F.softplus(x, beta=-2.0), False),
    "square": (torch.square, False), "cube": (lambda x: x**3, False), "log": (torch.log, True),
    "root": (torch.sqrt, True), "inverse root": (torch.rsqrt, True), "reciprocal": (torch.reciprocal, True),
    "modulus": (torch.abs, False), "relu": (F.relu, False), "leaky": (lambda x: F.leaky_relu(x, 0.2), False),
    "leaky, the other way": (lambda x: F.leaky_relu(x, -0.5), False), "clamp": (lambda x: x.clamp(-1.0, 2.0), False),
    "difference": (lambda x: 3 - 2 * x, False), "sum": (lambda x: x.expand(5).sum(), False),
    "mean": (lambda x: x.expand(5).mean(), False), "arctangent": (torch.atan, False),
}  # fmt: skip


@pytest.mark.parametrize("box", BOXES, ids=str)
def test_functions_of_one_number_reach_both_ends(box):
    """All in one loss, so that it is traced once; each against a fine grid of the box in float64."""
    names = [n for n, (_, positive) in OF_ONE.items() if not positive or box[0] > 0]
    graph = trace_loss(closed(lambda w: torch.stack([OF_ONE[n][0](w[:1]).sum() for n in names]).sum(), 0.7), 0.0)
    joined = next(n for n in graph.nodes if n.target is torch.ops.aten.cat.default)
    found = ranges(graph, {0: Range(*box, box[0] > 0)})
    grid = np.linspace(*box, 2001).tolist() + ([0.0] if box[0] < 0 < box[1] else [])
    x = torch.tensor(grid, dtype=torch.float64)
    for name, node in zip(names, joined.args[0], strict=True):
        values = torch.stack([OF_ONE[name][0](v[None]).sum() for v in x])
        low, high = float(values.min()), float(values.max())
        assert found[node].low == pytest.approx(low, rel=1e-5, abs=1e-6), name
        assert found[node].high == pytest.approx(high, rel=1e-5, abs=1e-6), name
        assert found[node].low <= low, name
        assert found[node].high >= high, name


OF_MANY = {  # of w (4,) in [a, b]⁴: the extremes by hand, from a, b
    "product": (lambda w: w[:2] * w[2:], lambda a, b: (min(a * a, a * b, b * b), max(a * a, b * b))),
    "of one and the same": (lambda w: w * w, lambda a, b: (0 if a < 0 < b else min(a * a, b * b), max(a * a, b * b))),
    "dot": (lambda w: w[:2] @ w[2:], lambda a, b: (2 * min(a * a, a * b, b * b), 2 * max(a * a, b * b))),
    "larger": (lambda w: torch.maximum(w[:2], w[2:]), lambda a, b: (a, b)),
    "cumulated": (lambda w: w.cumsum(0), lambda a, b: (min(a, 4 * a), max(b, 4 * b))),
    "variance": (lambda w: w.var(unbiased=False), lambda a, b: (0, (b - a) ** 2 / 4)),
    "norm": (lambda w: torch.linalg.vector_norm(w, 1), lambda a, b: (None, 4 * max(abs(a), abs(b)))),
    "joined": (lambda w: torch.cat([w, 2 * w]), lambda a, b: (min(a, 2 * a), max(b, 2 * b))),
}  # fmt: skip


@pytest.mark.parametrize("box", BOXES, ids=str)
def test_functions_of_many_reach_their_extremes(box):
    cases = list(OF_MANY.values())
    graph = trace_loss(closed(lambda w: torch.stack([f(w).sum() for f, _ in cases]).sum(), 0.7, 0.1, 0.4, 0.2), 0.0)
    joined = next(n for n in graph.nodes if n.target is torch.ops.aten.cat.default and len(n.args[0]) == len(cases))
    found = ranges(graph, {0: Range(*box)})
    for total, (name, (_, extremes)) in zip(joined.args[0], OF_MANY.items(), strict=True):
        node = total
        while node.target in (
            torch.ops.aten.unsqueeze.default,
            torch.ops.aten.sum.default,
            torch.ops.aten.view.default,
        ):
            node = node.args[0]
        low, high = extremes(*box)
        assert low is None or found[node].low == pytest.approx(low, rel=1e-4, abs=1e-5), name
        assert found[node].high == pytest.approx(high, rel=1e-4), name


@pytest.mark.parametrize("x", [-800.0, -40.0, -1.5, -1e-9, 0.0, 1e-9, 0.3, 20.0, 37.5, 700.0])
def test_library_functions_are_enclosed(x):
    """Against 60 decimal digits: four floats hold the truth."""
    with localcontext() as context:
        context.prec = 60
        exact = Decimal(x)
        truths = {sigmoid: 1 / (1 + (-exact).exp()), soft: (1 + exact.exp()).ln() if x else Decimal(2).ln()}
        if x < 700:
            truths[math.exp] = exact.exp()
        for function, truth in truths.items():
            low, high = near(function)(x)
            assert Decimal(low) <= truth <= Decimal(high), function
            assert high - low <= 1e-14 * high + 1e-320
    assert near(math.exp)(1e4)[1] == math.inf
