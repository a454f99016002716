"""Small language models, and closed-form losses, for the criteria."""

import torch
from torch import nn
from transformers import MistralConfig, MistralForCausalLM

from villani.inputs.models import load_model
from villani.objective.objective import Objective
from villani.objective.trial import already_tried

SPECS = [
    "gpt-neo-125m?window=3",
    "gpt2",
    "opt-125m",
    "pythia-70m?heads=2",
    "llama-160m?kv_heads=2",
    "qwen2-125m?kv_heads=2",
    "mistral",
]
VOCABULARY, CONTEXT = 13, 8


def _mistral():
    config = MistralConfig(
        vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=24, max_position_embeddings=CONTEXT, sliding_window=3, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    config._attn_implementation = "eager"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MistralForCausalLM(config)


def layers_of(spec):
    """GPT-Neo's local attention is in its second layer."""
    return 2 if spec.startswith("gpt-neo") else 1


def make(spec, decay="all", weight_decay=0.1, scale=0.3, **sizes):
    """An objective of a small model with large random weights, biases included."""
    if spec == "mistral":
        model = _mistral()
    else:
        options = {"layers": layers_of(spec), "width": 16, "vocab": VOCABULARY, "context": CONTEXT, **sizes}
        spec += ("&" if "?" in spec else "?") + "&".join(f"{k}={v}" for k, v in options.items())
        spec += "" if "heads=" in spec.replace("kv_heads=", "") else "&heads=4"
        model = load_model(f"config:{spec}").model
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        for p in model.parameters():
            p.add_(scale * torch.randn_like(p))
    ids = torch.randint(0, VOCABULARY, (2, 2, 7), generator=torch.Generator().manual_seed(1))
    return Objective(model, ids, weight_decay, decay)


class Vector(nn.Module):
    """θ ∈ R^n, for closed forms."""

    def __init__(self, *values):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(values or (0.5, -1.0, 2.0)))


def closed(function, *values, weight_decay=0.1, decay="all", groups=(0.0,)):
    """An objective with loss function(w), whatever its gradient is."""
    with already_tried():
        return Objective(Vector(*values), list(groups), weight_decay, decay, loss_fn=lambda m, _: function(m.w))


class Two(nn.Module):
    """L of a group x = Σ_i x_i·tanh(a_i·b_j)…: few enough entries for exact traces."""

    def __init__(self):
        super().__init__()
        draw = torch.Generator().manual_seed(2)
        self.a = nn.Parameter(torch.randn(2, 3, generator=draw, dtype=torch.float64))
        self.b = nn.Parameter(torch.randn(3, generator=draw, dtype=torch.float64))


def loss_of(a, b, x):
    return (torch.tanh(a @ b) * x).sum() + (a.square().sum() * b.prod()).sin()


def two(finite=False):
    groups = list(torch.randn(4, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64))
    return Objective(Two(), groups, 0.1, "match:a", finite, loss_fn=lambda m, x: loss_of(m.a, m.b, x))
