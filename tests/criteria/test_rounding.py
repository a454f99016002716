"""No verdict from rounding: Laplacians that are 0, losses that move on a supposed orbit, exponents as they are."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from tests.criteria.models import closed
from tests.criteria.test_orbits import factors, found
from villani import Objective, audit
from villani.criteria import differential, rounding
from villani.criteria.differential import audit_differential, short_batch
from villani.criteria.orbits import Orbit, orbits_of
from villani.criteria.rounding import SCALES, Drift, drift, drift_allowed
from villani.criteria.symmetries import Generator, generators
from villani.objective.graph import LossGraph, trace_loss

aten = torch.ops.aten


class Pair(nn.Module):
    def __init__(self, a, *b):
        super().__init__()
        self.a = nn.Parameter(torch.tensor(a))
        self.b = nn.Parameter(torch.tensor(b))


def harmonic(m, _=None):
    """∂²/∂b₁² + ∂²/∂b₂² of 0.1(ab₁)³ − 0.3(ab₁)(ab₂)² is 0.6a³b₁ − 0.6a³b₁."""
    x, y = m.a * m.b[0], m.a * m.b[1]
    return 0.1 * x**3 - 0.3 * x * y**2


def cancelling(m, _=None):
    """log e^{ab₁} + ab₂, linear in b."""
    return (m.a * m.b[0]).exp().log() + m.a * m.b[1]


POINTS = [(1.3, 0.7, -0.4), (0.31, -1.7, 0.9)]


@pytest.mark.parametrize("loss", [harmonic, cancelling])
@pytest.mark.parametrize(("finite", "double"), [(True, False), (True, True), (False, False)])
def test_a_laplacian_that_is_zero_refutes_nothing(loss, finite, double):
    """Along a ↑ b ↓. The other way, a ↓ b ↑, Δ_a L is not 0."""
    for a, *b in POINTS:
        model = Pair(a, *b)
        objective = Objective(model.double() if double else model, [0.0] * (1 if finite else 12), 0.1, finite=finite,
                              loss_fn=loss)  # fmt: skip
        iv = audit_differential(objective, 1.0, search=0)
        (orbit,) = [f for f in iv.findings if f.orbit.name == "a ↑ b ↓"]
        assert orbit.threshold.upper == math.inf, (a, b, orbit.threshold)
        if iv.outcome.verdict == "refuted":
            assert iv.findings[0].orbit.name == "b ↑ a ↓"
            assert iv.findings[0].threshold.laplacian.value > 1e-3
        assert "exactly" not in iv.outcome.reason


def test_rounding_that_is_the_same_all_along_an_orbit_refutes_nothing():
    """log(eᵗ + e^{t+1}) = t + log(1 + e), linear in t = ab: what softmax is off by depends on t alone."""

    def loss(t):
        return torch.logsumexp(torch.stack([t, t + 1]), 0)

    iv = audit_differential(factors(loss, 1.5791438e7, -0.4, weight_decay=0.1), 1.0, search=0)
    assert iv.outcome.verdict == "not refuted", iv.outcome.reason


def test_bounds_that_are_not_the_worst_allow_for_rounding_too():
    """In float32, with s* = (λ²a² + (bℓ′)²)/(bb·ℓ″) of K = 3 factors by hand, in float64, along each pair."""
    objective = factors(lambda t: F.softplus(t) - t / 2, 0.7, 0.4, 1.1, weight_decay=0.1)
    objective.model.float()
    w = [float(p.detach()) for p in objective.model.w]
    t = math.prod(w)
    p = 1 / (1 + math.exp(-t))
    seen = 0
    for finding in audit_differential(objective, 1.0, search=0).findings:
        e = {i: int(v) for i, v in finding.orbit.exponents.items()}
        if len(e) == 2 and finding.confirmed:
            (up,), (down,) = ([i for i, v in e.items() if v == sign] for sign in (1, -1))
            others = t / w[down]
            exact = (0.01 * w[up] ** 2 + (others * (p - 0.5)) ** 2) / (others**2 * p * (1 - p))
            assert exact <= finding.threshold.upper <= exact * (1 + 1e-4)
            seen += 1
    assert seen == 4


@pytest.mark.parametrize("double", [True, False])
def test_a_small_laplacian_that_is_true_is_still_seen(double):
    """L = 10⁻⁶·(ab − 1)²/2, at ab = 1: s* = λ²a²/(10⁻⁶a²), and rounding is a small part of it."""
    objective = factors(lambda t: 1e-6 * (t - 1) ** 2 / 2, 2.0, 0.5, weight_decay=0.1)
    if not double:
        objective.model.float()
    iv = audit_differential(objective, 1e6, search=0)
    assert iv.outcome.verdict == "refuted"
    assert iv.refuted_above == pytest.approx(1e4, rel=1e-12 if double else 1e-4)
    assert iv.refuted_above >= 1e4 * (1 - 1e-12)
    assert "up to rounding" in iv.outcome.reason
    assert iv.findings[0].threshold.laplacian.status == "estimated"


EXPONENTS = st.one_of(
    st.floats(1e-5, 4).filter(lambda x: x == float(f"{x:.6g}")),
    st.sampled_from([0.0002, 0.1, 0.3, 1e-4, 0.001, 1 / 3, 2.0, 0.5, 1.0, 1.5, 0.25]),
)


def powers(p, q):
    """The graph of L = tanh(uᵖ·v^q), made by hand, which is quicker than to trace it."""
    graph = torch.fx.Graph()
    u, v = graph.placeholder("u"), graph.placeholder("v")
    a = graph.call_function(aten.pow.Tensor_Scalar, (u, p))
    b = graph.call_function(aten.pow.Tensor_Scalar, (v, q))
    t = graph.call_function(aten.mul.Tensor, (a, b))
    loss = graph.call_function(aten.tanh.default, (t,))
    for node in graph.nodes:
        node.meta["val"] = torch.ones(())
    return LossGraph(tuple(graph.nodes), {u: 0, v: 1}, {}, {}, loss)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(EXPONENTS, EXPONENTS, st.integers(0, 2**31))
def test_every_rescaling_that_is_found_leaves_the_loss(p, q, seed):
    """uᵖ·v^q: with exact exponents it is the same at R = 16 and R = 1/8, to float64."""
    start = list((torch.rand(2, generator=torch.Generator().manual_seed(seed)) + 0.5).double())
    graph = powers(p, q)
    for generator in generators(graph):
        u, v = (Fraction(float(generator.exponents.get(i, torch.zeros(())))) for i in (0, 1))
        assert u * Fraction(p) + v * Fraction(q) == 0
        assert (u, v) != (0, 0)
        if max(abs(u), abs(v)) <= 8:
            moved, allowed = drift(graph, Orbit("", generator.exponents, 1, 1), start)
            assert moved <= allowed


def test_powers_that_are_exact_are_found():
    assert [{i: float(e) for i, e in g.exponents.items()} for g in generators(powers(0.5, 1.5))] == [{0: 3.0, 1: -1.0}]
    assert [{i: float(e) for i, e in g.exponents.items()} for g in generators(powers(0.1, 0.1))] == [{0: 1.0, 1: -1.0}]
    assert generators(powers(0.0002, 1.0)) == []


def test_a_small_exponent_is_no_zero():
    """w^0.0002·v: read as w⁰ it would let w go anywhere."""
    objective = factors(lambda t: t, 1.3, 0.7, weight_decay=0.1)
    bent = Objective(
        objective.model, [0.0], 0.1, finite=True, loss_fn=lambda m, _: F.softplus(m.w[0] ** 0.0002 * m.w[1])
    )
    assert found(bent) == []
    assert audit(bent, 1.0, rays=(), search=0).differential.outcome.verdict == "not refuted"


def test_casts_to_whole_numbers_do_not_scale():
    objective = closed(lambda w: F.softplus(w[:1].long().float() * w[1:2]).sum() + w[2] ** 2, 1.2, 0.5, 1.0)
    for generator in found(objective):
        assert not generator.exponents[0][:2].any()


def test_an_orbit_on_which_the_loss_moves_is_dropped(monkeypatch):
    """Whatever algebra says: told that w₀ alone may grow, the audit walks, sees, and says so."""
    objective = factors(F.softplus, 1.2, 0.4, weight_decay=0.1)
    wrong = Generator({0: torch.tensor(1.0, dtype=torch.float64), 1: torch.tensor(-2.0, dtype=torch.float64)})
    right = Generator({0: torch.tensor(1.0, dtype=torch.float64), 1: torch.tensor(-1.0, dtype=torch.float64)})
    monkeypatch.setattr(differential, "generators", lambda _: [wrong, right])
    iv = audit_differential(objective, 1.0, search=0)
    assert {f.orbit.name for f in iv.findings if math.isfinite(f.threshold.upper)} <= {"w.0 ↑ w.1 ↓", "w.1 ↑ w.0 ↓"}
    assert all(f.orbit.theorem == "C" for f in iv.findings)
    assert "beyond rounding" in iv.outcome.reason
    monkeypatch.setattr(differential, "generators", lambda _: [wrong])
    alone = audit_differential(objective, 1.0, search=0)
    assert alone.outcome.verdict == "not refuted"
    assert "beyond rounding" in alone.outcome.reason


def test_the_walk_vetoes():
    """A loss that moves only on groups that the short look did not see."""

    class Grouped(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = (nn.Parameter(torch.tensor(x, dtype=torch.float64)) for x in (1.2, 0.7))

    def loss(m, g):
        return F.softplus(m.a * m.b) + (m.a if g else 0.0)

    objective = Objective(Grouped(), [0.0, 1.0], 0.1, finite=True, loss_fn=loss)
    iv = audit_differential(objective, 1.0, search=0)
    assert iv.outcome.verdict == "not refuted"
    assert "beyond rounding" in iv.outcome.reason
    assert iv.refuted_above == math.inf
    assert drift_allowed(1.0, torch.float64) < 1e-12


def llama(layers, attention="eager"):
    config = LlamaConfig(
        vocab_size=16, hidden_size=8, num_hidden_layers=layers, num_attention_heads=2, num_key_value_heads=1,
        intermediate_size=12, max_position_embeddings=8, attn_implementation=attention,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    return Objective(model, torch.randint(0, 16, (12, 1, 6), generator=torch.Generator().manual_seed(0)), 0.1)


def test_checking_an_orbit_runs_its_own_layer_alone(monkeypatch):
    """The operations that are run again do not grow with depth, and what comes out is what the whole graph gives."""
    counts = []
    for layers in (1, 3):
        objective = llama(layers)
        graph = trace_loss(objective, short_batch(objective))
        tensors = [t.detach() for t in objective.parameters.tensors]
        drift, run = Drift(graph, tensors), []
        original = rounding.execute
        monkeypatch.setattr(rounding, "execute", lambda node, *rest: run.append(node) or original(node, *rest))  # noqa: B023
        orbits = orbits_of(generators(graph), objective.parameters)
        layer = [o for o in orbits if "layers.0" in o.name]
        assert all(drift.along(o)[0] == 0 for o in layer)
        counts.append(len(run) / len(layer))
        monkeypatch.setattr(rounding, "execute", original)
        broken = Orbit("", {2: torch.tensor(1.0)}, 1, 1)
        moved = [t * (SCALES[0] if i == 2 else 1) for i, t in enumerate(tensors)]
        low = [t * (SCALES[1] if i == 2 else 1) for i, t in enumerate(tensors)]
        with torch.no_grad():
            here = float(graph.run(tensors))
            expected = max(abs(float(graph.run(m)) - here) for m in (moved, low))
        assert drift.along(broken)[0] == expected > 0
    assert counts[0] == counts[1]
