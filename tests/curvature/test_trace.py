import numpy as np
import pytest
import torch
from curvlinops import HessianLinearOperator
from torch import nn

from tests.conftest import dense, make_model, make_pool
from tests.products import hessian_vector_product
from villani.curvature.blocks import BlockTrace
from villani.curvature.group import group_statistics
from villani.curvature.probes import rademacher_probe
from villani.curvature.rules import RULES
from villani.curvature.sketch import GradientSketch
from villani.curvature.trace import default_way, sample_rows, sampler_for
from villani.curvature.ways import Way
from villani.objective.objective import Objective
from villani.streams import Purpose, stream


def flat(tensors) -> np.ndarray:
    return torch.cat([t.detach().reshape(-1) for t in tensors]).numpy()


def statistics(objective, group, method, probes=2, seed=5):
    sampler = sampler_for(objective, Way(method))
    return group_statistics(objective, group, probes, seed, sampler, GradientSketch(objective.parameters, seed))


@pytest.mark.parametrize("group", [0, 1, 2])
def test_group_statistics_equal_the_dense_oracle(model, group):
    """The loss, gradient, ⟨∇L, θ⟩ and vᵀHv of plain, padded and −100-labelled groups, tensor by tensor."""
    pool = make_pool()
    objective = Objective(model, pool)
    oracle = dense(model, pool[group], second=True)
    found = statistics(objective, group, "hutchinson")
    space = objective.parameters
    assert found.tokens == oracle.tokens
    assert found.loss == pytest.approx(oracle.loss, abs=1e-8)
    assert np.allclose(found.gradient, oracle.gradient, atol=1e-8)
    parts = np.split(oracle.gradient * flat(space.tensors), np.cumsum(space.sizes)[:-1])
    assert np.allclose(found.dots, [part.sum() for part in parts], atol=1e-8)
    for probe in range(2):
        v = flat(rademacher_probe(space, 5, group, probe))
        parts = np.split(v * (oracle.hessian @ v), np.cumsum(space.sizes)[:-1])
        assert np.allclose(found.traces[probe], [part.sum() for part in parts], atol=1e-8)


def test_residual_part_meets_the_same_probes(model):
    """gauss-newton minus its label samples is vᵀ(H − GN)v, so that the two methods differ by vᵀGN v − sample."""
    pool = make_pool()
    objective = Objective(model, pool)
    oracle = dense(model, pool[1], second=True)
    found = statistics(objective, 1, "gauss-newton", probes=1)
    generator = stream(5, Purpose.LABELS, 1, 0)
    samples = 0.0
    with objective.evaluating():
        for batch in objective.batches(1):
            forward = objective.forward(batch)
            sampled = sample_rows(torch.softmax(forward.logits.detach(), -1), generator)
            slopes = torch.autograd.grad(
                nn.functional.cross_entropy(forward.logits, sampled, reduction="sum"), objective.parameters.tensors
            )
            samples += sum(float(g.square().sum()) for g in slopes)
    v = flat(rademacher_probe(objective.parameters, 5, 1, 0))
    assert found.traces.sum() == pytest.approx(samples + v @ (oracle.hessian - oracle.gauss_newton) @ v, abs=1e-8)
    assert found.gauss_newton.sum() == pytest.approx(samples, abs=1e-8)
    assert np.allclose(found.gradient, oracle.gradient, atol=1e-8)


@pytest.mark.thorough
def test_label_samples_are_unbiased_for_the_gauss_newton_trace():
    """Tensor by tensor, over many draws, against the dense Gauss–Newton matrix."""
    model = make_model("gpt2")
    pool = make_pool()
    objective = Objective(model, pool)
    oracle = dense(model, pool[1], second=True)
    blocks = np.split(np.diag(oracle.hessian), np.cumsum(objective.parameters.sizes)[:-1])
    draws = np.stack([statistics(objective, 1, "gauss-newton", probes=40, seed=s).traces for s in range(20)])
    draws = draws.reshape(800, -1)
    errors = (draws.mean(axis=0) - [b.sum() for b in blocks]) / (draws.std(axis=0) / np.sqrt(800) + 1e-12)
    assert np.abs(errors).max() < 4.5  # 16 tensors
    total = draws.sum(axis=1)
    assert abs(total.mean() - np.trace(oracle.hessian)) < 4 * total.std() / np.sqrt(800)


def test_sampled_labels_follow_the_distribution():
    p = torch.tensor([[0.5, 0.0, 0.25, 0.25], [0.0, 1.0, 0.0, 0.0]]).repeat(4000, 1)
    drawn = sample_rows(p, stream(0, Purpose.LABELS, 0)).view(-1, 2)
    shares = torch.bincount(drawn[:, 0], minlength=4) / 4000
    assert torch.all(drawn[:, 1] == 1)
    assert shares[1] == 0
    assert torch.allclose(shares, p[0], atol=4 * 0.5 / 4000**0.5)


def shaped(space, flat_vector) -> list[torch.Tensor]:
    pieces = torch.from_numpy(flat_vector).split(list(space.sizes))
    return [piece.view(t.shape) for piece, t in zip(pieces, space.tensors, strict=True)]


def test_products_equal_the_dense_hessian_and_finite_differences(model):
    """Groups of unequal size, weighted by tokens; finite differences share nothing with autograd's second pass."""
    pool = make_pool(4)
    objective = Objective(model, pool)
    space = objective.parameters
    oracles = [dense(model, group, second=True) for group in pool]
    hessian = sum(o.hessian for o in oracles) / sum(o.tokens for o in oracles)
    v = np.random.default_rng(0).normal(size=space.size)
    ours = flat(hessian_vector_product(objective, shaped(space, v)))
    assert np.allclose(ours, hessian @ v, atol=1e-8)
    sides = []
    for radius in (1e-5, -1e-5):
        with objective.displaced(shaped(space, v), radius):
            sides.append(flat(objective.gradient()))
    assert np.allclose(ours, (sides[0] - sides[1]) / 2e-5, atol=1e-5)


@pytest.mark.parametrize("architecture", ["gpt_neo", "gpt2"])
def test_products_agree_with_curvlinops(architecture):
    """All but the rows of LayerNorm gains, where curvlinops 3.0.1 on torch 2.13 is wrong: its matrix is not symmetric
    there, and finite differences (above) side with ours. Llama's SiLU it cannot differentiate at all."""
    model = make_model(architecture).eval()
    objective = Objective(model, make_pool(1))
    space = objective.parameters
    ids = make_pool(1)[0]["input_ids"]

    class Logits(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, ids):
            return self.inner(ids, use_cache=False).logits[:, :-1].reshape(-1, 11)

    operator = HessianLinearOperator(
        Logits().eval(),
        nn.CrossEntropyLoss(),
        space.tensors,
        [(ids, ids[:, 1:].reshape(-1))],
        check_deterministic=False,
    )
    gains = np.repeat([".ln_" in p.name and p.name.endswith("weight") for p in space.parameters], space.sizes)
    v = np.random.default_rng(0).normal(size=space.size)
    ours = flat(hessian_vector_product(objective, shaped(space, v)))
    theirs = (operator @ torch.from_numpy(v)).detach().numpy()
    assert gains.sum() < 0.1 * space.size
    assert np.allclose(ours[~gains], theirs[~gains], atol=1e-8)


def test_linear_loss_has_no_curvature():
    model = nn.Linear(3, 1).double()
    objective = Objective(model, [torch.randn(4, 3).double()] * 3, loss_fn=lambda m, x: m(x).mean())
    assert np.all(statistics(objective, 0, "hutchinson").traces == 0)


def test_many_probes_take_several_sweeps():
    """Six probes are the mean of six, though no sweep carries more than four of them."""
    objective = Objective(make_model("gpt2"), make_pool())
    found = statistics(objective, 0, "taylor", probes=6)
    sampler = BlockTrace(objective)
    [batch] = objective.batches(0)
    keys = [(0, probe, 0) for probe in range(6)]
    sweeps = [sampler.sample(batch, 5, *keys[:4]), sampler.sample(batch, 5, *keys[4:])]
    assert np.allclose(found.traces[0], (4 * sweeps[0].traces + 2 * sweeps[1].traces) / 6, rtol=1e-12)
    assert np.allclose(found.gauss_newton[0], (4 * sweeps[0].gauss_newton + 2 * sweeps[1].gauss_newton) / 6, rtol=1e-12)


def test_the_default_way_follows_from_the_model(monkeypatch):
    """Sweeps there and back where every operation has a rule and shapes are few; else reverse passes, and why."""
    objective = Objective(make_model("gpt2"), make_pool(3))
    assert default_way(objective, range(3)) == ("adjoint", "every operation has a Taylor rule")
    ragged = [{"input_ids": torch.ones(1, length, dtype=torch.long)} for length in range(2, 8)]
    assert default_way(Objective(make_model("gpt2"), ragged), range(6))[0] == "gauss-newton"
    assert default_way(Objective(make_model("gpt2"), ragged), range(4))[0] == "adjoint"
    custom = Objective(make_model("gpt2"), ragged, loss_fn=lambda m, g: m(g["input_ids"]).logits.square().mean())
    assert default_way(custom, range(6)) == ("hutchinson", "a custom loss_fn has no traced graph")
    monkeypatch.delitem(RULES, torch.ops.aten.gelu.default)
    way, reason = default_way(objective, range(3))
    assert way == "gauss-newton"
    assert "no Taylor rule for aten.gelu.default" in reason


@pytest.mark.parametrize("probes", [1, 2])
def test_the_way_moves_neither_loss_nor_gradient(model, probes, monkeypatch):
    """In pieces of one sequence each, too; the trace is the same within its noise, and is told tensor by tensor."""
    monkeypatch.setattr("villani.curvature.trace.TOKENS", 1)
    objective = Objective(model, make_pool())
    swept, plain = (statistics(objective, 1, way, probes) for way in ("adjoint", "gauss-newton"))
    assert swept.tokens == plain.tokens
    assert swept.loss == pytest.approx(plain.loss, rel=1e-12)
    assert np.allclose(swept.gradient, plain.gradient, atol=1e-10)
    assert np.allclose(swept.dots, plain.dots, atol=1e-10)
    assert swept.traces.shape == plain.traces.shape
    assert swept.gauss_newton.shape == plain.gauss_newton.shape
