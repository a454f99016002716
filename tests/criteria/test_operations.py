"""How smooth operations are: the table against one-sided derivatives at the point where each is worst."""

import math

import pytest
import torch
from torch.nn import functional as F

from tests.criteria.models import closed
from villani.criteria.intervals import Range, of_tensor
from villani.criteria.operations import RULES
from villani.criteria.ranges import ranges
from villani.objective.graph import trace_loss

# function of one number, the point to look at, and the first derivative that jumps there (None: no derivative jumps)
FUNCTIONS = {
    "exp": (torch.exp, 0.0, None), "gelu": (F.gelu, 0.0, None), "silu": (F.silu, 0.0, None),
    "cube": (lambda x: x**3, 0.0, None), "softplus": (F.softplus, 0.0, None), "erf": (torch.erf, 0.0, None),
    "relu": (F.relu, 0.0, 1), "modulus": (torch.abs, 0.0, 1), "clamp": (lambda x: x.clamp(max=2.0), 2.0, 1),
    "relu6": (F.relu6, 6.0, 1), "leaky": (F.leaky_relu, 0.0, 1), "hardtanh": (F.hardtanh, -1.0, 1),
    "selu": (F.selu, 0.0, 1), "hard swish": (F.hardswish, 3.0, 1), "elu": (F.elu, 0.0, 2),
    "elu, α = 2": (lambda x: F.elu(x, 2.0), 0.0, 1), "celu": (F.celu, 0.0, 2),
    "larger": (lambda x: torch.maximum(x, 0.5 * x), 0.0, 1), "round": (torch.round, 0.5, 0),
    "floor": (torch.floor, 1.0, 0), "sign": (torch.sign, 0.0, 0), "hard shrink": (F.hardshrink, 0.5, 0),
    "threshold": (lambda x: F.threshold(x, 1.0, 0.0), 1.0, 0),
    "soft plus cut off": (lambda x: F.softplus(x, threshold=1), 1.0, 0),
}  # fmt: skip
KINDS = {0: "discontinuous", 1: "lipschitz", 2: "lipschitz"}


def one_sided(function, point, order):
    """The derivative of this order just below and just above a point."""
    sides = []
    for step in (-1e-9, 1e-9):
        x = torch.tensor([point + step], dtype=torch.float64, requires_grad=True)
        value = function(x).sum()
        for _ in range(order):
            (gradient,) = torch.autograd.grad(value, x, create_graph=True, allow_unused=True, materialize_grads=True)
            value = gradient.sum()
            if not value.requires_grad:
                break
        sides.append(float(value.detach()))
    return sides


@pytest.fixture(scope="module")
def judged():
    """Each function's flaw, of one trace in which w may be anything."""
    names = list(FUNCTIONS)
    graph = trace_loss(closed(lambda w: torch.stack([FUNCTIONS[n][0](w).sum() for n in names]).sum(), 0.7), 0.0)
    joined = next(n for n in graph.nodes if n.target is torch.ops.aten.cat.default)
    known = ranges(graph, {})
    flaws = {}
    for name, node in zip(names, joined.args[0], strict=True):
        chain, flaw = [node], None
        while chain:
            n = chain.pop()
            flaw = flaw or RULES[n.target].flaw(n, known)
            chain += [i for i in n.all_input_nodes if i.op == "call_function"]
        flaws[name] = flaw
    return flaws


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_table_says_which_derivative_jumps(name, judged):
    function, point, order = FUNCTIONS[name]
    for k in range(3 if order is None else order + 1):
        below, above = one_sided(function, point, k)
        assert (abs(above - below) > 1e-3) == (k == order)
    flaw = judged[name]
    assert (flaw and flaw.kind) == (None if order is None else KINDS[order])
    if order == 2:
        assert "jumps" in flaw.consequence


def test_kinks_that_are_out_of_reach_are_none():
    graph = trace_loss(closed(lambda w: F.relu(w.tanh() + 2).sum() + w.tanh().clamp(-1.5, 1.5).sum(), 0.7), 0.0)
    known = ranges(graph, {})
    flaws = [RULES[n.target].flaw(n, known) for n in graph.nodes if "relu" in str(n.target) or "clamp" in str(n.target)]
    assert flaws == [None, None]


SINGULAR = [  # operation, arguments behind the first, entries from a domain of definition and from outside of it
    (torch.ops.aten.log.default, (), [0.1, 2.0], [0.0, -1.0]),
    (torch.ops.aten.sqrt.default, (), [1e-6, 3.0], [0.0]),
    (torch.ops.aten.reciprocal.default, (), [-1.0, -0.2], [0.0]),
    (torch.ops.aten.log1p.default, (), [-0.5, 9.0], [-1.0, -2.0]),
    (torch.ops.aten.acos.default, (), [-0.9, 0.9], [1.0, -1.0, 1.5]),
    (torch.ops.aten.pow.Tensor_Scalar, (-2,), [0.5, 1.0], [0.0]),
    (torch.ops.aten.pow.Tensor_Scalar, (1.5,), [0.5, 1.0], [0.0, -0.5]),
]


@pytest.mark.parametrize(("target", "rest", "inside", "outside"), SINGULAR)
def test_demands_are_met_where_derivatives_of_all_orders_exist(target, rest, inside, outside):
    graph = torch.fx.Graph()
    node = graph.call_function(target, (graph.placeholder("x"), *rest))
    [demand] = RULES[target].demands(node)
    assert demand.position == 0
    assert demand.met(of_tensor(torch.tensor(inside)))
    assert not demand.violated(torch.tensor(inside)).any()
    for x in outside:
        assert demand.violated(torch.tensor([x])).all()
        assert not demand.met(of_tensor(torch.tensor([*inside, x])))
        third = torch.tensor(x, dtype=torch.float64)
        for _ in range(3):  # on the edge or outside some derivative is infinite or no number
            last = torch.func.jvp(lambda t: target(t, *rest), (third,), (torch.ones_like(third),))[1]
        values = [target(third, *rest), last, torch.func.hessian(lambda t: target(t, *rest))(third)]
        assert not all(bool(v.isfinite()) for v in values)


def test_powers_that_are_polynomials_demand_nothing():
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    for n in (0, 1, 2, 3.0, 7):
        assert (
            RULES[torch.ops.aten.pow.Tensor_Scalar].demands(
                graph.call_function(torch.ops.aten.pow.Tensor_Scalar, (x, n))
            )
            == []
        )
    [demand] = RULES[torch.ops.aten.div.Tensor].demands(graph.call_function(torch.ops.aten.div.Tensor, (x, x)))
    assert demand.position == 1, "the divisor"
    assert not demand.met(Range(-math.inf, math.inf))
