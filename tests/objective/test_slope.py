"""The gradient that autograd gives is held against differences of the loss, whatever a forward is made of."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import HrmTextConfig, HrmTextForCausalLM, ReformerConfig, ReformerModelWithLMHead
from transformers.modeling_outputs import CausalLMOutput

from tests.conftest import make_model
from tests.zoo_models import zoo_model, zoo_tokens
from villani.errors import InputError
from villani.objective.objective import Objective

V, T, D = 11, 6, 16
IDS = torch.randint(3, V, (2, 2, T), generator=torch.Generator().manual_seed(0))


def ratio(logits_of, model, ids):
    """The share of its gradient that autograd misses, by differences along every coordinate of one tensor."""
    weight = model.inner.weight
    claimed = torch.autograd.grad(cross_entropy(logits_of, model, ids), weight, allow_unused=True)[0]
    true = torch.zeros_like(weight)
    with torch.no_grad():
        for k in range(weight.numel()):
            flat, losses = weight.view(-1), []
            for step in (1e-6, -2e-6):
                flat[k] += step
                losses.append(float(cross_entropy(logits_of, model, ids)))
            flat[k] += 1e-6
            true.view(-1)[k] = (losses[0] - losses[1]) / 2e-6
    return float((true - (0 if claimed is None else claimed)).norm() / true.norm())


def cross_entropy(logits_of, model, ids):
    logits = logits_of(model, ids)
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


class Scaled(torch.autograd.Function):
    """x, with 1.2 times its gradient."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return 1.2 * grad


def unseen(x):
    with torch.no_grad():
        return x.tanh()


def half(x):
    return 0.8 * x + 0.2 * x.detach()


def rounded(x):
    return x + (x.round() - x).detach()


DISHONEST = {"no_grad": unseen, "detach": half, "backward": Scaled.apply, "all detached": lambda x: x.detach().sin()}
HONEST = {
    "gelu": F.gelu, "relu": F.relu, "relu squared": lambda x: F.relu(x) ** 2, "abs": torch.abs, "clamp": F.hardtanh,
    "largest": lambda x: x * (x >= x.topk(4, dim=-1).values[..., -1:]),  # what is taken jumps
    "maxout": lambda x: torch.maximum(x, x.roll(1, -1)),
    "shifted": lambda x: (x - x.amax(-1, True).detach()).softmax(-1),
    "checkpointed": lambda x: torch.utils.checkpoint.checkpoint(torch.tanh, x, use_reentrant=False),
}  # fmt: skip


class Net(nn.Module):
    """Embedding, a residual layer with an activation, head."""

    def __init__(self, activation, scale=1.0, dtype=torch.float32, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.activation = activation
        self.embed, self.inner, self.head = nn.Embedding(V, D), nn.Linear(D, D), nn.Linear(D, V)
        with torch.no_grad():
            for p in self.parameters():
                p.mul_(scale)
        self.to(dtype)

    def forward(self, input_ids, use_cache=False):
        x = self.embed(input_ids)
        return CausalLMOutput(logits=self.head(x + self.activation(self.inner(x))))


@pytest.mark.parametrize("kind", DISHONEST)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [0.0, 1e-3, 1.0])
def test_a_gradient_of_another_function_is_refused(kind, dtype, scale):
    model = Net(DISHONEST[kind], scale, dtype)
    before = [p.detach().clone() for p in model.parameters()]
    for loss_fn in (None, lambda m, ids: cross_entropy(lambda m, i: m(i).logits, m, ids)):
        if loss_fn is not None and scale < 1:
            continue  # a loss_fn is looked at near its own θ
        with pytest.raises(InputError, match="Net's gradient is not that of its loss, which changes by") as caught:
            Objective(model, IDS, loss_fn=loss_fn)
        assert "\n" not in str(caught.value)
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


def test_what_is_refused_is_wrong_and_what_is_let_through_is_not():
    for kind, activation in (DISHONEST | HONEST).items():
        model = Net(activation, dtype=torch.float64, seed=3)
        share = ratio(lambda m, i: m(i).logits, model, IDS[0])
        assert (share > 0.05) is (kind in DISHONEST), (kind, share)
        assert share > 0.05 or share < 1e-5


@pytest.mark.parametrize("kind", HONEST)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [0.0, 1.0, 30.0])
def test_an_honest_gradient_is_let_through_whatever_the_kinks(kind, dtype, scale):
    for seed in range(2):
        assert Objective(Net(HONEST[kind], scale, dtype, seed), IDS).loss() > 0


def test_a_gradient_straight_through_rounding_is_refused():
    """The loss is constant between jumps, and the estimate that training takes for its slope is none."""
    with pytest.raises(InputError, match="is not that of its loss"):
        Objective(Net(rounded), IDS)


def test_exact_edges_are_no_disagreement():
    """ReLU of zeros, and of rows of zeros: autograd takes one side, a difference the mean of both."""
    model = Net(F.relu)
    with torch.no_grad():
        model.inner.weight[:8] = 0
        model.inner.bias[:] = 0
        model.embed.weight[5] = 0
    assert Objective(model, IDS).loss() > 0
    loss = Objective(model, IDS, loss_fn=lambda m, ids: cross_entropy(lambda m, i: m(i).logits, m, ids)).loss()
    assert loss == pytest.approx(Objective(model, IDS).loss(), rel=1e-6)


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "gpt_neo"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_models_of_transformers_are_let_through(architecture, dtype):
    model = make_model(architecture).to(dtype)
    for scale in (1.0, 0.1, 20.0):
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(scale)
        assert Objective(model, IDS % model.config.vocab_size).loss() > 0


@pytest.mark.parametrize("kind", ["mixtral", "opt", "gpt_oss", "recurrent_gemma"])
def test_mixtures_and_models_of_mixed_precision_are_let_through(kind):
    model = zoo_model(kind).float()
    assert Objective(model, zoo_tokens()).loss() > 0


def test_cycles_without_a_graph_are_refused():
    for seed in range(3):
        torch.manual_seed(seed)
        model = HrmTextForCausalLM(HrmTextConfig(
            vocab_size=V, hidden_size=16, intermediate_size=24, num_attention_heads=2, head_dim=8, num_hidden_layers=8,
            num_layers_per_stack=1, H_cycles=2, L_cycles=3, L_bp_cycles=[2], max_position_embeddings=16,
        ))  # fmt: skip
        with pytest.raises(InputError, match="HrmTextForCausalLM's gradient is not that of its loss"):
            Objective(model, IDS)


def test_a_backward_pass_that_fails_is_told_in_one_line():
    config = ReformerConfig(
        is_decoder=True, vocab_size=V, hidden_size=16, attention_head_size=8, num_attention_heads=2,
        attn_layers=["local"], axial_pos_embds=False, max_position_embeddings=64, feed_forward_size=16,
        local_attn_chunk_length=4,
    )  # fmt: skip
    ids = torch.randint(0, V, (1, 1, 8), generator=torch.Generator().manual_seed(0))
    with pytest.raises(InputError, match="ReformerModelWithLMHead fails in its backward pass: If you want") as caught:
        Objective(ReformerModelWithLMHead(config), ids)
    assert "\n" not in str(caught.value)


class Failing(torch.autograd.Function):
    """Has no backward."""

    @staticmethod
    def forward(ctx, x):
        return x.sin()

    @staticmethod
    def backward(ctx, grad):
        raise KeyError("saved")


def test_any_failure_of_a_backward_pass_is_told():
    with pytest.raises(InputError, match="Net fails in its backward pass: 'saved'"):
        Objective(Net(Failing.apply), IDS)


class Point(nn.Module):
    """θ alone, for losses written out."""

    def __init__(self, values, dtype):
        super().__init__()
        self.theta = nn.Parameter(torch.tensor(values, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("loss", [
    lambda t: torch.sin(1e6 * t).sum(), lambda t: torch.sin(300 * t).sum(), lambda t: (t**2).sum(),
    lambda t: t.abs().sum(), lambda t: (1e4 * t.abs().max()).log(), lambda t: (t - t).sum(), lambda t: t.sum().relu(),
    lambda t: torch.log(t - 0.999).sum(), lambda t: 1e8 + t.sum(), lambda t: t.std(),
    lambda t: t.round().sum() + t.sum(),
    lambda t: torch.autograd.grad((t**3).sum(), t, create_graph=True)[0].sum(),
])  # fmt: skip
def test_no_honest_loss_is_refused(loss, dtype):
    """Those that no step resolves, that no float32 tells from a constant, that fail without a graph, included."""
    for values in ([0.0, 0.0], [1.0, 1.0], [1e-3, -2.0], [1.0] * 40):
        Objective(Point(values, dtype), [None], loss_fn=lambda m, _: loss(m.theta))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("loss", [
    lambda t: (t * t.detach()).sum(), lambda t: t.sum() + (t.detach() ** 2).sum(), lambda t: Scaled.apply(t).sum(),
    lambda t: t.round().sum().detach() + (t - t.detach()).sum(),
])  # fmt: skip
def test_dishonest_losses_are_refused(loss, dtype):
    for values in ([1.0, 1.2], [1e-3, -2.0], [1.0] * 40):
        with pytest.raises(InputError, match="Point's gradient is not that of its loss"):
            Objective(Point(values, dtype), [None], loss_fn=lambda m, _: loss(m.theta))
