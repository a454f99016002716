"""A backward pass of a model's own may have the right gradient and the wrong derivative."""

import pytest
import torch
from torch import nn
from transformers.modeling_outputs import CausalLMOutput

from tests.conftest import make_model
from tests.products import hessian_vector_product
from villani.curvature.double_backward import own_backward
from villani.curvature.operators import Curvature
from villani.errors import InputError
from villani.measurement.measure import measure
from villani.objective.objective import Objective

V, T = 11, 6
IDS = torch.randint(3, V, (3, 2, T), generator=torch.Generator().manual_seed(0))


class Honest(torch.autograd.Function):
    """sin, whose backward is differentiable."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.saved_tensors[0].cos()


class Numb(Honest):
    """The same gradient, of numbers that no graph knows of."""

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.saved_tensors[0].detach().cos()


class Rectified(torch.autograd.Function):
    """ReLU: no second derivative, though differences of gradients over kinks show one."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.relu()

    @staticmethod
    def backward(ctx, grad):
        return grad * (ctx.saved_tensors[0] > 0)


class Bent(nn.Module):
    """A small causal model with an activation of its own."""

    def __init__(self, function, dtype=torch.float32):
        super().__init__()
        torch.manual_seed(0)
        self.function = function
        self.embed, self.inner, self.head = nn.Embedding(V, 8), nn.Linear(8, 8), nn.Linear(8, V)
        self.to(dtype)

    def forward(self, input_ids, use_cache=False):
        return CausalLMOutput(logits=self.head(self.function.apply(self.inner(self.embed(input_ids)))))


def products(objective):
    ones = [torch.ones_like(t) for t in objective.parameters.tensors]
    return {
        "product": lambda: hessian_vector_product(objective, ones),
        "operator": lambda: Curvature(objective),
        "hutchinson": lambda: measure(objective, trace="hutchinson"),
        "gauss-newton": lambda: measure(objective, trace="gauss-newton"),
    }


@pytest.mark.parametrize("way", ["product", "operator", "hutchinson", "gauss-newton"])
def test_a_backward_that_differentiates_wrongly_is_refused_wherever_products_are_made(way):
    objective = Objective(Bent(Numb), IDS)
    with pytest.raises(InputError, match=r"Bent has a backward pass of its own \(Numb\) whose derivative is wrong"):
        products(objective)[way]()


def test_what_needs_no_double_backward_measures_it_right():
    """θ is the same, and so is the function: figures are those of the model that torch differentiates by itself."""
    wrong, right = Objective(Bent(Numb, torch.float64), IDS), Objective(Bent(Honest, torch.float64), IDS)
    vector = [torch.ones_like(t) for t in right.parameters.tensors]
    expected = hessian_vector_product(right, vector)
    differences = hessian_vector_product(wrong, vector, method="finite-differences")
    for a, b in zip(differences, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    taylor = [measure(o, trace="taylor", shares=0, probes=2).hessian_trace.value for o in (wrong, right)]
    assert taylor[0] == pytest.approx(taylor[1], rel=1e-9)


@pytest.mark.parametrize("function", [Honest, Rectified])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_honest_backward_is_let_through(function, dtype):
    model = Bent(function, dtype)
    objective = Objective(model, IDS, loss_fn=lambda m, ids: nn.functional.cross_entropy(
        m(ids).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()))  # fmt: skip
    before = [t.detach().clone() for t in objective.parameters.tensors]
    assert own_backward(objective.forward(IDS[0]).loss) == function.__name__
    assert len(products(objective)["product"]()) == 5
    assert measure(Objective(model, IDS), trace="gauss-newton").tokens > 0
    assert all(torch.equal(a, b) for a, b in zip(objective.parameters.tensors, before, strict=True))


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "gpt_neo"])
def test_torch_s_own_operations_are_taken_at_their_word(architecture):
    objective = Objective(make_model(architecture), IDS)
    assert own_backward(objective.forward(next(objective.batches(0))).loss) is None
    assert not objective.traced
    Curvature(objective)
    assert not objective.traced  # nothing was traced for it
