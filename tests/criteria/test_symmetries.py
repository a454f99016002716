"""The symmetries that a traced loss shows: a basis of the rescalings, against the equations that exponents satisfy."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from villani.criteria.degrees import Degrees
from villani.criteria.symmetries import generators
from villani.objective.graph import trace_loss
from villani.objective.objective import Objective


class Scalars(nn.Module):
    def __init__(self, count):
        super().__init__()
        values = torch.tensor([0.7, 1.3, 0.4, 2.1, 0.9][:count], dtype=torch.float64)
        self.w = nn.ParameterList(nn.Parameter(v) for v in values)


def objective(function, count):
    return Objective(Scalars(count), [0.0], 0.1, loss_fn=lambda m, _: function(*m.w))


CASES = {  # L, and the rows that every exponent is orthogonal to
    "a monomial": (lambda a, b, c: F.softplus(a * b**2 / c), [[1, 2, -1]]),
    "two of them": (lambda a, b, c, d: torch.tanh(a * b) + torch.sin(b * c * d), [[1, 1, 0, 0], [0, 1, 1, 1]]),
    "a root": (lambda a, b: torch.sigmoid((a * a).sqrt() * b**3), [[1, 3]]),
    "a homogeneous sum": (lambda a, b, c: torch.tanh((a + b) * c), [[1, -1, 0], [1, 0, 1]]),
    "a ratio": (lambda a, b, c: torch.tanh((a + b) / c), [[1, -1, 0], [1, 0, -1]]),
    "a number added": (lambda a, b: torch.tanh((a + 1) * b), [[1, 0], [0, 1]]),
    "one that is not used": (lambda a, b, c: torch.tanh(a * b), [[1, 1, 0]]),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_basis_spans_what_the_equations_leave(case):
    function, rows = CASES[case]
    rows = torch.tensor(rows, dtype=torch.float64)
    basis = generators(trace_loss(objective(function, rows.shape[1]), 0.0))
    zero = torch.zeros(())
    exponents = torch.tensor([[float(g.exponents.get(i, zero)) for i in range(rows.shape[1])] for g in basis])
    exponents = exponents.double().reshape(len(basis), rows.shape[1])
    assert not (exponents @ rows.T).any()
    unused = 1 if case == "one that is not used" else 0  # no graph speaks of it
    dimension = rows.shape[1] - int(torch.linalg.matrix_rank(rows)) - unused
    assert len(basis) == dimension
    assert int(torch.linalg.matrix_rank(exponents)) == dimension if dimension else not exponents.numel()


class Channels(nn.Module):
    """Σ_k tanh(v_k·u_k) over channels, each of which has a rescaling of its own."""

    def __init__(self, count):
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        self.v = nn.Parameter(torch.randn(count, generator=draw).double())
        self.u = nn.Parameter(torch.randn(count, generator=draw).double())


@pytest.mark.parametrize("count", [1, 3, 50])
def test_channels_that_are_alike_are_moved_together(count):
    """One generator for all; and it leaves the loss as it is."""
    given = Objective(Channels(count), [0.0], 0.1, loss_fn=lambda m, _: torch.tanh(m.v * m.u).sum())
    graph = trace_loss(given, 0.0)
    [g] = generators(graph)
    assert set(g.exponents) == {0, 1}
    assert (g.exponents[0].expand(count) == -g.exponents[1].expand(count)).all()
    tensors = [t.detach() for t in given.parameters.tensors]
    for scale in (0.5, 8.0):
        moved = [t * scale ** g.exponents[i] for i, t in enumerate(tensors)]
        assert torch.equal(graph.run(moved), graph.run(tensors))


def test_a_graph_and_its_degrees_give_the_same():
    graph = trace_loss(objective(CASES["two of them"][0], 4), 0.0)
    ours, theirs = generators(graph), generators(Degrees(graph))
    for a, b in itertools.zip_longest(ours, theirs):
        assert a.exponents.keys() == b.exponents.keys()
        assert all(torch.equal(e, b.exponents[i]) for i, e in a.exponents.items())
