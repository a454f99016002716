"""Products without a graph over the vocabulary, against automatic differentiation of the whole model."""

import gc

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.conftest import make_model, make_pool
from villani.curvature.headed import CrossEntropyHead, HeadedCurvature, linear_head
from villani.curvature.operators import Curvature
from villani.objective.objective import Objective


@pytest.mark.parametrize("kind", ["hessian", "gauss-newton"])
def test_a_product_lets_go_of_its_graph(kind):
    """At once, not when Python looks for cycles: what is kept for a batch is tokens × vocabulary."""
    operator = Curvature(Objective(make_model("gpt2").float(), make_pool(3)), kind)
    gc.collect()
    gc.disable()
    try:
        for _ in range(2):
            operator(torch.ones(operator.size))
        assert not [one for one in gc.get_objects() if type(one) is CrossEntropyHead]
    finally:
        gc.enable()


@pytest.mark.parametrize("exact", [True, False])
def test_slopes_of_a_head_move_as_autograd_has_it(exact):
    """(p − y)ᵀW and (p − y)hᵀ along (ḣ, Ẇ), more positions than are worked on at a time."""
    draw = torch.Generator().manual_seed(0)
    h, dh = (torch.randn(300, 5, generator=draw, dtype=torch.float64) for _ in range(2))
    w, dw = (torch.randn(7, 5, generator=draw, dtype=torch.float64) for _ in range(2))
    y = torch.randint(0, 7, (300,), generator=draw)
    head = CrossEntropyHead(h, w, y, exact=exact)

    def loss(h, w):
        return F.cross_entropy(h @ w.T, y, reduction="sum")

    assert head.loss == pytest.approx(float(loss(h, w)))
    slopes = torch.func.grad(loss, (0, 1))
    assert torch.allclose(head.slope(), slopes(h, w)[0])
    moved_h, moved_w = head.move(dh, dw)
    if exact:
        _, (expected_h, expected_w) = torch.func.jvp(slopes, (h, w), (dh, dw))
    else:  # of the Gauss–Newton matrix alone: JᵀSJ with z = Wh
        p = torch.softmax(h @ w.T, 1)
        dz = dh @ w.T + h @ dw.T
        dp = p * (dz - (p * dz).sum(1, keepdim=True))
        expected_h, expected_w = dp @ w, dp.T @ h
    assert torch.allclose(moved_h, expected_h)
    assert torch.allclose(moved_w, expected_w)
    assert torch.allclose(head.move(dh, None)[0], torch.func.jvp(lambda h: slopes(h, w)[0], (h,), (dh,))[1])


def test_which_heads_are_a_linear_map(model):
    objective = Objective(model, make_pool(3))
    weight = linear_head(objective)
    assert weight is model.get_output_embeddings().weight
    assert linear_head(Objective(model, make_pool(3), loss_fn=lambda m, g: m(g["input_ids"]).logits.sum())) is None
    model.lm_head = nn.Linear(8, 11).double()  # with a bias
    assert linear_head(Objective(model, make_pool(3))) is None


def test_a_batch_gives_its_loss_and_tokens():
    model = make_model("llama")
    objective = Objective(model, make_pool(2))
    [batch] = objective.batches(1)
    with objective.evaluating():
        weight = linear_head(objective)
        given = HeadedCurvature(objective, batch, objective.parameters.tensors, weight, gauss_newton=False)
    assert given.loss / given.tokens == pytest.approx(objective.loss(1))
    assert given.tokens == batch.tokens
