"""Value, slope and bend of each elementwise function, against two automatic derivatives."""

import inspect

import pytest
import torch

from villani.curvature import elementary
from villani.curvature.algebra import JetAlgebra
from villani.curvature.jets import Jet

aten = torch.ops.aten
ANYWHERE = torch.tensor([-30.0, -2.5, -0.7, -1e-3, 1e-3, 0.4, 1.9, 21.5], dtype=torch.float64)
POSITIVE = torch.tensor([1e-4, 0.3, 1.0, 7.0, 1e3], dtype=torch.float64)
FUNCTIONS = {  # name in the module → (operation, what stands behind its argument, points)
    "tanh": [(aten.tanh.default, (), {}, ANYWHERE)],
    "sigmoid": [(aten.sigmoid.default, (), {}, ANYWHERE)],
    "silu": [(aten.silu.default, (), {}, ANYWHERE)],
    "relu": [(aten.relu.default, (), {}, ANYWHERE)],
    "gelu": [(aten.gelu.default, (), {"approximate": kind}, ANYWHERE) for kind in ("none", "tanh")],
    "power": [(aten.pow.Tensor_Scalar, (n,), {}, ANYWHERE) for n in (1, 2, 3, -1)]
    + [(aten.pow.Tensor_Scalar, (n,), {}, POSITIVE) for n in (0.5, -1.5, 2.5)],
    "square": [(aten.square.default, (), {}, ANYWHERE)],
    "rsqrt": [(aten.rsqrt.default, (), {}, POSITIVE)],
    "exp": [(aten.exp.default, (), {}, ANYWHERE), (aten.expm1.default, (), {}, ANYWHERE)],
    "log": [(aten.log.default, (), {}, POSITIVE)],
    "sqrt": [(aten.sqrt.default, (), {}, POSITIVE)],
    "reciprocal": [(aten.reciprocal.default, (), {}, ANYWHERE)],
    "softplus": [(aten.softplus.default, given, {}, ANYWHERE) for given in ((), (2.0,), (0.5, 1.0))],
    "log_sigmoid": [(aten.log_sigmoid.default, (), {}, ANYWHERE)],
    "abs": [(aten.abs.default, (), {}, ANYWHERE)],
    "sin": [(aten.sin.default, (), {}, ANYWHERE)],
    "cos": [(aten.cos.default, (), {}, ANYWHERE)],
}


def test_every_function_has_a_case():
    public = inspect.getmembers(elementary, lambda f: inspect.isfunction(f) and f.__module__ == elementary.__name__)
    assert {name for name, _ in public} == set(FUNCTIONS)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_tangents_of_both_orders(name):
    """Along x + 2ε + ε²/2·3, so that slope and bend enter apart: first 2φ′, second 3φ′ + 4φ″."""
    for operation, behind, options, points in FUNCTIONS[name]:
        x = points.clone().requires_grad_()
        y = operation(x, *behind, **options)
        (slope,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        bend = torch.zeros_like(points)
        if slope.requires_grad:
            (bend,) = torch.autograd.grad(slope.sum(), x, allow_unused=True, materialize_grads=True)
        jet = Jet(points, {0: torch.full_like(points, 2)}, {0: torch.full_like(points, 3)})
        found = getattr(elementary, name)(JetAlgebra([0]), operation, jet, *behind, **options)
        assert torch.allclose(found.x, y.detach(), rtol=1e-13)
        assert torch.allclose(found.first[0], 2 * slope.detach(), rtol=1e-11, atol=1e-14)
        assert torch.allclose(found.second[0], 3 * slope.detach() + 4 * bend, rtol=1e-9, atol=1e-13)
