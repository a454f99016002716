"""Traced losses as they are read: arguments, spelled-out norms, limits, masks, and what depends on θ."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.criteria.models import closed, make
from villani.criteria import patterns
from villani.criteria.patterns import depends_on, every_row_open, masks, pieces
from villani.objective.graph import trace_loss
from villani.objective.objective import Objective

aten = torch.ops.aten


def terms_of(functions, *values):
    """A loss that is the sum of the functions of w: its graph, and the node that computes each."""
    graph = trace_loss(closed(lambda w: torch.stack([f(w) for f in functions]).sum(), *values), 0.0)
    joined = [n for n in graph.nodes if n.target is aten.cat.default and len(n.args[0]) == len(functions)]
    nodes = []
    for node in joined[-1].args[0]:
        while node.target in (aten.unsqueeze.default, aten.view.default):
            node = node.args[0]
        nodes.append(node)
    return graph, nodes


NORMS = {  # of w (3,): the pattern that reads it, entries, ε; None where it is no norm of w
    "mean square": (lambda w: w.pow(2).mean(0, keepdim=True)[0] * 1.0, None, None),
    "root": (lambda w: ((w * w).mean() + 1e-3).sqrt(), "root_mean_square", 1e-3),
    "half power": (lambda w: (w.square().mean() + 1e-3) ** 0.5, "root_mean_square", 1e-3),
    "inverse root": (lambda w: (w.pow(2).mean() + 0.5).rsqrt(), "inverse_norm", 0.5),
    "power −½": (lambda w: w.pow(2).mean() ** -0.5, "inverse_norm", 0.0),
    "reciprocal of a root": (lambda w: (0.25 + w.square().mean()).sqrt().reciprocal(), "inverse_norm", 0.25),
    "less than the mean square": (lambda w: (w.pow(2).mean() - 1e-3).abs().sqrt(), None, None),
    "of a cube": (lambda w: (w.pow(3).mean() + 1e-3).sqrt(), None, None),
    "a negative ε": (lambda w: (w.pow(2).mean() + -1e-3).rsqrt(), None, None),
}  # fmt: skip


def test_spelled_out_norms_are_read_as_what_they_are():
    graph, nodes = terms_of([f for f, _, _ in NORMS.values()])
    parameter = next(iter(graph.parameters))
    for (name, (_, pattern, eps)), node in zip(NORMS.items(), nodes, strict=True):
        for reader in ("root_mean_square", "inverse_norm"):
            value = getattr(patterns, reader)(node)
            assert value == ((parameter, 3, eps) if reader == pattern else None), name


def test_arguments_have_names_and_defaults():
    functions = [lambda w: F.leaky_relu(w, 0.3).sum(), lambda w: F.softplus(w).sum(), lambda w: w.clamp(max=2.0).sum()]
    graph, _ = terms_of(functions)
    by_target = {n.target: n for n in graph.nodes}
    leaky, soft, cut = (by_target[t] for t in (aten.leaky_relu.default, aten.softplus.default, aten.clamp.default))
    parameter = next(iter(graph.parameters))
    assert patterns.arguments(leaky) == {"self": parameter, "negative_slope": 0.3}
    assert patterns.changed(leaky) == {"self", "negative_slope"}
    assert patterns.arguments(soft) == {"self": parameter, "beta": 1, "threshold": 20}
    assert patterns.changed(soft) == {"self"}
    assert patterns.limits(cut) == (None, 2.0)
    assert patterns.entries(parameter) == 3
    assert patterns.entries(1.5) == 1
    assert patterns.is_floating(parameter)


@pytest.mark.parametrize(("target", "arguments"), [
    (aten.relu.default, ()), (aten.relu6.default, ()), (aten.hardtanh.default, (-0.5, 2.0)),
    (aten.clamp_min.default, (0.25,)), (aten.clamp_max.default, (0.75,)), (aten.clamp.default, (-1.0, 0.5)),
])  # fmt: skip
def test_limits_are_where_a_clamp_begins_to_hold(target, arguments):
    """Where the derivative by autograd is 0, and only there."""
    graph = torch.fx.Graph()
    node = graph.call_function(target, (graph.placeholder("x"), *arguments))
    low, high = patterns.limits(node)
    x = torch.linspace(-8, 8, 321, dtype=torch.float64)[1::2].requires_grad_()
    (slope,) = torch.autograd.grad(target(x, *arguments).sum(), x)
    inside = ((x > low) if low is not None else True) & ((x < high) if high is not None else x == x)
    assert torch.equal(slope != 0, inside)


def test_copies_and_casts_to_more_digits_are_looked_through():
    functions = [lambda w: w.double().float().clone().sum(), lambda w: w.bfloat16().float().sum()]
    graph, (kept, lost) = terms_of(functions)
    parameter = next(iter(graph.parameters))
    assert patterns.original(kept.args[0]) is parameter
    assert patterns.original(lost.args[0]) is not parameter, "bfloat16 rounds"


class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(2, 3))


def test_masks_are_read_off_additions_and_fillings():
    barred = torch.tensor([[False, True, True], [False, False, True]])
    bias = torch.where(barred, -torch.inf, 0.0)

    def loss(m, _):
        return (m.w + bias).softmax(1).amax() + m.w.masked_fill(barred, -torch.inf).softmax(1).amax()

    graph = trace_loss(Objective(Masked(), [0.0], 0.1, loss_fn=loss), 0.0)
    moved = depends_on(graph)
    fixed = {n: graph.constants[n] for n in graph.constants}
    softmaxes = [n for n in graph.nodes if "softmax" in str(n.target)]
    assert len(softmaxes) == 2
    for node in softmaxes:
        mask = masks(node.args[0], fixed, lambda n: n in graph.parameters)
        assert torch.equal(mask == -torch.inf, barred)
        assert every_row_open(mask, node, 1)
        assert not every_row_open(mask, node, 0), "the last column is barred as a whole"
        assert masks(node.args[0], {}, lambda n: n in graph.parameters) is None
        assert node in moved
    assert not every_row_open(None, softmaxes[0], 1)
    assert not every_row_open(torch.full((2, 3), math.nan), softmaxes[0], 1)


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = (nn.Parameter(torch.ones(2)) for _ in range(2))


def test_what_depends_on_theta_is_what_has_a_gradient():
    """Node by node against autograd: a shape or a new tensor like another carries nothing on."""

    def loss(m, _):
        return (m.a.exp() * torch.zeros_like(m.b).cos()).sum() + m.b.sin().sum() * m.a.shape[0]

    objective = Objective(Two(), [0.0], 0.1, loss_fn=loss)
    graph = trace_loss(objective, 0.0)
    for tensors in (None, {0}, {1}):
        leaves = [torch.ones(2).requires_grad_(tensors is None or i in tensors) for i in range(2)]
        values = graph.values(leaves, set(graph.nodes))
        expected = {n for n, v in values.items() if isinstance(v, torch.Tensor) and v.requires_grad}
        assert {n for n in depends_on(graph, tensors) if n.op == "call_function"} == {
            n for n in expected if n.op == "call_function"
        }


def test_one_block_of_each_kind_of_input_stands_for_all():
    ids = torch.arange(12).view(2, 6)
    mask = torch.ones_like(ids)
    mask[0] = torch.tensor([1, 0, 0, 0, 0, 0])  # a row that predicts nothing
    [found] = pieces(Objective(make("gpt2").model, [{"input_ids": ids, "attention_mask": mask}] * 2))
    assert found.ids.tolist() == ids[1:].tolist()
    assert found.tokens == 5
    assert pieces(closed(lambda w: w.sum(), groups=(1.0, 2.0))) == [1.0, 2.0]
