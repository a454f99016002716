import numpy as np
import pytest
import torch
from torch import nn

from tests.conftest import dense, flat_parameters, make_model, make_pool
from villani.curvature.probes import random_direction
from villani.errors import InputError
from villani.measurement.measure import measure
from villani.objective.objective import Objective


def test_loss_and_gradient_equal_the_dense_oracle(model):
    pool = make_pool()
    objective = Objective(model, pool)
    oracles = [dense(model, group) for group in pool]
    tokens = sum(o.tokens for o in oracles)
    assert objective.loss() == pytest.approx(sum(o.loss for o in oracles) / tokens, abs=1e-10)
    gradient = torch.cat([g.reshape(-1) for g in objective.gradient()]).numpy()
    assert np.allclose(gradient, sum(o.gradient for o in oracles) / tokens, atol=1e-10)
    assert objective.loss(2) == pytest.approx(oracles[2].loss / oracles[2].tokens, abs=1e-10)


def test_tokens_not_asked_for_do_not_count():
    objective = Objective(make_model("gpt2"), make_pool())
    counts = [sum(batch.tokens for batch in objective.batches(g)) for g in range(4)]
    # 2 blocks of 6 predict 10; padding leaves 2 + 5; two −100 labels a block leave 6; one block predicts 5
    assert counts == [10, 7, 6, 5]


def test_micro_batches_change_nothing_but_rounding():
    model = make_model("gpt2")
    whole = Objective(model, make_pool(blocks=4), micro_tokens=10_000)
    pieces = Objective(model, make_pool(blocks=4), micro_tokens=1)
    assert len(list(whole.batches(0))) == 1
    assert len(list(pieces.batches(0))) == 4
    assert whole.loss() == pytest.approx(pieces.loss(), abs=1e-12)


def test_a_measurement_leaves_no_trace():
    model = make_model("gpt2")
    model.transformer.h[0].mlp.eval()  # a mixed train/eval state must come back too
    modes = [m.training for m in model.modules()]
    before = flat_parameters(model).copy()
    model.lm_head.weight.grad = torch.ones_like(model.lm_head.weight)
    state = torch.get_rng_state()
    objective = Objective(model, make_pool())
    objective.gradient()
    with objective.displaced(random_direction(objective.parameters, 0), 3.0):
        assert not np.array_equal(flat_parameters(model), before)
    assert np.array_equal(flat_parameters(model), before)
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(model.lm_head.weight.grad, torch.ones_like(model.lm_head.weight))
    assert not torch.are_deterministic_algorithms_enabled()


def test_dropout_is_off():
    model = make_model("gpt2")
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.9
    objective = Objective(model, make_pool())
    assert objective.loss() == objective.loss()


def test_fused_attention_is_made_twice_differentiable():
    """SDPA attention, as `from_pretrained` gives it, measures like eager attention."""
    model = make_model("llama")
    eager = Objective(model, make_pool()).loss()
    model.set_attn_implementation("sdpa")
    assert Objective(model, make_pool()).loss() == pytest.approx(eager, abs=1e-12)


def test_custom_loss_function():
    model = nn.Linear(3, 1, bias=False).double()
    data = [(torch.randn(5, 3).double(), torch.randn(5, 1).double()) for _ in range(3)]
    mean = Objective(model, data, loss_fn=lambda m, g: (m(g[0]) - g[1]).square().mean())
    total = Objective(model, data, loss_fn=lambda m, g: ((m(g[0]) - g[1]).square().sum(), 5))
    assert mean.loss() == pytest.approx(total.loss(), abs=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda: {"weight_decay": -0.1}, "weight_decay=-0.1"),
        (lambda: {"weight_decay": float("nan")}, "weight_decay=nan"),
        (lambda: {"micro_tokens": 0}, "micro_tokens=0"),
        (lambda: {"groups": []}, "groups is empty"),
        (lambda: {"groups": torch.full((3, 2, 4), 11)}, "outside the model's vocabulary of 11"),
        (lambda: {"groups": torch.full((3, 2, 4), -1)}, "token ids run from -1"),
        (lambda: {"groups": torch.zeros((3, 2, 9), dtype=torch.long)}, "longer than the model's context of 8"),
        (lambda: {"groups": torch.zeros((3, 2, 1), dtype=torch.long)}, "nothing to predict"),
        (lambda: {"groups": torch.zeros((3, 2, 4))}, "expected int64 token ids"),
        (lambda: {"groups": torch.zeros((3, 4), dtype=torch.long)}, r"shape \(B, T\)"),
        (lambda: {"decay": "everything"}, "decay 'everything' is unknown"),
        (lambda: {"decay": "match:("}, "not a regular expression"),
        (lambda: {"decay": "match:nothing"}, "matches no parameter"),
        (lambda: {"model": make_model("gpt2").bfloat16()}, "bfloat16"),
        (lambda: {"model": make_model("gpt2").requires_grad_(False)}, "no θ to measure"),
    ],
)
def test_bad_input_is_told_in_one_line(change, message):
    arguments = {"model": make_model("gpt2"), "groups": make_pool(), **change()}
    with pytest.raises(InputError, match=message) as caught:
        Objective(**arguments)
    assert "\n" not in str(caught.value)


def test_a_weight_that_is_not_finite_is_named():
    model = make_model("gpt2")
    with torch.no_grad():
        model.transformer.h[0].mlp.c_fc.weight[1, 1] = float("nan")
    with pytest.raises(InputError, match=r"transformer.h.0.mlp.c_fc.weight has 1 non-finite"):
        Objective(model, make_pool())


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (lambda _: 0.5, "loss_fn returns float, no tensor of one entry"),
        (lambda y: y[:, 0], r"loss_fn returns torch.float64 of shape \(5,\)"),
        (lambda y: y.sum().long(), "loss_fn returns torch.int64"),
        (lambda y: (y.sum(), 5, 1), "loss_fn returns tuple"),
        (lambda y: {"loss": y.sum()}, "loss_fn returns dict"),
        (lambda _: None, "loss_fn returns NoneType"),
        (lambda y: (y.sum(), 0), "loss_fn returns 0 as its number of terms"),
        (lambda y: (y.sum(), float("nan")), "loss_fn returns nan as its number"),
        (lambda y: (y.sum(), "5"), "loss_fn returns '5' as its number"),
        (lambda y: y.sum().detach(), "the loss has no gradient"),
    ],
)
def test_what_a_custom_loss_cannot_return_is_told(returned, message):
    model = nn.Linear(3, 1, bias=False).double()
    objective = Objective(model, [torch.ones(5, 3).double()] * 3, loss_fn=lambda m, x: returned(m(x)))
    with pytest.raises(InputError, match=message):
        objective.gradient()
    with pytest.raises(InputError, match=message):
        measure(objective)


def test_a_count_may_be_a_tensor_and_a_loss_of_one_entry_have_a_shape():
    model = nn.Linear(3, 1, bias=False).double()
    x = torch.randn(5, 3).double()
    plain = Objective(model, [x], loss_fn=lambda m, x: m(x).square().mean())
    other = Objective(model, [x], loss_fn=lambda m, x: (m(x).square().sum(dim=0), torch.tensor(5)))
    assert other.loss() == pytest.approx(plain.loss(), abs=1e-14)
    assert torch.allclose(other.gradient()[0], plain.gradient()[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "gpt2"}, "model is a str: expected a torch.nn.Module"),
        ({"loss_fn": 3}, "loss_fn is a int"),
        ({"micro_tokens": 1.5}, "micro_tokens=1.5: expected a whole number"),
        ({"weight_decay": "0.1"}, "weight_decay=0.1: expected a finite number"),
    ],
)
def test_arguments_of_the_wrong_kind_are_told(change, message):
    with pytest.raises(InputError, match=message):
        Objective(**{"model": make_model("gpt2"), "groups": make_pool(), **change})
