"""Shifts through operations: what is proved to leave the loss as it is, against the loss itself after a shift."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from villani.criteria.shifts import Proposal, Shifts
from villani.objective.graph import trace_loss
from villani.objective.objective import Objective

PLACES = torch.tensor([[0, 2, 1], [2, 1, 0]])
KERNEL = torch.tensor([[0.5, 0.2], [1.0, -0.3]], dtype=torch.float64)
ONES = torch.ones(2, 4, dtype=torch.float64)


def rows(*ends):
    """A direction that is constant along each row of v (2, 4)."""
    return torch.tensor(ends, dtype=torch.float64)[:, None].expand(2, 4)


CASES = {  # f(v) and a direction, which f has to turn into one that is constant along the last dimension
    "largest": (lambda v: v.topk(3).values, rows(1, -2)),
    "in order": (lambda v: v.sort(dim=-1, descending=True).values, rows(1, 3)),
    "largest of each row": (lambda v: v.max(dim=1, keepdim=True).values + v, rows(1, -1)),
    "where the largest are": (lambda v: ONES.cumsum(1).gather(1, v.topk(3).indices) + v[:, :3], rows(2, 1)),
    "compared and added": (lambda v: torch.where(v > v.flip(1), ONES, -ONES) + v, rows(1, -2)),
    "convolved": (lambda v: F.conv1d(v[None], KERNEL[:, None], groups=2)[0], rows(1, 2)),
    "as a bias": (lambda v: F.conv1d(ONES[None].cumsum(2), KERNEL[None].mT @ KERNEL[:, :1], v[:1, 0])[0], rows(1, 0)),
    "put into zeros": (lambda v: torch.zeros_like(v)[:, :3].scatter(1, PLACES, v[:, :3]), rows(1, -1)),
    "put into": (lambda v: (2 * v)[:, :3].scatter(1, PLACES, v[:, :3] * 2), rows(1, -1)),
    "added to": (lambda v: v[:, :3].scatter_add(1, PLACES, v[:, 1:]), rows(1, 2)),
    "rows put": (lambda v: torch.zeros_like(v).index_put((torch.tensor([1, 0]),), v), rows(1, 2)),
    "rows added": (lambda v: v.index_add(0, torch.tensor([0, 0]), v, alpha=0.5), rows(1, 2)),
    "cumulated": (lambda v: v.cumsum(0), rows(1, 2)),
    "triangle": (lambda v: v.tril() + v.triu(1), rows(3, 1)),
}  # fmt: skip


class Normalised(nn.Module):
    """L = Σ tanh(w·n), n the layer norm of f(v)."""

    def __init__(self, function):
        super().__init__()
        draw = torch.Generator().manual_seed(4)
        self.function = function
        self.v = nn.Parameter(torch.randn(2, 4, dtype=torch.float64, generator=draw))

    def forward(self):
        y = self.function(self.v)
        return torch.tanh(F.layer_norm(y, y.shape[-1:]) * torch.arange(1.0, 1 + y.shape[-1]).to(y)).sum()


def proved(model, direction):
    objective = Objective(model, [0.0], 0.1, loss_fn=lambda m, _: m())
    graph = trace_loss(objective, 0.0)
    with torch.no_grad():
        shifts = Shifts(graph, [Proposal(0, direction.clone(), "")], [model.v.detach()])
    return shifts.gone(0)


def moved(model, direction):
    with torch.no_grad():
        start, before = model.v.clone(), float(model())
        model.v.add_(0.7 * direction)
        after = float(model())
        model.v.copy_(start)
    return abs(after - before)


@pytest.mark.parametrize("case", CASES)
def test_a_shift_that_is_deleted_leaves_the_loss_and_others_are_not_proved(case):
    function, direction = CASES[case]
    model = Normalised(function)
    assert moved(model, direction) < 1e-12
    assert proved(model, direction)
    if case == "as a bias":  # of one number: every direction is such a one
        return
    uneven = torch.tensor([[1.0, -0.4, 2.0, 0.3], [0.1, 1.0, -1.0, 0.5]], dtype=torch.float64)
    assert moved(model, uneven) > 1e-6
    assert not proved(model, uneven)
