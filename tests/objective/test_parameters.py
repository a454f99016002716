import contextlib

import numpy as np
import pytest
import torch
import transformers.models.gpt_bigcode.modeling_gpt_bigcode  # noqa: F401 - 5.20 compiles torch's own softmax there
from torch import nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedConfig, Trainer, TrainingArguments

from tests.conftest import flat_parameters, make_model
from villani.errors import InputError
from villani.objective.parameters import ParameterSpace


def decayed_names(model, decay):
    return {p.name for p in ParameterSpace(model, decay).parameters if p.decayed}


def test_tied_weights_count_once(model):
    space = ParameterSpace(model)
    assert space.size == len(flat_parameters(model)) == sum(p.numel() for p in set(model.parameters()))
    offsets = [p.offset for p in space.parameters]
    assert offsets == [0, *np.cumsum(space.sizes)[:-1]]


def test_all_decays_all(model):
    assert ParameterSpace(model, "all").decayed_size == ParameterSpace(model).size


def shrink(config, depth=0):
    """Few layers and experts; widths are left alone, since on the meta device they cost nothing."""
    for name in ("num_hidden_layers", "n_layer", "num_layers", "n_layers", "encoder_layers", "decoder_layers"):
        if isinstance(getattr(config, name, None), int):
            with contextlib.suppress(Exception):  # some of them are derived from others
                setattr(config, name, 2)
    for part in list(vars(config).values()):
        if isinstance(part, PreTrainedConfig) and depth < 3:
            shrink(part, depth + 1)


def causal_classes():
    """Every causal language model of transformers, on the meta device; those that do not build are left out."""
    for make, classes in MODEL_FOR_CAUSAL_LM_MAPPING.items():
        for kind in classes if isinstance(classes, tuple) else (classes,):
            with contextlib.suppress(Exception), torch.device("meta"):
                config = make()
                shrink(config)
                yield kind(config)


def test_hf_mask_is_what_the_trainers_optimiser_decays_in_every_causal_class(tmp_path):
    arguments = TrainingArguments(str(tmp_path), weight_decay=0.1, optim="sgd", report_to="none", use_cpu=True)
    trainer = Trainer(make_model("gpt2"), arguments)
    seen = set()
    for model in causal_classes():
        trainer.model, trainer.optimizer = model, None
        groups = trainer.create_optimizer().param_groups
        decays = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
        space = ParameterSpace(model, "hf")
        wrong = [p.name for p in space.parameters if p.decayed != (id(p.tensor) in decays)]
        assert not wrong, (type(model).__name__, wrong)
        seen.add(model.config.model_type)
    assert seen > {"gpt2", "mamba", "mamba2", "falcon_mamba", "nemotron_h", "xlstm", "hyperclovax", "llama"}
    assert len(seen) > 110


class RMSNorm(nn.Module):
    """A norm whose class the Trainer does not know: only a name can spare its weight."""

    def __init__(self):
        super().__init__()
        self.weight, self.gain = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))


class NormedEmbedding(nn.Embedding):
    pass


def test_hf_mask_of_a_module_that_is_no_model_of_transformers():
    """By hand, from the Trainer's patterns: bias, layernorm, rmsnorm, norm or …_norm as a whole part of a name."""
    model = nn.ModuleDict({
        "normed": NormedEmbedding(3, 2), "scale": RMSNorm(), "q_norm": RMSNorm(), "norm_f": RMSNorm(),
        "ln": nn.LayerNorm(2), "groupnorm": nn.GroupNorm(1, 2), "linear": nn.Linear(2, 2), "dt_biases": nn.Linear(2, 2),
    })  # fmt: skip
    assert decayed_names(model, "hf") == {
        "normed.weight", "scale.weight", "scale.gain", "norm_f.weight", "norm_f.gain", "groupnorm.weight",
        "linear.weight",
    }  # fmt: skip


def test_the_mask_in_a_ledger_tells_what_decays_and_not_its_name_alone(monkeypatch):
    model = make_model("gpt2")
    was = ParameterSpace(model, "hf").mask
    assert was == ParameterSpace(make_model("gpt2"), "hf").mask != ParameterSpace(make_model("llama"), "hf").mask
    assert ParameterSpace(model, "all").mask == "all"
    assert ParameterSpace(model, "match:wte").mask == "match:wte"
    monkeypatch.setattr(Trainer, "get_decay_parameter_names", lambda self, model: ["transformer.wte.weight"])
    assert decayed_names(model, "hf") == {"transformer.wte.weight"}
    assert ParameterSpace(model, "hf").mask != was


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


@pytest.mark.parametrize("decay", [None, ["all"], 0.1])
def test_a_mask_that_is_no_text_is_told(decay):
    with pytest.raises(InputError, match="is no text: expected all, hf"):
        ParameterSpace(make_model("gpt2"), decay)


def test_weights_without_values_are_told():
    with pytest.raises(InputError, match="is on the meta device, without values"):
        ParameterSpace(make_model("gpt2").to("meta")).check()
