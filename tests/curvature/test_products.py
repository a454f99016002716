import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests.conftest import dense, make_model, make_pool
from tests.products import hessian_vector_product
from villani.curvature.probes import rademacher_probe
from villani.curvature.products import (
    differentiable_gradient,
    finite_difference_product,
    product,
)
from villani.errors import InputError
from villani.measurement.measure import measure
from villani.objective.objective import Objective
from villani.objective.trial import already_tried

EXACT = ["reverse-over-reverse", "forward-over-reverse"]
METHODS = [*EXACT, "finite-differences"]


def flat(tensors) -> np.ndarray:
    return torch.cat([t.detach().reshape(-1).double() for t in tensors]).numpy()


def distance(left, right) -> float:
    return float(np.linalg.norm(flat(left) - flat(right)) / np.linalg.norm(flat(right)))


def shaped(space, flat_vector) -> list[torch.Tensor]:
    pieces = torch.from_numpy(flat_vector).split(list(space.sizes))
    return [piece.view(t.shape) for piece, t in zip(pieces, space.tensors, strict=True)]


def oracle(model, pool, vector) -> np.ndarray:
    """Hv of the token-weighted mean over the pool, from dense Hessians."""
    found = [dense(model, group, second=True) for group in pool]
    return sum(o.hessian for o in found) @ vector / sum(o.tokens for o in found)


def test_all_methods_equal_the_dense_hessian(model):
    """Tied weights, padding, −100 labels, unequal groups, several forward passes a group."""
    pool = make_pool(4)
    objective = Objective(model, pool, micro_tokens=6)
    v = np.random.default_rng(0).normal(size=objective.parameters.size)
    truth = oracle(model, pool, v)
    vector = shaped(objective.parameters, v)
    for method in EXACT:
        assert np.allclose(flat(hessian_vector_product(objective, vector, method=method)), truth, atol=1e-8)
    found, error = finite_difference_product(objective, vector)
    assert error < 1e-4
    assert np.linalg.norm(flat(found) - truth) < error * np.linalg.norm(truth)
    assert np.array_equal(flat(found), flat(hessian_vector_product(objective, vector, method="finite-differences")))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_finite_differences_know_their_error(model, dtype):
    """Probes as they are used, of norm √d, against reverse over reverse in float64 at the same θ."""
    pool = make_pool(3)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(p.float())
    exact = Objective(copy.deepcopy(model), pool)
    objective = Objective(model.to(dtype), pool)
    for group in range(3):
        vector = rademacher_probe(objective.parameters, 0, group, 0)
        truth = hessian_vector_product(exact, [v.double() for v in vector], group)
        found, error = finite_difference_product(objective, vector, group)
        assert distance(found, truth) < 2 * error
        assert error < 1e-3


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_finite_differences_leave_fused_attention_on(architecture):
    """Under a flash kernel alone: no second derivative there, and the Hessian of the unfused model from differences."""
    pool = make_pool(1)
    model = make_model(architecture)
    v = np.random.default_rng(0).normal(size=sum(p.numel() for p in model.parameters()))
    truth = oracle(model, pool, v)
    model.set_attn_implementation("sdpa")
    objective = Objective(model, pool)
    tensors, vector = objective.parameters.tensors, shaped(objective.parameters, v)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        with objective.evaluating(fused=True):
            gradient = differentiable_gradient(objective.forward(next(objective.batches(0))).loss, tensors)
            with pytest.raises(RuntimeError, match="flash_attention"):
                product(gradient, vector, tensors, keep_graph=False)
        found, error = finite_difference_product(objective, vector)
    assert error < 1e-4
    assert np.linalg.norm(flat(found) - truth) < error * np.linalg.norm(truth)
    for method in EXACT:  # which turn fused kernels off themselves
        assert np.allclose(flat(hessian_vector_product(objective, vector, method=method)), truth, atol=1e-8)


def test_finite_differences_of_a_compiled_model():
    """Which refuses to be differentiated twice."""
    pool = make_pool(1)
    model = make_model("gpt2")
    v = np.random.default_rng(0).normal(size=sum(p.numel() for p in model.parameters()))
    truth = oracle(model, pool, v)
    objective = Objective(torch.compile(model, backend="aot_eager"), pool)
    vector = shaped(objective.parameters, v)
    with pytest.raises(RuntimeError, match="double backward"):
        hessian_vector_product(objective, vector)
    found, error = finite_difference_product(objective, vector)
    assert error < 1e-4
    assert np.linalg.norm(flat(found) - truth) < error * np.linalg.norm(truth)


class Point(nn.Module):
    """θ alone, for losses written out."""

    def __init__(self, values) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.tensor(values, dtype=torch.float64))


def point(values, loss) -> Objective:
    return Objective(Point(values), [0.0, 1.0, 2.0], loss_fn=lambda model, group: loss(model.theta, group))


def ones(objective) -> list[torch.Tensor]:
    return [torch.ones_like(t) for t in objective.parameters.tensors]


@pytest.mark.parametrize("method", METHODS)
def test_custom_losses_and_linear_ones(method):
    cubic = point([1.0, 2.0], lambda theta, group: group * (theta**3).sum())
    assert np.allclose(flat(hessian_vector_product(cubic, ones(cubic), 2, method)), [12, 24], atol=1e-8)
    assert np.allclose(flat(hessian_vector_product(cubic, ones(cubic), None, method)), [6, 12], atol=1e-8)
    linear = point([1.0, 2.0], lambda theta, group: theta.sum())
    assert np.all(flat(hessian_vector_product(linear, ones(linear), None, method)) == 0)


def test_no_vector_no_product():
    objective = point([1.0, 2.0], lambda theta, group: (theta**3).sum())
    found, error = finite_difference_product(objective, [torch.zeros(2, dtype=torch.float64)])
    assert error == 0
    assert np.all(flat(found) == 0)


def test_a_sharp_bend_is_met_by_a_shorter_step():
    objective = point([1.0, 2.0], lambda theta, group: torch.sin(300 * theta).sum())
    found, error = finite_difference_product(objective, ones(objective))
    truth = -(300.0**2) * np.sin([300.0, 600.0])
    assert np.linalg.norm(flat(found) - truth) < error * np.linalg.norm(truth)
    assert error < 1e-3


@pytest.mark.parametrize(
    ("values", "loss", "message"),
    [
        ([0.0, 0.0], lambda theta, group: (theta**2).sum(), "θ is 0"),
        ([1.0, 1.0], lambda theta, group: torch.log(theta - 0.999).sum(), "not finite"),
        ([1.0, 1.0], lambda theta, group: torch.sin(1e6 * theta).sum(), "relative error"),
    ],
)
def test_differences_that_say_nothing_are_refused(values, loss, message):
    objective = point(values, loss)
    before = objective.parameters.checksum()
    with pytest.raises(InputError, match=message) as refusal:
        finite_difference_product(objective, ones(objective))
    assert "\n" not in str(refusal.value)
    assert objective.parameters.checksum() == before


def test_jumps_of_the_gradient_are_refused():
    """A ReLU has curvature in its kinks; automatic differentiation leaves it out, differences cannot."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 1)).double()
        data = [torch.randn(512, 4).double()]
    objective = Objective(model, data, loss_fn=lambda m, x: torch.tanh(m(x)).mean())
    with pytest.raises(InputError, match="ReLU"):
        finite_difference_product(objective, rademacher_probe(objective.parameters, 0, 0, 0))


def test_theta_comes_back_after_an_error():
    model = make_model("gpt2")
    calls = []

    def loss(model, group):
        calls.append(None)
        if len(calls) == 3:
            raise ValueError("lost")
        return model(**group, use_cache=False).logits.square().mean()

    with already_tried():
        objective = Objective(model, make_pool(1), loss_fn=loss)
    before = objective.parameters.checksum()
    with pytest.raises(ValueError, match="lost"):
        finite_difference_product(objective, rademacher_probe(objective.parameters, 0, 0, 0))
    assert objective.parameters.checksum() == before
    finite_difference_product(objective, rademacher_probe(objective.parameters, 0, 0, 0))
    assert objective.parameters.checksum() == before
    assert all(p.grad is None for p in model.parameters())


def test_measured_trace_is_unbiased():
    """The same probes give the same samples by every method, and their mean is the trace."""
    pool = make_pool(4)
    model = make_model("gpt2")
    found = [dense(model, group, second=True) for group in pool]
    truth = sum(np.trace(o.hessian) for o in found) / sum(o.tokens for o in found)
    objective = Objective(model, pool, finite=True)
    plain, *others = (measure(objective, probes=8, trace="hutchinson", products=method) for method in METHODS)
    assert abs(plain.hessian_trace.value - truth) < 4 * plain.hessian_trace.sem
    for measured in others:
        assert measured.hessian_trace.value == pytest.approx(plain.hessian_trace.value, rel=1e-5)
        assert measured.gradient_norm_squared.value == pytest.approx(plain.gradient_norm_squared.value, rel=1e-10)
        for ours, theirs in zip(measured.tensors, plain.tensors, strict=True):
            assert ours.hessian_trace.value == pytest.approx(theirs.hessian_trace.value, abs=1e-4 * abs(truth))


def test_custom_losses_are_measured_by_differences():
    objective = point([1.0, 2.0], lambda theta, group: (1 + group) * (theta**3).sum())
    assert measure(objective, products="finite-differences").hessian_trace.value == pytest.approx(36)


def test_products_go_with_hutchinson_only():
    objective = Objective(make_model("gpt2"), make_pool(3))
    with pytest.raises(InputError, match="trace='hutchinson'"):
        measure(objective, products="finite-differences")
    with pytest.raises(InputError, match="expected reverse-over-reverse"):
        measure(objective, trace="hutchinson", products="backward")


class Halved(torch.autograd.Function):
    """x/2, with a reverse derivative and no forward one."""

    @staticmethod
    def forward(x):
        return x / 2

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, g):
        return g / 2


def test_an_operation_without_a_forward_derivative_is_told():
    model = nn.Linear(3, 1, bias=False).double()
    x = torch.randn(5, 3).double()
    objective = Objective(model, [x], loss_fn=lambda m, x: Halved.apply(m(x)).square().mean())
    vector = [torch.ones(1, 3).double()]
    expected = x.T @ (x @ vector[0][0]) / 10  # the Hessian of mean((xw/2)²) is xᵀx/2n
    assert torch.allclose(hessian_vector_product(objective, vector)[0][0], expected)
    with pytest.raises(
        InputError, match=r"no forward-over-reverse of this loss: .*: use reverse-over-reverse"
    ) as caught:
        hessian_vector_product(objective, vector, method="forward-over-reverse")
    assert "\n" not in str(caught.value)
