"""Members of a family do what it says, on a tensor of distinct numbers."""

import pytest
import torch
from torch.utils import _pytree as pytree

from villani.objective.families import CHOSEN, COPIED, MOVED, NEW, SPLIT

aten = torch.ops.aten
X = torch.arange(1.0, 25.0).view(2, 3, 4)
MATRIX = (X[0],)
PLACES = torch.tensor([[[2, 0, 1, 1]]])
CASES = {
    **dict.fromkeys(COPIED, (X,)),
    **dict.fromkeys([aten.view.default, aten._unsafe_view.default, aten.reshape.default], (X, [6, -1])),
    aten.flatten.using_ints: (X, 1, 2),
    aten.transpose.int: (X, 0, 2),
    **dict.fromkeys([aten.t.default, aten.numpy_T.default], MATRIX),
    aten.permute.default: (X, [2, 0, 1]),
    aten.unsqueeze.default: (X, 1),
    aten.squeeze.default: (X[:, :1].clone(),),
    aten.squeeze.dim: (X[:, :1].clone(), 1),
    aten.squeeze.dims: (X[:1, :1].clone(), [0, 1]),
    aten.expand.default: (X[:, :1].clone(), [-1, 5, -1]),
    aten.repeat.default: (X, [2, 1, 3]),
    aten.slice.Tensor: (X, 2, 1, 4, 2),
    aten.select.int: (X, 1, -1),
    aten.flip.default: (X, [0, 2]),
    aten.roll.default: (X, [1], [2]),
    aten.diagonal.default: (X, 1, 1, 2),
    aten.unfold.default: (X, 2, 3, 1),
    aten.split.Tensor: (X, 2, 1),
    aten.split_with_sizes.default: (X, [1, 3], 2),
    aten.chunk.default: (X, 2, -1),
    aten.unbind.int: (X, 1),
    aten.index.Tensor: (X, [None, torch.tensor([2, 0])]),
    aten.index_select.default: (X, 1, torch.tensor([2, 0])),
    aten.gather.default: (X, 1, PLACES),
}


def test_every_member_is_tried():
    assert {*MOVED, *SPLIT, *CHOSEN} == set(CASES)


@pytest.mark.parametrize("operation", list(CASES), ids=str)
def test_entries_are_those_of_the_first_argument_whatever_they_are(operation):
    """Twice the numbers give twice the entries, and each is one of those that came in."""
    first, *rest = CASES[operation]
    result, doubled = (pytree.tree_leaves(operation(t, *rest)) for t in (first, 2 * first))
    assert bool(torch.isin(torch.cat([part.flatten() for part in result]), first).all())
    assert all(torch.equal(2 * a, b) for a, b in zip(result, doubled, strict=True))


@pytest.mark.parametrize("operation", NEW, ids=str)
def test_new_tensors_take_no_values_over(operation):
    arguments = [[2, 3]] if "new_" in str(operation) else []
    arguments += [7.0] if "full" in str(operation) else []
    assert torch.equal(operation(X, *arguments), operation(-5 * X, *arguments))
