"""A model lent out and put back to the bit, whatever was done to it meanwhile."""

import random

import numpy as np
import pytest
import torch
from torch import nn

from villani.integrations.untouched import uncompiled, untouched


class Quirks(nn.Module):
    """Draws from every generator, counts its calls in a buffer and replaces another, like what users have."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(3, 1)
        self.drop = nn.Dropout(0.5)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("last", torch.zeros(2))

    def forward(self, x):
        self.calls += 1
        self.last = x.detach().mean(0)[:2]
        scale = random.random() + np.random.random() + torch.rand(())  # noqa: NPY002
        assert torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()
        assert not torch.is_autocast_enabled("cpu")
        return (self.drop(self.inner(x)) * scale).square()


def snapshot(model):
    return (
        random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist(),  # noqa: NPY002
        [module.training for module in model.modules()], [p.requires_grad for p in model.parameters()],
        [(id(p.grad), None if p.grad is None else p.grad.tolist()) for p in model.parameters()],
        [(id(b), b.tolist()) for b in model.buffers()], [p.tolist() for p in model.parameters()],
    )  # fmt: skip


def test_untouched_restores_after_an_error():
    model = Quirks()
    before = snapshot(model)

    def fail():
        with untouched(model):
            model.eval()(torch.ones(1, 3))
            model.inner.weight.requires_grad_(False)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert snapshot(model) == before


def test_weights_tables_and_attributes_come_back_too():
    """θ is overwritten, a buffer replaced, a parameter deleted, a plain attribute changed: all undone."""
    model = Quirks()
    model.note = "as it was"
    model.inner.weight.grad = torch.ones(1, 3)
    before, tensors = snapshot(model), dict(model.named_parameters())
    with untouched(model):
        assert model.inner.weight.grad is None, "slopes that are there are put aside"
        with torch.no_grad():
            model.inner.weight.mul_(3)
        model.calls = torch.ones(5)
        del model.inner.bias
        model.note = "changed"
        random.random()
        torch.rand(3)
    assert snapshot(model) == before
    assert dict(model.named_parameters()) == tensors
    assert model.note == "as it was"
    assert model.inner.weight is tensors["inner.weight"]


def test_gradients_are_on_and_autocast_is_off_inside():
    model = nn.Linear(2, 1)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16), untouched(model):
        assert torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()
        assert model(torch.ones(1, 2)).dtype == torch.float32
        model(torch.ones(1, 2)).sum().backward()
    assert model.weight.grad is None


def test_a_compiled_module_is_what_it_wraps():
    model = nn.Linear(2, 1)
    assert uncompiled(torch.compile(model)) is model
    assert uncompiled(model) is model
