import numpy as np
import pytest
import torch

from tests.conftest import dense, make_model, make_pool
from villani.curvature.blocks import BlockTrace, blocks_of
from villani.measurement.measure import measure
from villani.objective.objective import Objective
from villani.objective.parameters import ParameterSpace


def test_blocks_are_partitions():
    space = ParameterSpace(make_model("gpt_neo"))
    for kind, count in (("whole", 1), ("layer", 6), ("tensor", len(space.parameters))):
        blocks = blocks_of(space, kind)
        assert len(blocks) == count  # two layers, two embeddings, gain and bias of the last norm
        assert sorted(i for block in blocks for i in block) == list(range(len(space.parameters)))


@pytest.mark.parametrize(("kind", "group"), [("whole", 0), ("whole", 2), ("layer", 1), ("tensor", 1)])
def test_samples_are_unbiased_block_by_block(model, kind, group):
    """Tied and untied heads, padded and −100 groups: each block's trace and Gauss–Newton part, against dense ones."""
    pool = make_pool(3)
    objective = Objective(model, pool)
    oracle = dense(model, pool[group], second=True)
    sampler = BlockTrace(objective, kind)
    batch = next(objective.batches(group))
    samples = [sampler.sample(batch, 0, (group, k)) for k in range(40)]
    edges = np.cumsum(objective.parameters.sizes)[:-1]
    first = [block[0] for block in sampler.blocks]
    for name, matrix in (("traces", oracle.hessian), ("gauss_newton", oracle.gauss_newton)):
        diagonal = [part.sum() for part in np.split(np.diag(matrix), edges)]
        drawn = np.array([getattr(sample, name) for sample in samples])
        if kind == "whole":  # the head's own trace is exact and apart
            drawn, wanted = drawn.sum(axis=1, keepdims=True), np.array([sum(diagonal)])
        else:
            drawn, wanted = drawn[:, first], np.array([sum(diagonal[i] for i in block) for block in sampler.blocks])
        errors = (drawn.mean(axis=0) - wanted) / (drawn.std(axis=0) / np.sqrt(len(samples)) + 1e-9)
        assert np.abs(errors).max() < 4.5


class Around(torch.nn.Module):
    """A head in other words: its logits are capped, or its matrix is computed, or used once more."""

    def __init__(self, linear, kind):
        super().__init__()
        self.linear, self.kind = linear, kind
        size = linear.weight.shape[0]
        self.own = torch.nn.Parameter(torch.linspace(-0.5, 0.5, size, dtype=torch.float64))

    def forward(self, x):
        weight = self.linear.weight
        if self.kind == "computed":
            return x @ weight.T + (x * self.own[: x.shape[-1]]) @ weight.T.tanh()
        if self.kind == "frozen bias":
            return torch.nn.functional.linear(x, weight, self.own)
        if self.kind == "shared bias":
            return torch.nn.functional.linear(x * self.own[: x.shape[-1]].exp(), weight, self.own)
        return 2.0 * torch.tanh(torch.nn.functional.linear(x, weight) / 2.0)


def _reworded(model, kind, *frozen):
    model.set_output_embeddings(Around(model.get_output_embeddings(), kind))
    for name, p in model.named_parameters():
        p.requires_grad_(not any(part in name for part in frozen))
    return model


HEADS = {
    "capped and tied": lambda: _reworded(make_model("gpt2"), "capped"),
    "capped and frozen": lambda: _reworded(make_model("llama"), "capped", "linear"),
    "computed": lambda: _reworded(make_model("gpt2"), "computed"),
    "frozen and tied": lambda: _reworded(make_model("gpt2"), "frozen bias", "wte"),
    "frozen": lambda: _reworded(make_model("llama"), "frozen bias", "linear", "layers.0.mlp"),
    "frozen bias": lambda: _reworded(make_model("llama"), "frozen bias", "own"),
    "shared bias": lambda: _reworded(make_model("gpt2"), "shared bias"),
}


@pytest.mark.parametrize("case", HEADS)
def test_any_head_is_sampled_without_bias_and_frozen_tensors_have_no_trace(case):
    """Each tensor's trace and Gauss–Newton part in the mean, against dense matrices of which the moving rows count."""
    model, [group] = HEADS[case](), make_pool(1)
    objective = Objective(model, [group])
    moving = [p.requires_grad for p in model.parameters()]
    oracle = dense(model, group, second=True)
    edges = np.cumsum([p.numel() for p in model.parameters()])[:-1]
    sampler = BlockTrace(objective, "tensor")
    [batch] = objective.batches(0)
    samples = [sampler.sample(batch, 0, (k,), (k, 1)) for k in range(30)]
    assert len(objective.parameters.parameters) == sum(moving)
    for name, matrix in (("traces", oracle.hessian), ("gauss_newton", oracle.gauss_newton)):
        parts = np.split(np.diag(matrix), edges)
        wanted = np.array([part.sum() for part, moves in zip(parts, moving, strict=True) if moves])
        drawn = np.array([getattr(sample, name) for sample in samples])
        errors = (drawn.mean(axis=0) - wanted) / (drawn.std(axis=0) / np.sqrt(len(samples)) + 1e-9)
        assert np.abs(errors).max() < 4.5, errors


def test_finer_blocks_have_less_variance():
    """Exact variances: 2(‖H_bb‖² − Σ H_ii²) summed over blocks; samples agree with the order that they predict."""
    model, pool = make_model("gpt2"), make_pool(1)
    objective = Objective(model, pool)
    hessian = dense(model, pool[0], second=True).hessian
    edges = np.cumsum(objective.parameters.sizes)[:-1]
    spread = {}
    for kind in ("whole", "tensor"):
        sampler = BlockTrace(objective, kind)
        batch = next(objective.batches(0))
        spread[kind] = np.var([sampler.sample(batch, 1, (k,)).traces.sum() for k in range(100)])
    off = hessian - np.diag(np.diag(hessian))
    pieces = [np.split(row, edges, axis=1) for row in np.split(off, edges)]
    exact = {"whole": 2 * (off**2).sum(), "tensor": 2 * sum((pieces[i][i] ** 2).sum() for i in range(len(pieces)))}
    assert exact["tensor"] < exact["whole"] / 3
    assert spread["tensor"] < spread["whole"] / 2


def test_a_sample_depends_on_its_key_only():
    objective = Objective(make_model("gpt2"), make_pool(3))
    batch = next(objective.batches(0))
    sampler = BlockTrace(objective, "layer")
    first = sampler.sample(batch, 1, (2, 3))
    sampler.sample(batch, 1, (2, 4))
    again = BlockTrace(objective, "layer").sample(batch, 1, (2, 3))
    assert np.array_equal(first.traces, again.traces)
    assert not np.array_equal(first.traces, sampler.sample(batch, 1, (2, 5)).traces)


@pytest.mark.parametrize("kind", ["whole", "tensor"])
def test_measure_with_taylor_agrees_with_the_oracle(model, kind):
    pool = make_pool(3)
    oracles = [dense(model, group, second=True) for group in pool]
    tokens = sum(o.tokens for o in oracles)
    found = measure(Objective(model, pool, finite=True), probes=10, trace="taylor", blocks=kind)
    trace, part = (sum(np.trace(getattr(o, name)) for o in oracles) / tokens for name in ("hessian", "gauss_newton"))
    gradient = sum(o.gradient for o in oracles) / tokens
    assert abs(found.hessian_trace.value - trace) < 4 * found.hessian_trace.sem
    assert abs(found.gauss_newton_trace.value - part) < 4 * found.gauss_newton_trace.sem
    assert found.gradient_norm_squared.value == pytest.approx(gradient @ gradient, abs=1e-8)
    sizes = [p.numel() for p in model.parameters()]
    diagonals = np.split(np.diag(sum(o.hessian for o in oracles)) / tokens, np.cumsum(sizes)[:-1])
    for tensor, own in zip(found.tensors, diagonals, strict=True):
        assert abs(tensor.hessian_trace.value - own.sum()) < 5 * tensor.hessian_trace.sem + 1e-9


@pytest.mark.parametrize("kind", ["whole", "layer", "tensor"])
def test_layers_and_tensors_come_with_every_measurement(kind):
    pool = make_pool(4)
    objective = Objective(make_model("gpt2"), pool)
    found = measure(objective, trace="taylor", blocks=kind, shares=3)
    groups = {"whole": (3, 3), "layer": (3, 4), "tensor": (4, 4)}[kind]
    assert {t.hessian_trace.n for t in found.tensors} == {groups[0]}
    assert {layer.hessian_trace.n for layer in found.layers} == {groups[1]}
    assert sum(layer.parameters for layer in found.layers) == objective.parameters.size
    if kind != "whole":
        assert sum(layer.hessian_trace.value for layer in found.layers) == pytest.approx(found.hessian_trace.value)
    without = measure(objective, trace="taylor", blocks=kind, shares=0)
    assert (without.tensors[0].hessian_trace is None) == (kind != "tensor")
    assert (without.layers[0].hessian_trace is None) == (kind == "whole")
    assert without.hessian_trace == found.hessian_trace


def test_probes_in_one_sweep_are_the_mean_of_their_own_sweeps():
    objective = Objective(make_model("llama"), make_pool(3))
    batch = next(objective.batches(0))
    for kind in ("whole", "layer", "tensor"):
        sampler = BlockTrace(objective, kind)
        keys = [(0, k) for k in range(3)]
        together = sampler.sample(batch, 0, *keys)
        apart = [sampler.sample(batch, 0, key) for key in keys]
        residual = np.mean([s.traces - s.gauss_newton for s in apart], axis=0)
        assert together.traces - together.gauss_newton == pytest.approx(residual, abs=1e-9)


@pytest.mark.thorough
def test_leaving_out_products_of_independent_probes_lowers_variance():
    """Exact variance of a dense probe is 2(‖H‖² − Σ H_ii²); with probes kept apart until the next linear map, less."""
    model, pool = make_model("gpt_neo"), make_pool(1)
    objective = Objective(model, pool)
    hessian = dense(model, pool[0], second=True).hessian
    off = hessian - np.diag(np.diag(hessian))
    batch = next(objective.batches(0))
    sampler = BlockTrace(objective)
    spread = np.var([sampler.sample(batch, 1, (k,)).traces.sum() for k in range(300)])
    assert spread < 0.75 * 2 * (off**2).sum()  # 0.58 over many samples
