"""Tiny models of many architectures, with their default attention: Taylor sweeps and rescaling symmetries."""

import pytest
import torch
import transformers
from torch.utils import _pytree as pytree

from tests.curvature.test_taylor import reference
from villani.criteria.degrees import Degrees
from villani.criteria.symmetries import generators
from villani.curvature.jets import Jet
from villani.curvature.products import differentiable_gradient, product
from villani.curvature.rules import RULES
from villani.curvature.taylor import Sweep, check_rules
from villani.errors import InputError
from villani.objective.graph import trace_logits, trace_loss
from villani.objective.objective import Objective

aten = torch.ops.aten

SIZES = {
    "vocab_size": 17, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 24,
    "max_position_embeddings": 16, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
}  # fmt: skip
GROUPED = {"num_key_value_heads": 2}
EXPERTS = {"moe_intermediate_size": 12, "num_experts": 4, "num_experts_per_tok": 2}
LATENT = {
    "kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 4, "n_group": 1,
    "topk_group": 1, "n_routed_experts": 4, "moe_intermediate_size": 12,
}  # fmt: skip
TYPES = {
    "Llama": GROUPED,
    "GPT2": {"model": "GPT2LMHeadModel"},
    "Gemma3": {"config": "Gemma3Text", "head_dim": 4, "sliding_window": 3, **GROUPED},
    "Qwen3": {"head_dim": 4, **GROUPED},
    "Mistral": {"sliding_window": 3, **GROUPED},
    "Bloom": {},
    "Falcon": {"new_decoder_architecture": True, "num_kv_heads": 2},
    "Granite": {"logits_scaling": 3.0, "residual_multiplier": 0.7, **GROUPED},
    "Cohere": {"logit_scale": 0.3, **GROUPED},
    "Mamba": {"state_size": 4},
    "DeepseekV3": {"first_k_dense_replace": 1, **LATENT},
    "Qwen3Moe": {"head_dim": 4, "norm_topk_prob": True, **EXPERTS, **GROUPED},
}
LIKE_OTHERS = ("Llama", "Qwen3", "Cohere")  # as Mistral, Qwen3Moe and Granite are: not swept again
BOTH_ATTENTIONS = ("GPT2", "Gemma3", "Qwen3", "Mistral")


@pytest.fixture
def wide(monkeypatch):
    """Models that cast to float32 on their way stay in float64."""
    monkeypatch.setattr(torch, "float32", torch.float64)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)


def tiny(kind, attention=None):
    """An objective of a float64 model with large weights; `attention` None is what the architecture has by default."""
    given = dict(TYPES[kind])
    model = getattr(transformers, given.pop("model", f"{kind}ForCausalLM"))
    config = getattr(transformers, f"{given.pop('config', kind)}Config")(**SIZES, **given)
    config._experts_implementation = "batched_mm"  # grouped products are not there in float64
    if attention:
        config._attn_implementation = attention
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model = model(config).double()
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p))
    ids = torch.randint(0, 17, (1, 2, 7), generator=torch.Generator().manual_seed(1))
    return Objective(model, ids, 0.1)


@pytest.mark.parametrize("kind", [kind for kind in TYPES if kind not in LIKE_OTHERS])
@pytest.mark.usefixtures("wide")
def test_taylor_equals_reverse_over_reverse(kind):
    """A probe for every tensor: first and second derivatives of what the head reads, in float64."""
    objective = tiny(kind)
    tensors = objective.parameters.tensors
    batch = next(objective.batches(0))
    graph = trace_logits(objective, batch)
    check_rules(graph)
    probes = [
        torch.randn(t.shape, dtype=t.dtype, generator=torch.Generator().manual_seed(i)) for i, t in enumerate(tensors)
    ]
    sweep = Sweep(graph, lambda i: Jet(tensors[i].detach(), {i: probes[i]}), range(len(tensors)))
    with objective.evaluating(), torch.no_grad():
        features = sweep.features(batch)
    scale = {"Granite": 1 / 3, "Cohere": 0.3}.get(kind, 1.0)  # of the logits: taken into the features
    weights = torch.randn(features.x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    gradient = differentiable_gradient(reference(objective.model, objective, batch, scale * weights), tensors)
    for i, v in enumerate(probes):
        vector = [v if j == i else torch.zeros_like(t) for j, t in enumerate(tensors)]
        first, second = ((d[i] * v).sum() for d in (gradient, product(gradient, vector, tensors, keep_graph=True)))
        zero = torch.zeros_like(features.x)
        assert torch.allclose((features.first.get(i, zero) * weights).sum(), first, rtol=1e-9, atol=1e-9)
        assert torch.allclose((features.second.get(i, zero) * weights).sum(), second, rtol=1e-9, atol=1e-8)
    assert sum(bool(t.abs().max() > 1e-3) for t in features.second.values()) > len(tensors) / 3


def symmetries(objective):
    """The exponents that were found; each is held against the model's own loss, rescaled by 2 and by 1.37."""
    batch = next(objective.batches(0))
    found = [g.exponents for g in generators(trace_loss(objective, batch))]
    tensors = objective.parameters.tensors
    start = [t.detach().clone() for t in tensors]
    with objective.evaluating(), torch.no_grad():
        loss = objective.forward(batch).loss
        for exponents in found:
            for ratio in (2.0, 1.37):
                for i, e in exponents.items():
                    tensors[i].mul_(ratio**e)
                assert torch.allclose(objective.forward(batch).loss, loss, rtol=1e-9, atol=0.0)
                for t, before in zip(tensors, start, strict=True):
                    t.copy_(before)
    return found


@pytest.mark.parametrize("kind", BOTH_ATTENTIONS)
@pytest.mark.usefixtures("wide")
def test_attention_by_any_name_has_the_same_symmetries(kind):
    objectives = [tiny(kind, attention) for attention in (None, "eager")]
    assert [o.model.config._attn_implementation for o in objectives] == ["sdpa", "eager"]
    fused, eager = (symmetries(o) for o in objectives)
    assert len(fused) == len(eager) >= 2
    for a, b in zip(fused, eager, strict=True):
        assert a.keys() == b.keys()
        assert all(torch.equal(a[i], b[i]) for i in a)


PAIRS = [
    ("Falcon", "query_key_value.weight", "dense.weight"),
    ("DeepseekV3", "kv_b_proj.weight", "o_proj.weight"),
    ("Bloom", "query_key_value.weight", "dense.weight"),
    ("Qwen3Moe", "experts.gate_up_proj", "experts.down_proj"),
    ("Qwen3Moe", "mlp.gate.weight", "experts.gate_up_proj"),
    ("Mamba", "conv1d.weight", "in_proj.weight"),
]


@pytest.mark.parametrize(("kind", "one", "other"), PAIRS)
@pytest.mark.usefixtures("wide")
def test_what_gives_and_what_takes_are_a_symmetry(kind, one, other):
    objective = tiny(kind)
    names = [p.name for p in objective.parameters.parameters]
    moved = [{names[i] for i in e} for e in symmetries(objective)]
    assert any({one, other} <= {o for o in (one, other) if any(n.endswith(o) for n in m)} for m in moved), moved
    degrees = Degrees(trace_loss(objective, next(objective.batches(0))))
    assert degrees.skipped.all() == ()


@pytest.mark.usefixtures("wide")
def test_frozen_tensors_are_constants_of_the_search():
    """Without the values' matrices nothing is left to rescale what reads them; queries and keys stay."""
    objective = tiny("Llama")
    for name, p in objective.model.named_parameters():
        p.requires_grad_(not any(part in name for part in ("v_proj", "mlp", "layernorm")))
    objective = Objective(objective.model, [g.ids for g in objective.groups], 0.1)
    names = [p.name.split(".")[-2] for p in objective.parameters.parameters]
    moved = [{names[i] for i in e} for e in symmetries(objective)]
    assert {"q_proj", "k_proj"} in moved
    assert not any("o_proj" in m for m in moved)


EXPERTS_OF = {
    "Qwen3Moe": {"head_dim": 4, **EXPERTS, **GROUPED},
    "GptOss": {"head_dim": 4, "num_local_experts": 3, "num_experts_per_tok": 2, **GROUPED},
    "Mixtral": {"num_local_experts": 3, "num_experts_per_tok": 1, **GROUPED},
}


@pytest.mark.parametrize("kind", EXPERTS_OF)
def test_the_sum_over_all_experts_is_what_transformers_computes(kind):
    """Loss and gradient of the traced graph, in which every expert answers, against the model's own."""
    config = getattr(transformers, f"{kind}Config")(**SIZES, **EXPERTS_OF[kind])
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model = getattr(transformers, f"{kind}ForCausalLM")(config)
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p))
    objective = Objective(model, torch.randint(0, 17, (1, 2, 7), generator=torch.Generator().manual_seed(1)), 0.1)
    batch, tensors = next(objective.batches(0)), objective.parameters.tensors
    graph = trace_loss(objective, batch)
    assert not any("grouped" in str(n.target) or n.target is aten.index_put.default for n in graph.nodes)
    with objective.evaluating():
        theirs, ours = objective.forward(batch).loss, graph.run(tensors)
        assert torch.allclose(ours, theirs, rtol=1e-5)
        for a, b in zip(torch.autograd.grad(theirs, tensors), torch.autograd.grad(ours, tensors), strict=True):
            assert torch.allclose(a, b, rtol=1e-3, atol=1e-4 * float(a.abs().max()) + 1e-6)


def test_experts_in_groups_are_products_of_rows():
    """What transformers falls back on for experts, against the product of each row with the matrix of its group."""
    pytest.importorskip("transformers.integrations.moe")
    target = torch.ops.transformers.grouped_mm_fallback.default
    (x, dx), (w, dw) = (torch.randn(2, *s, generator=torch.Generator().manual_seed(0)) for s in ((5, 3), (2, 3, 4)))
    rule = RULES.rule(target)
    found = rule(Sweep(None, None, [0]), target, Jet(x, {0: dx}), Jet(w, {0: dw}), torch.tensor([2, 5]))
    of_row = [0, 0, 1, 1, 1]
    expected = torch.stack([dx[r] @ w[g] + x[r] @ dw[g] for r, g in enumerate(of_row)])
    assert torch.allclose(found.first[0], expected, atol=1e-5)
    assert torch.allclose(found.second[0], torch.stack([2 * dx[r] @ dw[g] for r, g in enumerate(of_row)]), atol=1e-5)


X = torch.randn(3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
Y = torch.randn(3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
PLACES = torch.tensor([[[1, 0, 2, 2, 1]]]).expand(3, 1, 5)
ROWS = torch.tensor([2, 0])
OPERATIONS = [
    (aten.index.Tensor, (X, [None, ROWS]), {}),
    (aten.index_put.default, (X, [ROWS], Y[:2]), {}),
    (aten.index_put.default, (X, [torch.tensor([1, 1])], Y[:2], True), {}),
    (aten.gather.default, (X, 1, PLACES), {}),
    (aten.scatter.src, (X, 1, PLACES, Y[:, :1]), {}),
    (aten.scatter.value, (X, 1, PLACES, 3.5), {}),
    (aten.scatter.value, (X, 1, PLACES, 1), {}),
    (aten.scatter_add.default, (X, 1, PLACES, Y[:, :1]), {}),
    (aten.index_add.default, (X, 0, ROWS, Y[:2]), {"alpha": 0.3}),
    (aten.select_scatter.default, (X, Y[:, 1], 1, -2), {}),
    (aten.slice_scatter.default, (X, Y[:, ::2], 1, 0, 4, 2), {}),
    (aten.topk.default, (X, 2), {}),
    (aten.topk.default, (X, 3, 1, False), {}),
    (aten.sort.default, (X, 0, True), {}),
    (aten.sort.stable, (X,), {"stable": True, "dim": 1}),
    (aten.max.dim, (X, 1), {}),
    (aten.min.dim, (X, -1, True), {}),
    (aten.max.other, (X, Y), {}),
    (aten.minimum.default, (X, Y), {}),
    (aten.clamp.default, (X, -0.5, 0.8), {}),
    (aten.clamp.default, (X, None, 0.1), {}),
    (aten.clamp.Tensor, (X, Y - 1, Y.abs()), {}),
    (aten.clamp.Tensor, (X, None, Y), {}),
    (aten.pad.default, (X, [1, 2], "constant", 7.0), {}),
    (aten.constant_pad_nd.default, (X, [0, 1, 2, 0], 2), {}),
    (aten.pad.default, (X, [1, 1], "reflect"), {}),
    (aten.constant_pad_nd.default, (X, [0, 1, 2, 0], 1.5), {}),
    (aten.conv1d.default, (X, Y[:2, :, :3].clone(), X[0, 0, :2].clone(), [2], [1]), {}),
    (aten.conv1d.default, (X, Y[:, :1].clone().repeat(2, 1, 1)[:4], None, [1], [4], [1], 4), {}),
    (aten.rms_norm.default, (X, [5], Y[0, 0], 1e-3), {}),
    (aten.rms_norm.default, (X, [4, 5]), {}),
    (aten.cumsum.default, (X, 1), {}),
    (aten.exp.default, (X,), {}),
    (aten.expm1.default, (X,), {}),
    (aten.log.default, (X.abs(),), {}),
    (aten.sqrt.default, (X.abs(),), {}),
    (aten.reciprocal.default, (X,), {}),
    (aten.softplus.default, (X,), {}),
    (aten.softplus.default, (X, 3.0, 2.0), {}),
    (aten.abs.default, (X,), {}),
    (aten.sin.default, (X,), {}),
    (aten.cos.default, (X,), {}),
    (aten._safe_softmax.default, (X.masked_fill(X[0] > 0.5, -torch.inf), -1), {}),
]


@pytest.mark.parametrize("number", range(len(OPERATIONS)))
def test_rules_match_derivatives_along_a_line(number):
    """d/dε and d²/dε² of the operation at what moves as x + ε·v + ½ε²·a, by automatic differentiation."""
    target, arguments, options = OPERATIONS[number]
    leaves, tree = pytree.tree_flatten(arguments)
    moving = [isinstance(a, torch.Tensor) and a.is_floating_point() for a in leaves]
    along = [torch.randn(a.shape, dtype=a.dtype, generator=torch.Generator().manual_seed(i)) if m else None
             for i, (a, m) in enumerate(zip(leaves, moving, strict=True))]  # fmt: skip
    jets = [Jet(a, {0: v}, {0: v.flip(0)}) if m else a for a, v, m in zip(leaves, along, moving, strict=True)]
    found = RULES[target](Sweep(None, None, [0]), target, *pytree.tree_unflatten(jets, tree), **options)
    found = found[0] if isinstance(found, tuple) else found
    e = torch.zeros((), dtype=torch.float64, requires_grad=True)
    curve = [a + e * v + e**2 / 2 * v.flip(0) if m else a for a, v, m in zip(leaves, along, moving, strict=True)]
    y = target(*pytree.tree_unflatten(curve, tree), **options)
    y = y[0] if isinstance(y, tuple) else y
    assert torch.equal(found.x, y.detach()) or torch.allclose(found.x, y, rtol=1e-13, atol=1e-13)
    for weights in (Y.flatten()[: y.numel()], X.flatten()[: y.numel()]):
        weights = weights.repeat(1 + y.numel() // len(weights))[: y.numel()].view_as(y)
        (slope,) = torch.autograd.grad((y * weights).sum(), e, create_graph=True)
        bend = torch.autograd.grad(slope, e, retain_graph=True)[0] if slope.requires_grad else torch.zeros(())
        assert float((found.first[0] * weights).sum()) == pytest.approx(slope.item(), rel=1e-10, abs=1e-10)
        assert float((found.second[0] * weights).sum()) == pytest.approx(bend.item(), rel=1e-10, abs=1e-9)


def test_what_moves_in_a_named_argument_is_refused():
    """A rule reads its arguments by place; one that θ moves under a name would be taken for still."""
    objective = tiny("GPT2")

    class Named(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            y = self.inner(x)
            return aten.softplus.default(y) * y

    objective.model.transformer.ln_f = Named(objective.model.transformer.ln_f)
    graph = trace_logits(objective, next(objective.batches(0)))
    check_rules(graph)
    node = next(n for n in graph.nodes if n.target is aten.softplus.default)
    node.args, node.kwargs = (node.args[0],), {"threshold": node.args[0]}
    with pytest.raises(InputError, match=r"no Taylor rule for aten.softplus"):
        check_rules(graph)
