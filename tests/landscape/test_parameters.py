import numpy as np
import pytest
import torch
from torch import nn
from transformers.trainer_pt_utils import get_parameter_names

from tests.conftest import flat_parameters, make_model
from villani.landscape.parameters import ParameterSpace


def decayed_names(model, decay):
    return {p.name for p in ParameterSpace(model, decay).parameters if p.decayed}


def test_tied_weights_count_once(model):
    space = ParameterSpace(model)
    assert space.size == len(flat_parameters(model)) == sum(p.numel() for p in set(model.parameters()))
    offsets = [p.offset for p in space.parameters]
    assert offsets == [0, *np.cumsum(space.sizes)[:-1]]


def test_all_decays_all(model):
    assert ParameterSpace(model, "all").decayed_size == ParameterSpace(model).size


def test_hf_mask_is_the_trainers(model):
    """Against the function that the Hugging Face Trainer calls, with the patterns that it passes."""
    patterns = [r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)"]
    wanted = set(get_parameter_names(model, [nn.LayerNorm], patterns))
    names = {name for name, _ in model.named_parameters()}  # the Trainer lists tied weights under each name
    assert decayed_names(model, "hf") == wanted & names


def test_nanogpt_mask_is_tensors_of_two_dimensions():
    assert all(
        dict(make_model("gpt2").named_parameters())[n].dim() >= 2 for n in decayed_names(make_model("gpt2"), "nanogpt")
    )
    assert "transformer.wte.weight" in decayed_names(make_model("gpt2"), "nanogpt")
    assert "transformer.h.0.ln_1.weight" not in decayed_names(make_model("gpt2"), "nanogpt")


def test_olmo_mask_spares_embeddings_only():
    tied, untied = make_model("gpt2"), make_model("llama")
    assert {n for n, _ in tied.named_parameters()} - decayed_names(tied, "olmo") == {
        "transformer.wte.weight", "transformer.wpe.weight",
    }  # fmt: skip
    assert {n for n, _ in untied.named_parameters()} - decayed_names(untied, "olmo") == {"model.embed_tokens.weight"}


def test_patterns_select_by_name_under_any_alias():
    model = make_model("gpt2")  # lm_head.weight is another name of transformer.wte.weight
    assert decayed_names(model, "match:lm_head|c_fc") == {
        "transformer.wte.weight", "transformer.h.0.mlp.c_fc.weight", "transformer.h.0.mlp.c_fc.bias",
    }  # fmt: skip


def test_frozen_parameters_are_no_coordinates():
    model = make_model("gpt2")
    model.transformer.wpe.weight.requires_grad_(False)
    assert "transformer.wpe.weight" not in {p.name for p in ParameterSpace(model).parameters}


def test_norms_and_checksum():
    model = make_model("gpt2")
    space = ParameterSpace(model)
    assert space.norms_squared().sum() == pytest.approx((flat_parameters(model) ** 2).sum())
    before = space.checksum()
    assert ParameterSpace(make_model("gpt2")).checksum() == before
    with torch.no_grad():
        model.transformer.wpe.weight[0, 0] += 1e-12
    assert space.checksum() != before
