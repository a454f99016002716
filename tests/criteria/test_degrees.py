"""Degrees of traced losses: what is demanded of exponents, what they are, and what is passed over."""

import torch
from torch import nn
from torch.nn import functional as F

from villani.criteria.degrees import Degrees
from villani.objective.graph import trace_loss
from villani.objective.objective import Objective


class Layers(nn.Module):
    """x → W_2 |W_1 x|: a rescaling for each hidden channel."""

    def __init__(self, hidden=3):
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        self.first = nn.Parameter(torch.randn(hidden, 2, generator=draw, dtype=torch.float64))
        self.second = nn.Parameter(torch.randn(1, hidden, generator=draw, dtype=torch.float64))


def degrees_of(function, model=None, **options):
    objective = Objective(model or Layers(), [torch.ones(2, dtype=torch.float64)], 0.1, loss_fn=function)
    return Degrees(trace_loss(objective, objective.groups[0]), **options)


def free(degrees, shapes):
    """(unknowns, entries) exponents of all entries, a row for each unknown that is left free."""
    forms = []
    for index, shape in enumerate(shapes):
        if index in degrees.maps:
            outputs, inputs = degrees.maps[index]
            entries = degrees.pairs(outputs.unsqueeze(-1), inputs.unsqueeze(-2), -1)
        else:
            entries = degrees.tensors[index]
        forms += [degrees.equations.resolve(k) for k in entries.expand(shape).flatten().tolist()]
    unknowns = sorted({u for form in forms for u in form})
    return torch.tensor([[float(form.get(u, 0)) for form in forms] for u in unknowns]).reshape(
        len(unknowns), len(forms)
    )


def test_every_hidden_channel_has_a_rescaling_of_its_own():
    degrees = degrees_of(lambda m, x: torch.tanh(m.second @ (m.first @ x).abs()).sum())
    exponents = free(degrees, [(3, 2), (1, 3)])
    assert int(torch.linalg.matrix_rank(exponents)) == 3
    for row in exponents:
        first, second = row[:6].view(3, 2), row[6:]
        assert torch.equal(first[:, 0], first[:, 1])
        assert torch.equal(first[:, 0], -second)
    assert degrees.skipped.all() == ()


BETWEEN = [torch.tanh, torch.exp, F.gelu, lambda y: y + 1, torch.abs, torch.cos, lambda y: y**3, F.softplus]


def test_what_wants_degree_0_leaves_none():
    """A channel for each function: those that are homogeneous let it be rescaled, the others do not."""

    def loss(m, x):
        hidden = torch.stack([f(y) for f, y in zip(BETWEEN, (m.first @ x).unbind(), strict=True)])
        return torch.tanh(m.second @ hidden).sum()

    exponents = free(degrees_of(loss, Layers(8)), [(8, 2), (1, 8)])
    assert exponents[:, :16].view(-1, 8, 2).any(0).any(1).nonzero().flatten().tolist() == [4, 6]
    assert int(torch.linalg.matrix_rank(exponents)) == 2
    cubed = exponents[:, [2 * 6, 16 + 6]]
    assert (3 * cubed[:, 0] == -cubed[:, 1]).all()


def test_homogeneity_of_the_loss_itself_is_no_symmetry():
    """‖W_1 x‖² scales with W_1, and must not: L has degree 0."""
    degrees = degrees_of(lambda m, x: (m.first @ x).square().sum() + 0 * m.second.sum())
    assert not free(degrees, [(3, 2)]).any()


def test_whole_numbers_are_not_read():
    """A cast jumps: what is taken of θ there has degree 0, and is named."""
    degrees = degrees_of(lambda m, x: torch.tanh(m.second @ (m.first @ x).long().double()).sum())
    assert not free(degrees, [(3, 2), (1, 3)]).any()
    assert [s.reason[:19] for s in degrees.skipped.all()] == ["gives whole numbers"]
