"""Criterion (i) on whole models, on one operation at a time, and on what no list knows."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.criteria.models import SPECS, Vector, closed, layers_of, make
from villani.criteria.smoothness import audit_smoothness
from villani.objective.objective import Objective


@pytest.mark.parametrize("spec", SPECS)
def test_models(spec):
    found = audit_smoothness(make(spec))
    if spec == "opt-125m":
        assert found.verdict == "refuted"
        assert {(f.operation, f.kind) for f in found.findings} == {("aten.relu.default", "lipschitz")}
        assert len(found.findings) == layers_of(spec)
        assert "decoder.layers.0" in found.findings[0].place
        assert ".py:" in found.findings[0].place
        assert "absolutely continuous part" in found.findings[0].consequence
    else:
        assert found.verdict == "holds", found.findings
        assert found.findings == ()
    assert found.operations > 25
    eps = 1e-6 if spec.startswith(("llama", "qwen", "mistral")) else 1e-5
    assert len(found.normalisations) == 2 * layers_of(spec) + 1
    for n in found.normalisations:
        assert n.eps == pytest.approx(eps)
        assert n.jacobian_bound == pytest.approx(eps**-0.5)
        assert n.laplacian_bound == pytest.approx(1 / eps)


def test_padding_does_not_matter():
    objective = make("gpt2")
    ids = torch.randint(0, 13, (1, 7))
    mask = torch.ones_like(ids)
    mask[0, 4:] = 0
    assert audit_smoothness(Objective(objective.model, [{"input_ids": ids, "attention_mask": mask}])).verdict == "holds"


def test_eps_zero_is_singular_and_told_with_its_line():
    objective = make("gpt2")
    objective.model.transformer.h[0].ln_2.eps = 0.0
    found = audit_smoothness(objective)
    assert found.verdict == "refuted"
    (finding,) = found.findings
    assert (finding.operation, finding.kind) == ("aten.layer_norm.default", "singular")
    assert finding.place.startswith("transformer.h.0.ln_2: modeling_gpt2.py:")
    assert len(found.normalisations) == 2


def test_eps_zero_of_a_spelled_out_norm():
    objective = make("llama-160m?kv_heads=2")
    objective.model.model.norm.variance_epsilon = 0.0
    found = audit_smoothness(objective)
    assert [(f.operation, f.kind) for f in found.findings] == [("aten.rsqrt.default", "singular")]
    assert found.findings[0].place.startswith("model.norm: ")


class Routed(nn.Module):
    """One of two experts by top-k, as mixtures do."""

    def __init__(self):
        super().__init__()
        self.router, self.experts = nn.Linear(3, 2), nn.Linear(3, 2)

    def forward(self, x):
        weight, chosen = self.router(x).softmax(-1).topk(1)
        return (weight * self.experts(x).gather(-1, chosen)).sum()


def test_routing():
    objective = Objective(Routed(), [torch.ones(2, 3)], 0.1, loss_fn=lambda m, x: m(x))
    found = audit_smoothness(objective)
    assert [(f.operation, f.kind) for f in found.findings] == [("aten.topk.default", "discontinuous")]
    assert "weight, chosen = self.router(x).softmax(-1).topk(1)" in found.findings[0].place
    assert "test_smoothness.py:" in found.findings[0].place


SMOOTH = {
    "gelu": lambda w: F.gelu(w).sum(),
    "gelu, tanh": lambda w: F.gelu(w, approximate="tanh").sum(),
    "silu": lambda w: F.silu(w).sum(),
    "softmax": lambda w: (w.softmax(0) * w).sum(),
    "soft capping": lambda w: (30 * torch.tanh(w / 30)).sum(),
    "cube": lambda w: (w**3).sum(),
    "root of squares and ε": lambda w: (w.square().sum() + 1e-3).sqrt(),
    "root of exp": lambda w: w.exp().sqrt().sum(),
    "log of softmax": lambda w: -w.softmax(0).log()[1],
    "log of softplus": lambda w: F.softplus(w).log().sum(),
    "log1p of a square": lambda w: (w**2).log1p().sum(),
    "quotient by 1 + e^w": lambda w: (w / (1 + w.exp())).sum(),
    "quotient by 2 + tanh": lambda w: (w / (2 + w.tanh())).sum(),
    "relu of a square": lambda w: F.relu(w * w).sum(),
    "clamp beyond tanh": lambda w: w.tanh().clamp(-1, 1).sum(),
    "abs of a sigmoid": lambda w: w.sigmoid().abs().sum(),
    "where with a fixed mask": lambda w: torch.where(torch.tensor([True, False, True]), w.sin(), w.exp()).sum(),
    "mask of −∞": lambda w: w.masked_fill(torch.tensor([True, False, False]), -math.inf).softmax(0)[2],
    "variance": lambda w: w.var(),
    "sin, cos, erf": lambda w: (w.sin() + w.cos() + w.erf()).sum(),
    "cross-entropy": lambda w: F.cross_entropy(w[None], torch.tensor([1])),
    "a cast": lambda w: w.double().square().sum().float(),
    "zeros of its shape": lambda w: (torch.zeros_like(w) + w.new_ones(3) + w).square().sum(),
    "fixed clamp": lambda w: w.sum() * torch.ones(()).clamp(max=0.5),
}

ROUGH = {
    "relu": (lambda w: F.relu(w).sum(), "aten.relu.default", "lipschitz"),
    "leaky relu": (lambda w: F.leaky_relu(w).sum(), "aten.leaky_relu.default", "lipschitz"),
    "elu": (lambda w: F.elu(w).sum(), "aten.elu.default", "lipschitz"),
    "abs": (lambda w: w.abs().sum(), "aten.abs.default", "lipschitz"),
    "max": (lambda w: w.max(), "aten.max.default", "lipschitz"),
    "amax": (lambda w: w.amax(), "aten.amax.default", "lipschitz"),
    "minimum": (lambda w: torch.minimum(w, -w).sum(), "aten.minimum.default", "lipschitz"),
    "clamp": (lambda w: w.clamp(-1, 1).sum(), "aten.clamp.default", "lipschitz"),
    "hardtanh": (lambda w: F.hardtanh(w).sum(), "aten.hardtanh.default", "lipschitz"),
    "clamp within tanh": (lambda w: w.tanh().clamp(min=-0.5).sum(), "aten.clamp.default", "lipschitz"),
    "sorted values": (lambda w: w.sort()[0][1], "aten.sort.default", "lipschitz"),
    "order": (lambda w: w[w.sort()[1]][0], "aten.sort.default", "discontinuous"),
    "argmax": (lambda w: w.sin()[w.argmax()].sum(), "aten.argmax.default", "discontinuous"),
    "round": (lambda w: w.round().sum(), "aten.round.default", "discontinuous"),
    "sign": (lambda w: w.sign().sum(), "aten.sign.default", "discontinuous"),
    "to integers": (lambda w: (w * w.long()).sum(), "aten._to_copy.default", "discontinuous"),
    "comparison": (lambda w: torch.where(w > 0, w, -w).sum(), "aten.gt.Scalar", "discontinuous"),
    "norm": (lambda w: w.norm(), "aten.linalg_vector_norm.default", "singular"),
    "root of squares": (lambda w: w.square().sum().sqrt(), "aten.sqrt.default", "singular"),
    "log": (lambda w: w.abs().log().sum(), "aten.log.default", "singular"),
    "quotient": (lambda w: (1 / w).sum(), "aten.reciprocal.default", "singular"),
    "quotient of parameters": (lambda w: w[0] / w[1], "aten.div.Tensor", "singular"),
    "power": (lambda w: (w.square() ** 0.3).sum(), "aten.pow.Tensor_Scalar", "singular"),
    "undecided": (lambda w: 1 / (1 + w.exp() - w.tanh()).sum(), "aten.reciprocal.default", "undecided"),
    "detached": (lambda w: (w * w.detach()).sum(), "aten.detach.default", "gradient"),
    "read out": (lambda w: w.sum() * w.sum().item(), "aten.item.default", "gradient"),
    "no list": (lambda w: torch.special.bessel_j0(w).sum(), "aten.special_bessel_j0.default", "unknown"),
}


def test_smooth_operations_pass():
    found = audit_smoothness(closed(lambda w: sum(function(w) for function in SMOOTH.values())))
    assert found.findings == ()
    assert found.verdict == "holds"


def test_rough_operations_are_caught_with_their_line():
    """All in one loss, to trace it once: each line has its finding, of its kind, and no other."""
    found = audit_smoothness(closed(lambda w: sum(function(w) for function, _, _ in ROUGH.values())))
    assert found.verdict == "refuted"
    told = {}
    for f in found.findings:
        assert f.consequence
        if f.operation != "autograd":  # which sees what is detached
            assert f.place.startswith("the model: test_smoothness.py:")
            told.setdefault(f.place.split('"')[1], set()).add((f.operation, f.kind))
    for case, (_, operation, kind) in ROUGH.items():
        assert (operation, kind) in told.pop(case), case
    assert told == {}


@pytest.mark.parametrize(
    ("case", "verdict"),
    [
        ("relu", "refuted"),
        ("round", "refuted"),
        ("norm", "refuted"),
        ("undecided", "unknown"),
        ("detached", "unknown"),
        ("no list", "unknown"),
    ],
)
def test_each_kind_alone_keeps_a_loss_from_passing(case, verdict):
    function, operation, _ = ROUGH[case]
    found = audit_smoothness(closed(function))
    assert found.verdict == verdict
    assert operation in found.reason


class Reversed(torch.autograd.Function):
    """The identity, with a derivative of −1."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return -g


def clipped(w):
    y = w.square()
    if y.requires_grad:
        y.register_hook(lambda g: g.clamp(max=0.1))
    return y.sum()


def silent(w):
    with torch.no_grad():
        y = w.sin()
    return (w * y).sum()


@pytest.mark.parametrize("function", [lambda w: Reversed.apply(w).sum(), clipped, silent])
def test_derivatives_altered_without_a_trace_are_caught(function):
    found = audit_smoothness(closed(function))
    assert found.verdict == "unknown"
    assert [(f.operation, f.kind, f.place) for f in found.findings] == [("autograd", "gradient", "w")]


def test_straight_through_rounding():
    found = audit_smoothness(closed(lambda w: (w + (w.round() - w).detach()).square().sum()))
    assert found.verdict == "refuted"
    assert {f.kind for f in found.findings} >= {"discontinuous", "gradient"}


def test_what_cannot_be_traced_is_unknown():
    found = audit_smoothness(closed(lambda w: w.sum() if w.sum() > 0 else -w.sum()))
    assert found.verdict == "unknown"
    assert "cannot be traced" in found.reason
    assert "\n" not in found.reason


def test_every_custom_group_is_looked_at():
    objective = Objective(Vector(), [1, 2], loss_fn=lambda m, g: m.w.abs().sum() if g == 2 else m.w.sum())
    assert audit_smoothness(objective).verdict == "refuted"


def test_nothing_is_changed():
    objective = make("opt-125m")
    before, state = objective.parameters.checksum(), torch.get_rng_state()
    objective.model.train()
    audit_smoothness(objective)
    assert objective.parameters.checksum() == before
    assert torch.equal(torch.get_rng_state(), state)
    assert objective.model.training
    assert all(p.grad is None for p in objective.model.parameters())
