"""Shares of the trace and the gradient from one sweep there and back, against dense matrices and torch's own counts."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.conftest import dense, make_pool
from villani.curvature.adjoint import AdjointTrace
from villani.curvature.blocks import BlockTrace
from villani.inputs.models import load_model
from villani.objective.graph import headless
from villani.objective.objective import Objective


def sampled(sweeps, batch, key, gradient=True):
    """A sample, and the gradient of the loss sum as it was handed out."""
    sums = [torch.zeros_like(t) for t in sweeps.objective.parameters.tensors]

    def take(index, part):
        sums[index] += part

    with sweeps.objective.evaluating():
        return AdjointTrace(sweeps).sample(batch, 0, key, take if gradient else None), sums


@pytest.mark.parametrize("group", [0, 1, 2])
def test_samples_are_unbiased_tensor_by_tensor(model, group):
    """Plain, padded and −100-labelled groups: loss and gradient exactly, traces on average."""
    pool = make_pool(3)
    objective = Objective(model, pool)
    oracle = dense(model, pool[group], second=True)
    sweeps, batch = BlockTrace(objective), next(objective.batches(group))
    edges = np.cumsum(objective.parameters.sizes)[:-1]
    samples = [sampled(sweeps, batch, (group, k), gradient=False)[0] for k in range(40)]
    one, gradient = sampled(sweeps, batch, (group, 0))
    assert np.array_equal(one.traces, samples[0].traces)  # whether the gradient is wanted changes nothing
    assert one.loss == pytest.approx(oracle.loss, abs=1e-8)
    assert np.allclose(torch.cat([g.flatten() for g in gradient]).numpy(), oracle.gradient, atol=1e-8)
    diagonal = np.array([part.sum() for part in np.split(np.diag(oracle.hessian), edges)])
    for drawn, wanted in (
        (np.array([s.traces for s in samples]), diagonal),
        (np.array([[s.gauss_newton] for s in samples]), np.trace(oracle.gauss_newton)),
    ):
        errors = (drawn.mean(axis=0) - wanted) / (drawn.std(axis=0) / np.sqrt(len(samples)) + 1e-9)
        assert np.abs(errors).max() < 4.5


def test_a_sample_is_the_probe_times_the_product_with_it(model, monkeypatch):
    """v_iᵀ(∇²L·v)_i, where nothing is left out: no matrix has a probe for every sequence, and no label is drawn."""
    pool = make_pool(2)
    objective = Objective(model, pool)
    sweeps, batch = BlockTrace(objective), next(objective.batches(0))
    graph, _ = sweeps.graph(batch)
    monkeypatch.setattr(sweeps, "graph", lambda _: (replace(graph, head=headless(graph.logits, "")), frozenset()))
    one, gradient = sampled(sweeps, batch, (0, 0))
    space, rows = objective.parameters, batch.ids.unique()
    uses = [sum(graph.parameters.get(a) == i for n in graph.nodes for a in n.all_input_nodes)
            for i in range(len(space.parameters))]  # fmt: skip
    vector = []
    for index, p in enumerate(space.parameters):
        shape = p.tensor.shape
        table = uses[index] == 1 and any(word in p.name for word in ("wte", "embed_tokens", "wpe"))
        if table:  # of which only the rows that occur have a probe
            own = rows if "wpe" not in p.name else torch.arange(batch.ids.shape[1])
            signs = sweeps.signs(index, (len(own), shape[1]), 0, (0, 0))
            vector.append(torch.zeros(shape, dtype=signs.dtype).index_copy_(0, own, signs))
        else:
            vector.append(sweeps.signs(index, shape, 0, (0, 0)))
    oracle = dense(model, pool[0], second=True)
    v = torch.cat([part.flatten() for part in vector]).numpy()
    wanted = [part.sum() for part in np.split(v * (oracle.hessian @ v), np.cumsum(space.sizes)[:-1])]
    assert np.allclose(one.traces, wanted, atol=1e-8)
    assert np.allclose(torch.cat([g.flatten() for g in gradient]).numpy(), oracle.gradient, atol=1e-8)


@pytest.mark.parametrize("spec", ["config:gpt-neo-125m", "config:llama-160m"])
def test_five_products_where_a_gradient_takes_three_and_little_is_kept(spec):
    """Multiplications and bytes kept for the way back, counted by torch, at widths that are not tiny."""
    objective = Objective(load_model(f"{spec}?layers=2&width=256&vocab=512").model, torch.arange(256).view(1, 2, 128))
    sweeps, batch = BlockTrace(objective), next(objective.batches(0))
    sweeps.check(batch)

    def plain() -> None:
        with objective.evaluating():
            torch.autograd.grad(objective.forward(batch).loss, objective.parameters.tensors)

    def swept() -> None:
        sampled(sweeps, batch, (0, 0))

    products, kept = {}, {}
    for name, work in (("plain", plain), ("swept", swept)):
        sizes: dict[int, int] = {}

        def keep(t, sizes=sizes):
            sizes[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            work()
        with FlopCounterMode(display=False) as counter:
            work()
        products[name], kept[name] = counter.get_total_flops(), sum(sizes.values())
    print(products, kept)
    assert products["swept"] <= 2.0 * products["plain"]
    assert kept["swept"] <= 2.0 * kept["plain"]
