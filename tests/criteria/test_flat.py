"""Flat directions: found, stated again, and refused where they are none."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.criteria.test_coverage import regression
from villani.criteria.flat import STEPS, flat_directions, reproved, verified, widened
from villani.criteria.patterns import pieces
from villani.criteria.shifts import Proposal
from villani.objective.graph import trace_loss
from villani.objective.objective import Objective


@pytest.fixture(scope="module")
def softmax():
    """Softmax regression whose output bias does not decay, and its graph; a constant shift of the bias is flat."""
    objective = regression("hf")
    return objective, [(trace_loss(objective, pieces(objective)[0]), 1.0)]


def test_the_shift_of_an_output_bias_is_found(softmax):
    objective, graphs = softmax
    [flat], proposed = flat_directions(objective, graphs, [1])
    assert proposed == 1
    assert flat.holds
    assert (flat.tensor, flat.index, flat.coordinates, flat.steps) == ("linear.bias", 1, 4, STEPS)
    assert flat.direction.tolist() == [1, 1, 1, 1]
    assert flat_directions(objective, graphs, [0]) == ([], 0), "no column of the matrix"


def test_a_tensor_that_the_loss_never_reads():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))

    objective = Objective(Two(), [0.0], 0.0, loss_fn=lambda m, _: F.softplus(m.a).sum())
    [flat], _ = flat_directions(objective, [(trace_loss(objective, 0.0), 1.0)], [0, 1])
    assert (flat.tensor, flat.coordinates, flat.deleted_by) == ("b", 3, ())
    assert float(flat.direction.abs().max()) == 1
    assert flat.changes == (0, 0, 0)


@pytest.mark.parametrize(
    ("index", "direction", "answer"),
    [
        (1, [1.0, 1.0, 1.0, 1.0], None),
        (1, [-1.0, -1.0, -1.0, -1.0], None),
        (1, [1.0, 1.0, 1.0, 0.0], "is not shown by the traced graph"),
        (1, [2.0, 2.0, 2.0, 2.0], "has 2 as its largest entry"),
        (1, [0.0, 0.0, 0.0, 0.0], "has 0 as its largest entry"),
        (0, [[1.0, 0.0]] * 4, "lies in a tensor that decays"),
    ],
)
def test_stated_directions_are_proved_again_or_refused(index, direction, answer, softmax):
    objective, graphs = softmax
    given = reproved(objective, graphs, [1], index, torch.tensor(direction))
    if answer is None:
        assert given.holds
        assert given.deleted_by
        assert "cross_entropy" in given.deleted_by[0]
    else:
        assert answer in given


def test_what_moves_the_loss_does_not_hold(softmax):
    objective, graphs = softmax
    direction = torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    with torch.no_grad():
        moved = verified(objective, graphs, Proposal(1, direction, "one entry"), ())
        weight, bias = widened(objective)
        x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], dtype=torch.float64)
        losses = [
            float(F.cross_entropy(x @ weight.T + bias + c * direction, torch.tensor([0, 1, 2]))) for c in (0, *STEPS)
        ]
    assert moved.changes == pytest.approx([abs(after - losses[0]) for after in losses[1:]])
    assert not moved.holds
    assert weight.dtype == torch.float64
