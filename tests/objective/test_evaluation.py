"""Gradients of embeddings are whole, arithmetic is plain, and what surrounds a measurement comes back."""

import copy
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    ProphetNetConfig,
    ProphetNetForCausalLM,
)

from tests.conftest import dense, make_model, make_pool
from tests.products import hessian_vector_product
from villani.commands.measure.settings import MeasureSettings
from villani.commands.running import execute
from villani.curvature.operators import Curvature
from villani.curvature.spectrum import quadrature, sphere_probe
from villani.dynamics.training import train
from villani.errors import InputError
from villani.integrations.figures import PREFIX
from villani.integrations.live import Live
from villani.measurement.measure import measure
from villani.objective.evaluation import evaluating, plain_arithmetic, same_threads
from villani.objective.objective import Objective

PAD = 2


def seeded(make):
    """A float64 model of weights that are not small, without attention kernels of its own."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = make().double()
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.3 * torch.randn_like(p))
    if hasattr(model, "set_attn_implementation"):
        model.set_attn_implementation("eager")
    return model.eval()


def llama(pad=PAD, **rest):
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=11, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
        intermediate_size=12, max_position_embeddings=8, pad_token_id=pad, bos_token_id=None, eos_token_id=None, **rest,
    ))  # fmt: skip


def opt():
    return OPTForCausalLM(OPTConfig(
        vocab_size=11, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, ffn_dim=12, word_embed_proj_dim=8,
        max_position_embeddings=8, pad_token_id=PAD, bos_token_id=None, eos_token_id=None, dropout=0.0,
    ))  # fmt: skip


def prophetnet():
    """Its embedding of positions has a forward of its own, which counts from `padding_idx`."""
    return ProphetNetForCausalLM(ProphetNetConfig(
        vocab_size=11, hidden_size=8, num_decoder_layers=1, num_decoder_attention_heads=2, decoder_ffn_dim=12,
        num_encoder_layers=1, num_encoder_attention_heads=2, encoder_ffn_dim=12, max_position_embeddings=16,
        pad_token_id=PAD,
    ))  # fmt: skip


class Lookup(nn.Module):
    """Ways to look rows up, each with an option that changes the gradient, or the loss too."""

    def __init__(self, way):
        super().__init__()
        options = {
            "module": {"padding_idx": PAD}, "frequency": {"scale_grad_by_freq": True}, "sparse": {"sparse": True},
        }.get(way, {})  # fmt: skip
        self.rows = nn.Embedding(11, 4, **options)
        self.way = way

    def forward(self, ids):
        weight = self.rows.weight
        match self.way:
            case "function":
                found = F.embedding(ids, weight, padding_idx=PAD)
            case "bag":
                found = F.embedding_bag(ids, weight, mode="sum", padding_idx=PAD)
            case "bag by frequency":
                found = F.embedding_bag(ids, weight, mode="sum", scale_grad_by_freq=True)
            case _:
                found = self.rows(ids)
        return found.sin().sum(-1).square().sum()


def by_differences(loss, tensor, row, step=1e-5):
    """The gradient of a plain loss in one row of a tensor, by central differences."""
    found = []
    for k in range(tensor.shape[1]):
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                tensor[row, k] += sign * step
                values.append(float(loss()))
                tensor[row, k] -= sign * step
        found.append((values[0] - values[1]) / (2 * step))
    return torch.tensor(found, dtype=torch.float64)


@pytest.mark.parametrize("make", [llama, lambda: llama(tie_word_embeddings=True), opt, prophetnet])
def test_the_gradient_of_a_padding_row_is_that_of_the_loss(make):
    model = seeded(make)
    before = [(m, m.padding_idx) for m in model.modules() if isinstance(m, nn.Embedding)]
    assert PAD in [index for _, index in before]
    ids = torch.tensor([[PAD, 3, PAD, 5, 7, PAD], [4, PAD, 9, 9, 1, 0]])
    objective = Objective(model, ids[None])
    gradient = dict(zip([p.name for p in objective.parameters.parameters], objective.gradient(), strict=True))
    looked_up = [n for n, p in model.named_parameters() if any(p is m.weight and i == PAD for m, i in before)]

    def loss():
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
        return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())

    with torch.no_grad():
        for name in looked_up:
            truth = by_differences(loss, model.get_parameter(name), PAD)
            assert torch.allclose(gradient[name][PAD], truth, atol=1e-8), name
    assert any(gradient[name][PAD].abs().max() > 1e-3 for name in looked_up)
    assert [(m, m.padding_idx) for m in model.modules() if isinstance(m, nn.Embedding)] == before
    model(input_ids=ids, labels=ids).loss.backward()  # what the user trains with is as it was
    assert all(not model.get_parameter(n).grad[PAD].any() for n in looked_up if not model.config.tie_word_embeddings)


@pytest.mark.parametrize("way", ["module", "function", "frequency", "sparse", "bag", "bag by frequency"])
def test_options_that_change_a_gradient_and_not_the_loss_are_ignored(way):
    model = seeded(lambda: Lookup(way))
    ids = torch.tensor([[PAD, 3, PAD, 5], [PAD, 5, 5, 3]])
    objective = Objective(model, [ids], loss_fn=lambda m, g: m(g), finite=True)
    found = objective.gradient()[0]
    for row in (PAD, 5):
        truth = by_differences(lambda: model(ids).detach(), model.rows.weight, row)
        assert torch.allclose(found[row], truth, atol=1e-7)
    assert bool(found[PAD].any()) is (way != "bag")  # a bag leaves the row out of the loss itself


def without_padding(model):
    """The same weights in a model that has no padding row."""
    twin = llama(None).double().eval()
    twin.load_state_dict(model.state_dict())
    twin.set_attn_implementation("eager")
    return twin


def test_every_way_to_the_trace_takes_the_padding_row_in():
    """Against a dense Hessian, and bit for bit against a model that has no padding row."""
    model = seeded(llama)
    twin = without_padding(model)
    pool = make_pool()
    assert any((group["input_ids"] == PAD).any() for group in pool)
    oracles = [dense(twin, group, second=True) for group in pool[:2]]
    whole = Objective(model, pool[:2], finite=True)
    tokens = sum(o.tokens for o in oracles)
    assert sum(float(g.square().sum()) for g in whole.gradient()) == pytest.approx(
        float(np.square(sum(o.gradient for o in oracles) / tokens).sum()), rel=1e-10
    )
    vector = [torch.zeros_like(t) for t in whole.parameters.tensors]
    vector[0][PAD] = 1.0
    flat = torch.cat([v.reshape(-1) for v in vector]).numpy()
    for method in ("reverse-over-reverse", "forward-over-reverse"):
        found = torch.cat([p.reshape(-1) for p in hessian_vector_product(whole, vector, method=method)]).numpy()
        assert np.allclose(found, sum(o.hessian @ flat for o in oracles) / tokens, atol=1e-9)
    for trace in ("gauss-newton", "hutchinson", "taylor"):
        found, truth = (measure(Objective(m, pool[4:]), trace=trace, shares=0) for m in (model, twin))
        assert found.hessian_trace == truth.hessian_trace
        assert found.gradient_norm_squared == truth.gradient_norm_squared


def test_a_compiled_model_has_the_padding_row_in_its_gradient():
    model = seeded(lambda: Lookup("module"))
    ids = torch.tensor([[PAD, 3, PAD, 5]])
    compiled = torch.compile(model, backend="eager")
    compiled(ids).backward()  # as in training, before anything is measured
    assert not model.rows.weight.grad[PAD].any()
    objective = Objective(compiled, [ids], loss_fn=lambda m, g: m(g))
    found = objective.gradient()[0]
    truth = by_differences(lambda: model(ids).detach(), model.rows.weight, PAD)
    assert torch.allclose(found[PAD], truth, atol=1e-7)
    with objective.evaluating():
        assert model.rows.padding_idx is None
    assert model.rows.padding_idx == PAD


def test_training_and_the_callback_see_the_whole_gradient_and_leave_the_users_alone():
    model = seeded(llama)
    twin = without_padding(model)
    ids = make_pool()[0]["input_ids"]
    weights = []
    for each in (copy.deepcopy(model), twin):
        train(each, ids, ids, steps=2, batch=2, learning_rate=0.1, seed=0, optimizer="sgd")
        weights.append(torch.cat([p.detach().reshape(-1) for p in each.parameters()]))
    assert torch.equal(*weights)
    figures = Live(model, make_pool(4), temperature=1.0).measure(0)
    truth = Live(without_padding(model), make_pool(4), temperature=1.0).measure(0)
    assert figures[PREFIX + "gradient_norm_squared"] == truth[PREFIX + "gradient_norm_squared"]
    assert model.model.embed_tokens.padding_idx == PAD


@pytest.mark.parametrize("around", [
    lambda: torch.autocast("cpu", torch.bfloat16), torch.no_grad, torch.inference_mode,
])  # fmt: skip
def test_figures_do_not_depend_on_the_surroundings(around):
    objective = Objective(make_model("gpt2").float(), make_pool(4))
    plain = measure(objective)
    with around():
        found = measure(objective)
    assert found.joint.values.tolist() == plain.joint.values.tolist()


def test_eigenvalues_and_sweeps_do_not_depend_on_autocast():
    objective = Objective(make_model("gpt2").float(), make_pool(4))

    def work():
        operator = Curvature(objective)
        first = quadrature(operator, sphere_probe(operator.parameters, 0, 0), 6)
        swept = measure(objective, trace="taylor", shares=0)
        return first.nodes.tolist(), swept.joint.values.tolist()

    plain = work()
    with torch.autocast("cpu", torch.bfloat16):
        assert work() == plain


def test_float32_is_not_rounded_inside_and_the_users_setting_comes_back():
    seen = []
    model = make_model("gpt2").float()
    model.register_forward_hook(
        lambda *_: seen.append((torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32))
    )
    convolutions = torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("medium")
    try:
        Objective(model, make_pool(4)).loss()
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert set(seen) == {("highest", False)}
    assert torch.backends.cudnn.allow_tf32 == convolutions


def test_everything_comes_back_after_an_error():
    model = make_model("gpt2").train()
    lookups = torch.embedding, torch.embedding_bag
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002

    def fail():
        with evaluating(model, torch.device("cpu")), plain_arithmetic():
            assert not model.training
            assert torch.embedding is not lookups[0]
            random.random(), np.random.random(), torch.rand(())  # noqa: NPY002
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        fail()
    assert (torch.embedding, torch.embedding_bag) == lookups
    assert all(m.training for m in model.modules())
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == states  # noqa: NPY002


def test_threads_come_back(tmp_path):
    before = torch.get_num_threads()
    with same_threads():
        torch.set_num_threads(before + 1)
    assert torch.get_num_threads() == before
    small = {"model": "builtin:tiny?layers=1&width=8&context=16", "groups": 3, "sequences": 1, "block": 8}
    _, record = execute(MeasureSettings(**small, threads=before + 1), tmp_path / "run")
    assert record.provenance.threads == before + 1
    assert torch.get_num_threads() == before
    with pytest.raises(InputError, match="block=99"):
        execute(MeasureSettings(**small | {"block": 99}, threads=before + 1), tmp_path / "other")
    assert torch.get_num_threads() == before
