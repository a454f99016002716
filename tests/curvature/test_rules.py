"""Rules that carry jets through operations, against derivatives along a curve; those of test_architectures apart."""

import pytest
import torch
from torch.utils import _pytree as pytree

from villani.curvature.algebra import JetAlgebra
from villani.curvature.jets import Jet
from villani.curvature.rules import RULES

aten = torch.ops.aten


def draw(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


X, Y, M = draw(0, 2, 3, 4), draw(1, 2, 3, 4), draw(2, 4, 4)
MASK = X > 0.2
OPERATIONS = [  # operation, arguments: real tensors among them move, others do not
    (aten.view.default, (X, [6, 4])), (aten.reshape.default, (X, [4, 6])), (aten.flatten.using_ints, (X, 1, 2)),
    (aten.transpose.int, (X, 0, 2)), (aten.t.default, (M,)), (aten.permute.default, (X, [2, 0, 1])),
    (aten.unsqueeze.default, (X, 1)), (aten.squeeze.dim, (X[:1], 0)), (aten.expand.default, (X[:1], [5, 3, 4])),
    (aten.repeat.default, (X, [1, 2, 1])), (aten.slice.Tensor, (X, 2, 1, 4, 2)), (aten.select.int, (X, 1, 2)),
    (aten.flip.default, (X, [0])), (aten.roll.default, (X, [1], [2])), (aten.diagonal.default, (M,)),
    (aten.index_select.default, (X, 1, torch.tensor([2, 0]))), (aten.neg.default, (X,)),
    (aten.mean.dim, (X, [-1], True)), (aten.mean.default, (X,)), (aten.sum.dim_IntList, (X, [0, 2])),
    (aten.sum.default, (X,)), (aten.tril.default, (X,)), (aten.triu.default, (X, 1)),
    (aten.split.Tensor, (X, 2, 2)), (aten.split_with_sizes.default, (X, [1, 3], 2)), (aten.chunk.default, (X, 2, 0)),
    (aten.unbind.int, (X, 1)), (aten.cat.default, ([X, Y, torch.ones(2, 1, 4, dtype=torch.int64)], 1)),
    (aten.matmul.default, (X, M)), (aten.bmm.default, (X, Y.mT.contiguous())), (aten.mm.default, (M, M)),
    (aten.mul.Tensor, (X, Y)), (aten.mul.Tensor, (X, 2.5)), (aten.mul.Tensor, (X, Y[:, :1])),
    (aten.add.Tensor, (X, Y[0])), (aten.add.Tensor, (X, 2)), (aten.sub.Tensor, (X, Y)), (aten.sub.Tensor, (X, 1.5)),
    (aten.div.Tensor, (X, Y + 5)), (aten.div.Tensor, (X, 3.0)), (aten.linear.default, (X, M, Y[0, 0])),
    (aten.linear.default, (X, M)), (aten.addmm.default, (Y[0, 0], X[0], M)), (aten.where.self, (MASK, X, Y)),
    (aten.where.ScalarSelf, (MASK, 2.0, X)), (aten.masked_fill.Scalar, (X, MASK, -3.0)),
    (aten.maximum.default, (X, Y)), (aten.min.other, (X, Y)), (aten.softmax.int, (X, -1)),
    (aten._softmax.default, (X, 1, False)), (aten.layer_norm.default, (X, [4], Y[0, 0], Y[0, 1], 1e-3)),
    (aten.layer_norm.default, (X, [3, 4])), (aten.embedding.default, (M, torch.tensor([[0, 3], [1, 1]]))),
    (aten.clamp_min.default, (X, -0.1)),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(OPERATIONS)), ids=lambda n: str(OPERATIONS[n][0]))
def test_two_derivatives_along_a_curve(number):
    """Every part of a value: d/dε and d²/dε² where arguments move as x + ε·v + ½ε²·a."""
    operation, arguments = OPERATIONS[number]
    leaves, tree = pytree.tree_flatten(arguments)
    moving = [isinstance(a, torch.Tensor) and a.is_floating_point() for a in leaves]
    v = [draw(10 + i, *a.shape) if m else None for i, (a, m) in enumerate(zip(leaves, moving, strict=True))]
    a = [draw(20 + i, *x.shape) if m else None for i, (x, m) in enumerate(zip(leaves, moving, strict=True))]
    jets = [Jet(x, {0: p}, {0: q}) if m else x for x, p, q, m in zip(leaves, v, a, moving, strict=True)]
    found = RULES[operation](JetAlgebra([0]), operation, *pytree.tree_unflatten(jets, tree))

    e = torch.zeros((), dtype=torch.float64, requires_grad=True)
    curve = [x + e * p + e**2 / 2 * q if m else x for x, p, q, m in zip(leaves, v, a, moving, strict=True)]
    values = operation(*pytree.tree_unflatten(curve, tree))
    pairs = [(found, values)] if isinstance(found, Jet) else zip(found, values, strict=True)
    for jet, value in pairs:
        assert torch.allclose(jet.x, value)
        for seed in (5, 6):  # torch.func has layer norms' second derivatives wrong, plain autograd has them right
            weights = draw(seed, *value.shape)
            (slope,) = torch.autograd.grad((value * weights).sum(), e, create_graph=True)
            bend = torch.autograd.grad(slope, e, retain_graph=True)[0] if slope.requires_grad else torch.zeros(())
            assert float((jet.first[0] * weights).sum()) == pytest.approx(slope.item(), rel=1e-10, abs=1e-11)
            second = jet.second.get(0, torch.zeros_like(value))
            assert float((second * weights).sum()) == pytest.approx(bend.item(), rel=1e-10, abs=1e-11)
