"""Mixtures as the sum over all experts, against a loop over tokens and the experts that each of them takes."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F
from transformers import MixtralConfig, MixtralForCausalLM
from transformers.integrations import moe

from villani.objective.experts import every_expert, of_every_expert


def normal(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("gate", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("transposed", [True, False])
def test_every_token_gets_its_experts_and_no_other(gate, bias, transposed):
    count, width, inner = 3, 4, 5
    first = "gate_up_proj" if gate else "up_proj"
    weights = {first: normal(0, count, (1 + gate) * inner, width), "down_proj": normal(1, count, width, inner)}
    biases = {f"{first}_bias": normal(2, count, (1 + gate) * inner), "down_proj_bias": normal(3, count, width)}

    def gated(y):
        a, b = y.chunk(2, -1)
        return F.silu(a) * b

    stored = {name: w.mT.contiguous() if transposed else w for name, w in weights.items()}
    experts = SimpleNamespace(
        **stored, **biases, has_gate=gate, has_bias=bias, is_transposed=transposed, _apply_gate=gated, act_fn=F.silu
    )
    x, shares = normal(4, 6, width), normal(5, 6, 2).softmax(-1)
    places = torch.tensor([[0, 1], [2, 0], [1, 1], [2, 1], [0, 3], [3, 3]])  # 3 is none
    found = every_expert(experts, x, places, shares)
    for n in range(6):
        expected = torch.zeros(width, dtype=torch.float64)
        for place, share in zip(places[n].tolist(), shares[n], strict=True):
            if place == count:
                continue
            y = weights[first][place] @ x[n] + (biases[f"{first}_bias"][place] if bias else 0)
            y = weights["down_proj"][place] @ (gated(y) if gate else F.silu(y))
            expected += share * (y + (biases["down_proj_bias"][place] if bias else 0))
        torch.testing.assert_close(found[n], expected)


def test_a_model_computes_it_for_a_while_and_then_what_it_did():
    config = MixtralConfig(
        vocab_size=7, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, num_local_experts=3, num_experts_per_tok=2, max_position_embeddings=8,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MixtralForCausalLM(config).eval()
    ids = torch.arange(5)[None]
    with torch.no_grad():
        before = model(ids).logits
        with of_every_expert():
            found = moe.ALL_EXPERTS_FUNCTIONS.get_interface("eager", None)
            inside = model(ids).logits
        after = moe.ALL_EXPERTS_FUNCTIONS.get_interface("eager", None)
    assert found is every_expert
    assert after is not every_expert
    torch.testing.assert_close(inside, before, rtol=1e-4, atol=1e-6)
