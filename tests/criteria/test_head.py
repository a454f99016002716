"""What C10 needs, read off the graph: who gets it, and why others do not."""

import math
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from transformers.modeling_outputs import CausalLMOutput

from tests.criteria.models import make
from villani.criteria.head import normalised_head
from villani.errors import InputError
from villani.objective.objective import Objective
from villani.objective.trial import already_tried

IDS = torch.randint(0, 7, (2, 2, 5), generator=torch.Generator().manual_seed(0))


def test_architectures():
    """Untied: Pythia and Llama, with d_φ counted by hand. GPT-Neo and Qwen are tied."""
    for spec in ("gpt-neo-125m?window=3", "pythia-70m?heads=2", "llama-160m?kv_heads=2", "qwen2-125m?kv_heads=2"):
        objective = make(spec)
        sizes = {p.name: p.tensor.numel() for p in objective.parameters.parameters}
        if spec.startswith(("pythia", "llama")):
            found = normalised_head(objective)
            bias = spec.startswith("pythia")
            assert found.dimension == 13 * 16 + (32 if bias else 16) <= sum(sizes.values())
            assert (found.features, found.classes, found.degree) == (16, 13, 2)
            assert found.slope == pytest.approx(math.sqrt((16 + bias) / 2))
        else:
            with pytest.raises(InputError, match=r"used 2 times, as a tied one is: also in aten\.embedding"):
                normalised_head(objective)


class Model(nn.Module):
    """A language model as small as can be, with a norm and a head to be chosen."""

    def __init__(self, norm, head=None, after=lambda x: x):
        super().__init__()
        self.embedding, self.mix = nn.Embedding(7, 4), nn.Linear(4, 4)
        self.norm = norm
        self.head = head or nn.Linear(4, 7, bias=False)
        self.after = after

    def forward(self, input_ids, attention_mask=None, use_cache=None):
        x = self.embedding(input_ids)
        return CausalLMOutput(logits=self.after(self.head(self.norm(x + self.mix(x).tanh()))))


class Squared(nn.Module):
    """RMS norm, spelled out in one of several ways."""

    def __init__(self, eps=1e-6, gain=True, offset=0.0, dim=-1):
        super().__init__()
        self.gain = nn.Parameter(torch.rand(4) + 0.5) if gain else None
        self.eps, self.offset, self.dim = eps, offset, dim

    def forward(self, x):
        y = x * torch.rsqrt(x.pow(2).mean(self.dim, keepdim=True) + self.eps)
        return y if self.gain is None else (self.gain + self.offset if self.offset else self.gain) * y


def spread(model, found, seed, size):
    """Largest difference of two logits over random trunks, and the bound at ‖φ‖ = size."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(torch.randn_like(p) * (30 if name.startswith(("embedding", "mix")) else 1))
        block = [p for name, p in model.named_parameters() if name.startswith(("norm", "head"))]
        assert sum(p.numel() for p in block) == found.dimension
        norm = math.sqrt(sum(float(p.square().sum()) for p in block))
        for p in block:
            p.mul_(size / norm)
        logits = model(IDS[0]).logits
    return float((logits.amax(-1) - logits.amin(-1)).max())


KNOWN = {
    "layer norm": (lambda: nn.LayerNorm(4), None, 2, math.sqrt(5 / 2)),
    "layer norm without bias": (lambda: nn.LayerNorm(4, bias=False), None, 2, math.sqrt(2)),
    "bare layer norm": (lambda: nn.LayerNorm(4, elementwise_affine=False), None, 1, math.sqrt(8)),
    "bare layer norm, head with bias": (
        lambda: nn.LayerNorm(4, elementwise_affine=False), lambda: nn.Linear(4, 7), 1, math.sqrt(10),
    ),
    "RMS norm": (lambda: nn.RMSNorm(4, eps=1e-5), None, 2, math.sqrt(2)),
    "spelled out": (Squared, None, 2, math.sqrt(2)),
    "spelled out, bare": (lambda: Squared(gain=False), None, 1, math.sqrt(8)),
}  # fmt: skip


@pytest.mark.parametrize("case", list(KNOWN))
def test_logits_differ_by_no_more_and_are_homogeneous(case):
    norm, head, degree, slope = KNOWN[case]
    model = Model(norm(), head() if head else None)
    found = normalised_head(Objective(model, IDS, 0.1))
    assert (found.degree, found.features, found.classes) == (degree, 4, 7)
    assert found.slope == pytest.approx(slope)
    for seed in range(20):
        for size in (0.1, 1.0, 30.0):
            assert spread(model, found, seed, size) <= found.slope * size**degree * (1 + 1e-5)
        assert spread(model, found, seed, 3.0) == pytest.approx(3**degree * spread(model, found, seed, 1.0), rel=1e-4)


def frozen_gain():
    norm = nn.LayerNorm(4)
    norm.weight.requires_grad_(False)
    return norm


class Shared(nn.Module):
    """A gain that the trunk uses too."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(4))

    def forward(self, x):
        return nn.functional.layer_norm(x * self.gain, (4,), self.gain)


class Copied(nn.Module):
    """A gain that is copied once, and used twice."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(4))

    def forward(self, x):
        gain = self.gain.clone()
        return nn.functional.layer_norm(x + gain.tanh(), (4,), gain)


class Twice(nn.Module):
    """One tensor for gain and bias."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(4))

    def forward(self, x):
        return nn.functional.layer_norm(x, (4,), self.gain, self.gain)


class Mirrored(Model):
    """A trunk that reads the head's memory through a buffer."""

    def __init__(self):
        super().__init__(nn.LayerNorm(4))
        self.register_buffer("mirror", self.head.weight.data)
        self.mix = nn.Sequential(self.mix, nn.Tanh(), _Through(lambda x: x + x @ self.mirror.T @ self.mirror))


class _Through(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def frozen_head():
    model = Model(nn.LayerNorm(4))
    model.head.weight.requires_grad_(False)
    return model


REFUSED = {
    "head with bias": (lambda: Model(nn.LayerNorm(4), nn.Linear(4, 7)), "no single degree"),
    "frozen gain, moving bias": (lambda: Model(frozen_gain()), "no single degree"),
    "ε = 0": (lambda: Model(nn.LayerNorm(4, eps=0.0)), "ε = 0"),
    "ε < 0": (lambda: Model(Squared(eps=-1e-6)), "not from a norm that is known"),
    "no norm": (lambda: Model(nn.Tanh()), "not from a norm that is known"),
    "two layers": (lambda: Model(nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4))), "not from a norm that is known"),
    "1 + gain": (lambda: Model(Squared(offset=1.0)), "not from a norm that is known"),
    "another dimension": (lambda: Model(Squared(dim=1)), "is not causal"),
    "gain used twice": (lambda: Model(Shared()), "used 2 times"),
    "gain copied and used twice": (lambda: Model(Copied()), "used 2 times"),
    "gain for a bias": (lambda: Model(Twice()), "used 2 times"),
    "head read through its memory": (Mirrored, "shares memory with the constant"),
    "ε that float32 has not": (lambda: Model(nn.LayerNorm(4, eps=1e-60)), "ε = 1e-60"),
    "frozen head": (frozen_head, "the head is frozen"),
    "head of two tensors": (
        lambda: Model(nn.LayerNorm(4), nn.utils.parametrizations.weight_norm(nn.Linear(4, 7, bias=False))),
        "computed from other tensors",
    ),
    "capped logits": (lambda: Model(nn.LayerNorm(4), after=lambda z: 30 * (z / 30).tanh()), "no head"),
}


@pytest.mark.parametrize("case", list(REFUSED))
def test_what_is_no_such_head_is_refused_with_the_reason(case):
    model, reason = REFUSED[case]
    tried = already_tried() if case == "head read through its memory" else nullcontext()  # its gradient is wrong too
    with pytest.raises(InputError, match=reason), tried:
        normalised_head(Objective(model(), IDS, 0.1))


def test_decay_on_everything_is_asked_for():
    objective = make("pythia-70m?heads=2")
    partly = Objective(objective.model, [g.ids for g in objective.groups], 0.1, "hf")
    with pytest.raises(InputError, match="do not decay"):
        normalised_head(partly)
    custom = Objective(objective.model, [0.0], 0.1, loss_fn=lambda m, _: sum(p.square().sum() for p in m.parameters()))
    with pytest.raises(InputError, match="custom"):
        normalised_head(custom)
