"""Batches against plain `transformers` code: its own loss for the same batch, and the same text without padding."""

import inspect

import numpy as np
import pytest
import torch
import transformers
from torch import nn

from villani.curvature.blocks import BlockTrace
from villani.curvature.operators import Curvature
from villani.curvature.products import differentiable_gradient, hessian_vector_product, product
from villani.errors import InputError
from villani.landscape.graph import trace_loss
from villani.landscape.objective import Objective

V, T = 23, 12
COMMON = {"vocab_size": V, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
WIDE = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 16}  # fmt: skip
MODELS = {
    "GPT2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 16},
    "GPTNeo": {"hidden_size": 16, "num_layers": 2, "attention_types": [[["global", "local"], 1]], "num_heads": 2,
               "window_size": 3, "max_position_embeddings": 16},
    "Llama": {k: v for k, v in WIDE.items() if k != "head_dim"},
    "Qwen3": WIDE,
    "Gemma3": WIDE | {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]},
    "Mamba": {"hidden_size": 16, "state_size": 4, "num_hidden_layers": 2, "time_step_rank": 2},
    "OPT": {"hidden_size": 16, "ffn_dim": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "word_embed_proj_dim": 16,
            "max_position_embeddings": 16},
    "Bloom": {"hidden_size": 16, "n_layer": 2, "n_head": 2},
    "Rwkv": {"hidden_size": 16, "attention_hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2},
    "Bart": {"d_model": 16, "decoder_layers": 2, "decoder_ffn_dim": 24, "decoder_attention_heads": 2,
             "max_position_embeddings": 16},
}  # fmt: skip
NAMED = {"GPT2": ("GPT2Config", "GPT2LMHeadModel"), "Gemma3": ("Gemma3TextConfig", "Gemma3ForCausalLM")}


def make(name, dtype=torch.float32, attention="eager"):
    config, kind = NAMED.get(name, (f"{name}Config", f"{name}ForCausalLM"))
    config = getattr(transformers, config)(**COMMON, **MODELS[name])
    if name not in ("Mamba", "Rwkv"):
        config._attn_implementation = attention
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(transformers, kind)(config)
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.2 * torch.randn_like(p))
    return model.to(dtype).eval()


def positioned(model):
    return "position_ids" in inspect.signature(model.forward).parameters


def draw(model, generator, kind):
    """A batch of one kind as a user has it, and the batch that `transformers` is given for it."""
    rows, length = int(torch.randint(1, 4, (), generator=generator)), int(torch.randint(5, T, (), generator=generator))
    ids = torch.randint(1, V, (rows, length), generator=generator)
    if torch.rand((), generator=generator) < 0.5:
        ids[:, 0] = 0  # a token that begins every text
    batch, labels = {"input_ids": ids}, ids.clone()
    if kind in ("left", "right"):
        padding = torch.randint(0, length - 2, (rows, 1), generator=generator)
        place = torch.arange(length)
        real = place >= padding if kind == "left" else place < length - padding
        batch["attention_mask"] = real.long()
        labels[~real] = -100
        if kind == "left":
            labels[place == padding] = -100  # the first real token has no past
    elif kind == "packed":
        cut = int(torch.randint(1, length, (), generator=generator))
        places = torch.cat([torch.arange(cut), torch.arange(length - cut)])
        batch["position_ids"] = places.expand(rows, -1).clone()
        labels[:, cut] = -100
    reference = batch | {"labels": labels}
    if torch.rand((), generator=generator) < 0.5:  # labels of the user's own
        labels = ids.clone()  # the first token after padding, and that of a packed document, included
        labels[torch.rand(labels.shape, generator=generator) < 0.3] = -100
        if kind in ("left", "right"):
            labels[batch["attention_mask"] == 0] = -100
        labels[0, -1] = labels[0, length // 2] = 3
        batch = batch | {"labels": labels}
        reference = dict(batch)
    if kind == "left" and positioned(model):  # as `generate` has them
        reference["position_ids"] = (batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    return batch, reference


def transformers_loss(model, references):
    """Token-weighted mean of the model's own losses, and its gradient."""
    tokens = [int((r["labels"][:, 1:] != -100).sum()) for r in references]
    losses = [model(**r, use_cache=False).loss for r in references]
    loss = sum(n * value for n, value in zip(tokens, losses, strict=True)) / sum(tokens)
    gradient = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    return float(loss.detach()), [torch.zeros_like(p) if g is None else g for g, p in zip(gradient, model.parameters(), strict=True)]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", ["GPT2", "GPTNeo", "Llama", "Qwen3", "Gemma3", "Mamba"])
def test_the_loss_of_any_batch_is_that_of_transformers(name, attention):
    if name in ("Mamba", "GPTNeo") and attention == "sdpa":
        pytest.skip("it has one attention, or none")
    model = make(name, attention=attention)
    generator = torch.Generator().manual_seed(len(name))
    kinds = ["plain", "left", "right"] + ["packed"] * positioned(model)
    pairs = [draw(model, generator, kind) for kind in kinds for _ in range(4)]
    batches, references = map(list, zip(*pairs, strict=True))
    loss, gradient = transformers_loss(model, references)
    for micro in (1, 512):
        objective = Objective(model, batches, micro_tokens=micro)
        assert objective.loss() == pytest.approx(loss, abs=1e-6)
        for ours, theirs in zip(objective.gradient(), gradient, strict=True):
            assert torch.allclose(ours, theirs.double(), atol=1e-5)
    for index, reference in enumerate(references):
        assert objective.loss(index) == pytest.approx(transformers_loss(model, [reference])[0], abs=2e-6)
