"""A head's slopes and second derivatives, against autograd of cross-entropy."""

import pytest
import torch

from villani.curvature.head import LABELS
from villani.curvature.head_adjoint import head_adjoint

N, WIDTH, VOCABULARY = 5, 3, 7


def normal(*shape):
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def uniform(rows):
    return torch.rand(rows, LABELS, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def loss(h, weight, bias, y):
    return torch.nn.functional.cross_entropy(torch.nn.functional.linear(h, weight, bias), y, reduction="sum")


def test_slopes_and_exact_traces_are_those_of_autograd():
    h, t, weight, bias, y = (
        normal(N, WIDTH),
        normal(N, WIDTH),
        normal(VOCABULARY, WIDTH),
        normal(VOCABULARY),
        torch.arange(N),
    )
    found = head_adjoint(h, t, y, weight, bias, None, uniform(N), slopes=(True, True))
    of_h, of_weight, of_bias = torch.func.grad(loss, argnums=(0, 1, 2))(h, weight, bias, y)
    assert found.loss == pytest.approx(float(loss(h, weight, bias, y)))
    for ours, theirs in ((found.adjoint, of_h), (found.of_weight, of_weight), (found.of_bias, of_bias)):
        assert torch.allclose(ours, theirs)
    own = [torch.func.hessian(loss, argnums=k)(h, weight, bias, y) for k in (1, 2)]
    size = VOCABULARY * WIDTH
    assert found.weight == pytest.approx(float(own[0].reshape(size, size).trace()))
    assert found.bias == pytest.approx(float(own[1].trace()))
    assert head_adjoint(h, t, y, weight, bias, None, uniform(N), slopes=(False, False)).of_weight is None


def test_the_adjoint_turns_as_its_derivative_on_average():
    """Of many positions that are alike: WᵀSW ḣ, over the labels that are drawn; without a head it is exact."""
    many = 500
    h, t = normal(1, WIDTH).expand(many, -1), normal(1, WIDTH).expand(many, -1)
    weight, y = normal(VOCABULARY, WIDTH), torch.zeros(many, dtype=torch.long)
    found = head_adjoint(h, t, y, weight, None, None, uniform(many), slopes=(False, False))
    slope = torch.func.grad(lambda x: loss(x, weight, None, y[:1]))
    _, wanted = torch.func.jvp(slope, (h[:1],), (t[:1],))
    errors = (found.turned.mean(dim=0) - wanted[0]) / (found.turned.std(dim=0) / many**0.5)
    assert errors.abs().max() < 4.5
    z, dz = normal(N, VOCABULARY), normal(N, VOCABULARY)
    y = torch.arange(N)
    exact = head_adjoint(z, dz, y, None, None, None, uniform(N), slopes=(False, False))
    slope = torch.func.grad(lambda x: torch.nn.functional.cross_entropy(x, y, reduction="sum"))
    p_minus_y, turned = torch.func.jvp(slope, (z,), (dz,))
    assert torch.allclose(exact.adjoint, p_minus_y)
    assert torch.allclose(exact.turned, turned)
    assert exact.gauss_newton == pytest.approx(float((dz * turned).sum()))
