import pytest
import torch
from torch import nn

from villani.curvature.jets import Jet
from villani.curvature.products import differentiable_gradient, product
from villani.curvature.rules import RULES
from villani.curvature.taylor import Sweep, check_rules, isolated_nodes
from villani.errors import InputError
from villani.inputs.models import load_model
from villani.objective.graph import place, trace_logits
from villani.objective.objective import Batch, Objective

SPECS = [
    "gpt-neo-125m?window=3",
    "gpt2",
    "opt-125m",
    "opt-125m?activation=gelu",
    "pythia-70m?heads=2",
    "llama-160m?kv_heads=2",
    "qwen2-125m?kv_heads=2",
]


def small(spec, *, mask=False):
    """A float64 model with large weights, and an objective of one batch, some of it masked if asked."""
    spec += ("&" if "?" in spec else "?") + "layers=2&width=16&vocab=13&context=8"
    spec += "" if "heads=" in spec.replace("kv_heads=", "") else "&heads=4"
    model = load_model(f"config:{spec}", dtype=torch.float64).model
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p))
    ids = torch.randint(0, 13, (2, 7), generator=torch.Generator().manual_seed(1))
    group = {"input_ids": ids}
    if mask == "packed":
        group["position_ids"] = torch.tensor([0, 1, 2, 3, 0, 1, 2])
    elif mask:
        group["attention_mask"] = torch.ones_like(ids)
        group["attention_mask"][0, 4:6] = 0  # a hole, or the mask would not be needed
        group["position_ids"] = torch.arange(7).expand(2, -1)
    return model, Objective(model, [group])


def reference(model, objective, batch, weights):
    """⟨weights, features⟩ by the model itself, features being what goes into the head."""
    caught = {}
    handle = model.get_output_embeddings().register_forward_pre_hook(lambda _, inputs: caught.update(x=inputs[0]))
    with objective.evaluating():
        objective.forward(batch)
    handle.remove()
    return (caught["x"] * weights).sum()


@pytest.mark.parametrize("mask", [False, True, "packed"])
@pytest.mark.parametrize("spec", SPECS)
def test_every_rule_equals_reverse_over_reverse(spec, mask):
    """A probe for every tensor: first and second derivatives of the features, to 1e-10 in float64."""
    if (mask and spec == "gpt2") or (mask == "packed" and not spec.startswith(("gpt-neo", "llama"))):
        pytest.skip("one architecture of each style is enough")
    model, objective = small(spec, mask=mask)
    tensors = objective.parameters.tensors
    batch = next(objective.batches(0))
    graph = trace_logits(objective, batch)
    probes = [
        torch.randn(t.shape, dtype=t.dtype, generator=torch.Generator().manual_seed(i)) for i, t in enumerate(tensors)
    ]
    sweep = Sweep(graph, lambda i: Jet(tensors[i].detach(), {i: probes[i]}), range(len(tensors)))
    with objective.evaluating(), torch.no_grad():
        features = sweep.features(batch)
    weights = torch.randn(features.x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    if mask is True:
        weights[0, 4:] = 0  # what a model makes of padding is its own business
    gradient = differentiable_gradient(reference(model, objective, batch, weights), tensors)
    for i, v in enumerate(probes):
        vector = [v if j == i else torch.zeros_like(t) for j, t in enumerate(tensors)]
        curved = product(gradient, vector, tensors, keep_graph=True)
        first = (gradient[i] * v).sum()
        second = (curved[i] * v).sum()
        zero = torch.zeros_like(features.x)
        assert torch.allclose((features.first.get(i, zero) * weights).sum(), first, rtol=1e-10, atol=1e-10)
        assert torch.allclose((features.second.get(i, zero) * weights).sum(), second, rtol=1e-10, atol=1e-9)


def test_float32_is_good_to_four_digits():
    """One probe over all of θ, in float32 and at a width where sums are long."""
    model = load_model("config:gpt-neo-125m?layers=3&width=128&vocab=500&context=64").model
    ids = torch.randint(0, 500, (2, 64), generator=torch.Generator().manual_seed(0))
    objective = Objective(model, ids[None])
    tensors = objective.parameters.tensors
    batch = next(objective.batches(0))
    probes = [torch.randn(t.shape, generator=torch.Generator().manual_seed(i)) for i, t in enumerate(tensors)]
    sweep = Sweep(trace_logits(objective, batch), lambda i: Jet(tensors[i].detach(), {0: probes[i]}), [0])
    with objective.evaluating(), torch.no_grad():
        features = sweep.features(batch)
    weights = torch.randn(features.x.shape, generator=torch.Generator().manual_seed(9))
    gradient = differentiable_gradient(reference(model, objective, batch, weights), tensors)
    curved = product(gradient, probes, tensors, keep_graph=False)
    reverse = sum(float((a.double() * b).sum()) for a, b in zip(curved, probes, strict=True))
    assert float((features.second[0].double() * weights).sum()) == pytest.approx(reverse, rel=1e-4)


def test_collapsed_terms_are_the_sum():
    _, objective = small("gpt2")
    tensors = objective.parameters.tensors
    batch = next(objective.batches(0))
    graph = trace_logits(objective, batch)

    def run(classes):
        sweep = Sweep(graph, lambda i: Jet(tensors[i].detach(), {i: torch.ones_like(tensors[i])}), classes)
        with objective.evaluating(), torch.no_grad():
            return sweep.features(batch)

    apart, collapsed = run(range(len(tensors))), run([0] * len(tensors))
    assert set(collapsed.second) == {0}
    assert torch.allclose(collapsed.second[0], sum(apart.second.values()), atol=1e-10)


SCALARS = torch.tensor([-1.7, -0.3, 0.2, 0.9, 2.4], dtype=torch.float64)


@pytest.mark.parametrize(
    ("operation", "function", "positive"),
    [
        ("tanh.default", torch.tanh, False),
        ("sigmoid.default", torch.sigmoid, False),
        ("silu.default", nn.functional.silu, False),
        ("relu.default", torch.relu, False),
        ("gelu.default", nn.functional.gelu, False),
        ("gelu.default:tanh", lambda x: nn.functional.gelu(x, approximate="tanh"), False),
        ("rsqrt.default", torch.rsqrt, True),
        ("square.default", torch.square, False),
        ("log_sigmoid.default", nn.functional.logsigmoid, False),
        ("pow.Tensor_Scalar:3", lambda x: x**3, False),
        ("pow.Tensor_Scalar:0.5", lambda x: x**0.5, True),
    ],
)
def test_elementwise_rules_match_derivatives(operation, function, positive):
    name, _, extra = operation.partition(":")
    packet, overload = name.split(".")
    target = getattr(getattr(torch.ops.aten, packet), overload)
    x = SCALARS.abs() if positive else SCALARS
    arguments = [float(extra)] if extra and packet == "pow" else []
    options = {"approximate": extra} if packet == "gelu" and extra else {}
    sweep = Sweep(None, None, [0])
    found = RULES[target](
        sweep, target, Jet(x, {0: torch.full_like(x, 2.0)}, {0: torch.ones_like(x)}), *arguments, **options
    )
    for i, point in enumerate(x):
        point = point.clone().requires_grad_()
        y = function(point)
        (slope,) = torch.autograd.grad(y, point, create_graph=True)
        bend = torch.autograd.grad(slope, point)[0] if slope.requires_grad else torch.zeros(())
        assert found.x[i] == pytest.approx(y.item(), abs=1e-12)
        assert found.first[0][i] == pytest.approx(2 * slope.item(), abs=1e-12)
        assert found.second[0][i] == pytest.approx(slope.item() + 4 * bend.item(), abs=1e-12)


@pytest.mark.parametrize(("function", "name", "arguments", "options"), [
    (torch.logsumexp, "logsumexp", ([-1],), {}), (torch.logsumexp, "logsumexp", ([0, 1], True), {}),
    (torch.linalg.vector_norm, "linalg_vector_norm", (2, [-1]), {}),
    (torch.linalg.vector_norm, "linalg_vector_norm", (), {}),
    (torch.var, "var.dim", ([-1], False), {}), (torch.var, "var.dim", ([0], True, True), {}),
    (torch.var, "var.correction", ([0, 1],), {"correction": 0}),
    (torch.var, "var.correction", (None,), {"correction": 1, "keepdim": True}),
    (torch.linalg.vector_norm, "linalg_vector_norm", (2, [0], True), {}),
])  # fmt: skip
def test_reductions_match_derivatives(function, name, arguments, options):
    """Along x + 2ux·e + 1.5·e²: first and second derivatives at e = 0."""
    x, u, w = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(4)).double()
    packet, _, form = name.partition(".")
    target = getattr(getattr(torch.ops.aten, packet), form or "default")
    found = RULES[target](Sweep(None, None, [0]), target, Jet(x, {0: 2 * u}, {0: 3 * w}), *arguments, **options)
    e = torch.tensor(0.0, dtype=torch.float64, requires_grad=True)
    y = function(x + 2 * u * e + 1.5 * w * e**2, *arguments, **options)
    assert found.x.shape == y.shape
    for number in range(y.numel()):
        (slope,) = torch.autograd.grad(y.reshape(-1)[number], e, create_graph=True)
        (bend,) = torch.autograd.grad(slope, e, retain_graph=True)
        assert found.first[0].reshape(-1)[number] == pytest.approx(slope.item(), abs=1e-12)
        assert found.second[0].reshape(-1)[number] == pytest.approx(bend.item(), abs=1e-12)


def test_division_and_where_and_masked_fill():
    aten = torch.ops.aten
    sweep = Sweep(None, None, [0])
    a = Jet(SCALARS, {0: SCALARS * 2}, {0: SCALARS * 3})
    b = Jet(SCALARS + 3, {0: torch.ones(5).double()})
    quotient = RULES[aten.div.Tensor](sweep, aten.div.Tensor, a, b)
    e = torch.tensor(0.0, dtype=torch.float64, requires_grad=True)
    y = (SCALARS + 2 * SCALARS * e + 1.5 * SCALARS * e**2) / (SCALARS + 3 + e)
    for i in range(5):
        (slope,) = torch.autograd.grad(y[i], e, create_graph=True)
        (bend,) = torch.autograd.grad(slope, e, retain_graph=True)
        assert quotient.first[0][i] == pytest.approx(slope.item(), abs=1e-12)
        assert quotient.second[0][i] == pytest.approx(bend.item(), abs=1e-12)
    mask = SCALARS > 0
    kept = RULES[aten.where.ScalarOther](sweep, aten.where.ScalarOther, mask, a, -5.0)
    filled = RULES[aten.masked_fill.Scalar](sweep, aten.masked_fill.Scalar, a, ~mask, -5.0)
    for jet in (kept, filled):
        assert torch.equal(jet.x, torch.where(mask, SCALARS, -5.0))
        assert torch.equal(jet.first[0], torch.where(mask, SCALARS * 2, 0.0))


def test_an_operation_without_a_rule_is_named_with_its_line(monkeypatch):
    _, objective = small("gpt2")
    batch = next(objective.batches(0))
    graph = trace_logits(objective, batch)
    monkeypatch.delitem(RULES, torch.ops.aten.gelu.default)
    with pytest.raises(InputError, match=r"no Taylor rule for aten.gelu.default.*h.0.mlp.act"):
        check_rules(graph)
    node = next(n for n in graph.nodes if n.target is torch.ops.aten.gelu.default)
    assert "transformer.h.0.mlp.act" in place(node)
    assert "tanh" in place(node)  # the line that spells GELU out


def test_what_cannot_be_traced_is_told():
    custom = Objective(nn.Linear(2, 1), [torch.ones(1, 2)], loss_fn=lambda m, x: m(x).sum())
    with pytest.raises(InputError, match="custom loss_fn is not traced"):
        trace_logits(custom, None)


def test_a_head_is_a_linear_map_and_else_the_logits_are_taken_as_they_are():
    model, objective = small("gpt2")
    [batch] = objective.batches(0)
    assert trace_logits(objective, batch).head.reason == ""
    model.lm_head = nn.Sequential(nn.Linear(16, 13).double(), nn.Tanh())
    graph = trace_logits(objective, batch)
    assert graph.head.features is graph.logits
    assert graph.head.weight is None
    assert "come from aten.tanh.default, not from a linear map" in graph.head.reason


def test_sequences_that_see_each_other_share_their_probes():
    _, objective = small("gpt2")
    ids = torch.zeros((2, 5), dtype=torch.int64)
    graph = trace_logits(objective, Batch(ids, ids))
    with objective.evaluating(), torch.no_grad():
        assert graph.head.features in isolated_nodes(graph, objective.parameters.tensors, Batch(ids, ids))
    norm = objective.model.transformer.ln_f

    class Mixing(torch.nn.Module):
        def forward(self, x):
            return norm(x - x.mean(dim=0, keepdim=True) / 2)

    objective.model.transformer.ln_f = Mixing()
    mixed = trace_logits(objective, Batch(ids, ids))
    with objective.evaluating(), torch.no_grad():
        assert not isolated_nodes(mixed, objective.parameters.tensors, Batch(ids, ids))
