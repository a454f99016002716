"""Parameters that require no gradient are constants of F: θ of a LoRA is its two small matrices."""

import numpy as np
import pytest
import torch
from torch.func import functional_call

from tests.adapted import adapt
from tests.conftest import make_model, make_pool
from tests.inputs.conftest import refused
from villani.criteria.orbits import orbits_of, rescaled
from villani.criteria.symmetries import generators
from villani.curvature.hessian import HessianOperator
from villani.measurement.measure import measure
from villani.measurement.spectrum import eigenpairs
from villani.objective.graph import trace_loss
from villani.objective.objective import Objective
from villani.objective.parameters import ParameterSpace

PATHS = {"llama": "model.layers.0.self_attn.q_proj", "gpt2": "transformer.h.0.mlp.c_fc"}


def oracle(architecture, adapted, groups):
    """Loss, gradient (d,) and Hessian (d, d) in (A, B), from W + s·BA put into the plain model, by autograd alone."""
    path = PATHS[architecture]
    plain, layer = make_model(architecture).eval(), adapted.get_submodule(path)
    weight, shapes = plain.get_submodule(path).weight.detach(), (layer.lora_A.shape, layer.lora_B.shape)
    theta = torch.cat([layer.lora_A.detach().reshape(-1), layer.lora_B.detach().reshape(-1)])

    def loss(flat):
        a, b = (part.view(shape) for part, shape in zip(flat.split([s.numel() for s in shapes]), shapes, strict=True))
        change = layer.scale * b @ a
        state = {f"{path}.weight": weight + (change if change.shape == weight.shape else change.T)}
        total, tokens = 0.0, 0
        for group in groups:
            ids = group["input_ids"]
            logits = functional_call(plain, state, (ids,), {"use_cache": False}).logits[:, :-1]
            total = total - torch.log_softmax(logits, -1).gather(2, ids[:, 1:, None]).sum()
            tokens += ids[:, 1:].numel()
        return total / tokens

    theta = theta.detach()
    gradient = torch.autograd.functional.jacobian(loss, theta)
    hessian = torch.autograd.functional.hessian(loss, theta)
    return float(loss(theta).detach()), gradient.numpy(), hessian.numpy()


@pytest.fixture(params=list(PATHS))
def setting(request):
    architecture = request.param
    model = adapt(make_model(architecture), PATHS[architecture])
    groups = [group for group in make_pool() if set(group) == {"input_ids"}]
    return Objective(model, groups, weight_decay=0.1, finite=True), oracle(architecture, model, groups)


def test_loss_gradient_and_curvature_of_an_adapter_equal_the_dense_oracle(setting):
    objective, (loss, gradient, hessian) = setting
    assert [p.name.rpartition(".")[2] for p in objective.parameters.parameters] == ["lora_A", "lora_B"]
    assert objective.parameters.decayed_size == objective.parameters.size == len(gradient)
    assert objective.loss() == pytest.approx(loss, abs=1e-12)
    ours = torch.cat([g.reshape(-1) for g in objective.gradient()]).numpy()
    assert np.allclose(ours, gradient, atol=1e-11)
    matrix = HessianOperator(objective) @ torch.eye(len(gradient), dtype=torch.float64)
    assert np.allclose(matrix.numpy(), hessian, atol=1e-10)
    assert abs(np.linalg.eigvalsh(hessian)).max() > 1e-3
    pair = eigenpairs(objective, top=1, bottom=0, tolerance=1e-9).largest[0]
    assert pair.value == pytest.approx(np.linalg.eigvalsh(hessian)[-1], abs=1e-8)


@pytest.mark.parametrize("trace", ["gauss-newton", "hutchinson"])
def test_every_way_that_needs_no_trace_of_the_head_measures_it(setting, trace):
    objective, (loss, gradient, hessian) = setting
    before = [p.detach().clone() for p in objective.model.parameters()]
    measurement = measure(objective, trace=trace, probes=40)
    assert measurement.loss.value == pytest.approx(loss, abs=1e-12)
    assert measurement.gradient_norm_squared.value == pytest.approx(gradient @ gradient, rel=1e-9)
    estimate = measurement.hessian_trace
    assert abs(estimate.value - np.trace(hessian)) < 4 * estimate.sem
    assert all(torch.equal(p, q) for p, q in zip(before, objective.model.parameters(), strict=True))


def test_the_rescaling_of_the_two_factors_is_found():
    """B·A is unchanged by A → R·A, B → B/R, whatever the model: along it ‖θ‖ grows and L does not."""
    objective = Objective(adapt(make_model("llama"), PATHS["llama"]), [group["input_ids"] for group in make_pool(2)])
    basis = generators(trace_loss(objective, next(objective.batches(0))))
    orbit, back = orbits_of(basis, objective.parameters)
    assert {index: float(e) for index, e in orbit.exponents.items()} == {0: 1.0, 1: -1.0}
    assert {index: float(e) for index, e in back.exponents.items()} == {0: -1.0, 1: 1.0}
    before = objective.loss()
    with rescaled(objective, orbit.exponents, 1.37):
        assert objective.loss() == pytest.approx(before, abs=1e-12)


def test_constants_of_another_precision_are_refused():
    """Adapters in float32 on a base in bfloat16 are how PEFT trains, and give derivatives to two digits."""
    model = adapt(make_model("llama").float(), PATHS["llama"])
    layer = model.get_submodule(PATHS["llama"])
    ids = torch.randint(0, 11, (2, 1, 6), generator=torch.Generator().manual_seed(0))
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        layer.base.to(dtype)
        refused(rf"is frozen and {dtype}, and θ is torch.float32: .*model.to\(torch.float32\)", Objective, model, ids)
    layer.base.float()
    assert Objective(model, ids).parameters.size == layer.lora_A.numel() + layer.lora_B.numel()


def test_a_custom_loss_may_have_constants_of_any_kind():
    model = adapt(make_model("llama").float(), PATHS["llama"])
    model.lm_head.bfloat16()

    def loss(module, group):
        return module.get_submodule(PATHS["llama"])(group).square().mean()

    assert Objective(model, [torch.ones(2, 8), torch.eye(8)], loss_fn=loss).loss() > 0


def test_an_adapter_that_was_loaded_frozen_is_no_theta():
    refused("no parameter with requires_grad=True.*is_trainable=True", ParameterSpace, adapt(make_model("llama")))


def test_what_peft_wraps_is_measured_as_it_is():
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(
        make_model("llama"), peft.LoraConfig(r=2, lora_alpha=3, target_modules=["q_proj"], lora_dropout=0.5)
    )
    plain = adapt(make_model("llama"), PATHS["llama"])
    ours, theirs = plain.get_submodule(PATHS["llama"]), model.base_model.model.get_submodule(PATHS["llama"])
    with torch.no_grad():
        for name in ("lora_A", "lora_B"):
            getattr(theirs, name).default.weight.data = getattr(ours, name).detach().clone()
    pool = make_pool()
    for trace in ("gauss-newton", "hutchinson"):
        one, other = (measure(Objective(m, pool), trace=trace, probes=2, seed=3) for m in (model, plain))
        assert one.loss.value == pytest.approx(other.loss.value, rel=1e-10)
        assert one.hessian_trace.value == pytest.approx(other.hessian_trace.value, rel=1e-8)
