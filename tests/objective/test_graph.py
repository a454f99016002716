"""The traced loss: the same function of θ as the objective's own, whoever wrote it."""

import re

import pytest
import torch
from torch import nn

from villani.criteria.smoothness import audit_smoothness
from villani.errors import InputError
from villani.inputs.models import load_model
from villani.measurement.measure import measure
from villani.objective.graph import place, trace_logits, trace_loss
from villani.objective.objective import Batch, Objective
from villani.objective.trial import already_tried

SPECS = [
    "gpt-neo-125m?window=3",
    "gpt2",
    "opt-125m",
    "pythia-70m?heads=2",
    "llama-160m?kv_heads=2",
    "qwen2-125m?kv_heads=2",
]


def language_model(spec, **group):
    spec += ("&" if "?" in spec else "?") + "layers=1&width=16&vocab=13&context=8"
    spec += "" if "heads=" in spec.replace("kv_heads=", "") else "&heads=4"
    model = load_model(f"config:{spec}").model
    ids = torch.randint(0, 13, (2, 7), generator=torch.Generator().manual_seed(1))
    return Objective(model, [{"input_ids": ids, **group}])


def check_same_function(objective):
    """Value and gradient at θ and elsewhere; the graph must not hold on to the θ it was traced at."""
    graph = trace_loss(objective, next(objective.batches(0)))
    tensors = objective.parameters.tensors
    for move in (0.0, 0.1):
        direction = [torch.randn(t.shape, generator=torch.Generator().manual_seed(3)) for t in tensors]
        with objective.displaced(direction, move), objective.evaluating():
            expected = objective.forward(next(objective.batches(0))).loss
            found = graph.run(tensors)
            assert found.shape == expected.shape
            assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
            theirs = torch.autograd.grad(expected, tensors, allow_unused=True)
            ours = torch.autograd.grad(found, tensors, allow_unused=True)
        for a, b in zip(ours, theirs, strict=True):
            assert (a is None) == (b is None)
            assert a is None or torch.allclose(a, b, rtol=1e-4, atol=1e-5)
    return graph


@pytest.mark.parametrize("spec", SPECS)
def test_a_language_model(spec):
    objective = language_model(spec)
    graph = check_same_function(objective)
    assert set(graph.parameters.values()) == set(range(len(objective.parameters.parameters)))  # tied weights: one
    assert len(graph.inputs) == 2  # ids and labels stay apart though they are one tensor
    node = next(n for n in graph.nodes if n.target is torch.ops.aten.softmax.int)
    assert "layers.0." in place(node) or "h.0.attn" in place(node)


def test_padding_and_labels_that_nobody_asks_for():
    labels = torch.randint(0, 13, (2, 7), generator=torch.Generator().manual_seed(2))
    labels[0, 3:] = -100
    attention = torch.ones(2, 7, dtype=torch.int64)
    attention[0, 3:5] = 0  # a hole: a mask of padding at the end alone would not be needed
    places = torch.arange(7).expand(2, -1)
    graph = check_same_function(
        language_model("gpt2", labels=labels, attention_mask=attention, position_ids=places.clone())
    )
    assert len(graph.inputs) == 4


class Product(nn.Module):
    """ℓ(a·b): two scalars, Lemma A."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.tensor(0.5)), nn.Parameter(torch.tensor(2.0))


def logistic(model, x):
    return nn.functional.softplus(x * model.a * model.b)


CUSTOM = {
    "a number": (logistic, 2.0),
    "a tensor": (logistic, torch.tensor(2.0)),
    "nested tensors": (lambda m, g: logistic(m, g["x"][0]) * g["n"], {"x": (torch.tensor(2.0),), "n": 3}),
    "an object": (lambda m, g: logistic(m, g.real), 2.0 + 1.0j),
    "none": (lambda m, g: logistic(m, 1.0), None),
    "a sum and its count": (lambda m, g: (logistic(m, g).sum(), 2), torch.tensor([1.0, -3.0])),
}


@pytest.mark.parametrize("case", CUSTOM)
def test_a_custom_loss(case):
    loss_fn, group = CUSTOM[case]
    graph = check_same_function(Objective(Product(), [group], loss_fn=loss_fn))
    assert sorted(graph.parameters.values()) == [0, 1]


@pytest.mark.parametrize("spec", ["gpt-neo-125m?window=3", "llama-160m?kv_heads=2"])
def test_float64_throughout(spec):
    """Both cast to float32 inside: the graph in float64 differs from float32 by its rounding, and repeats to 1e-14."""
    objective = language_model(spec)
    graph = trace_loss(objective, next(objective.batches(0)))
    wide = [t.detach().double() for t in objective.parameters.tensors]
    loss = graph.run(wide)
    assert loss.dtype == torch.float64
    assert float(loss) == pytest.approx(float(graph.run(objective.parameters.tensors).detach()), rel=1e-5)
    permuted = [t.clone() for t in wide]
    for p, t in zip(objective.parameters.parameters, permuted, strict=True):
        if p.name.endswith(("q_proj.weight", "k_proj.weight")):  # an exact symmetry that rounds differently
            t.mul_(3.0 if p.name.endswith("q_proj.weight") else 1 / 3.0)
    assert float(graph.run(permuted)) == pytest.approx(float(loss), rel=1e-13)


def helper(model):
    return model.a.abs()  # the line to find


def test_the_line_of_a_helper_function_is_told():
    graph = trace_loss(Objective(Product(), [0.0], loss_fn=lambda m, _: helper(m) + m.b), 0.0)
    node = next(n for n in graph.nodes if n.target is torch.ops.aten.abs.default)
    assert re.fullmatch(r"the model: test_graph\.py:\d+: return model\.a\.abs\(\)  # the line to find", place(node))


def test_what_a_model_detaches_is_still_a_function_of_it():
    with already_tried():
        objective = Objective(Product(), [0.0], loss_fn=lambda m, _: m.a * m.a.detach() + m.b)
    graph = trace_loss(objective, 0.0)
    tensors = objective.parameters.tensors
    (slope,) = torch.autograd.grad(graph.run(tensors), tensors[:1])
    assert float(slope) == pytest.approx(2 * 0.5)  # d(a²)/da, where autograd on the model says a


@pytest.mark.parametrize(
    ("loss_fn", "message"),
    [
        (lambda m, _: m.a if m.a > 0 else -m.a, "cannot be traced"),
        (lambda m, _: torch.stack([m.a, m.b]), "no tensor of one entry"),
        (lambda m, _: m.missing, "cannot be traced.*missing"),
    ],
)
def test_what_cannot_be_traced_is_told_in_one_line(loss_fn, message, capfd):
    with pytest.raises(InputError, match=message) as caught:
        trace_loss(Objective(Product(), [0.0], loss_fn=loss_fn), 0.0)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_a_shape_is_traced_once_and_given_its_own_batch():
    objective = language_model("gpt2")
    batch = next(objective.batches(0))
    graph, logits = trace_loss(objective, batch), trace_logits(objective, batch)
    other = Batch(batch.ids.flip(1), batch.ids.flip(1))
    again = trace_loss(objective, other)
    assert again.nodes is graph.nodes
    assert trace_logits(objective, other) is logits
    tensors = objective.parameters.tensors
    with torch.no_grad():
        assert float(again.run(tensors)) == pytest.approx(float(objective.forward(other).loss), rel=1e-6)
        assert float(again.run(tensors)) != pytest.approx(float(graph.run(tensors)), rel=1e-6)
    assert trace_logits(objective, batch.rows(0, 1)) is not logits
    objective.model.double()
    assert trace_logits(objective, batch) is not logits


class Experts(nn.Module):
    """Two experts, each run on the tokens that are sent to it: a loop over values, which no graph has."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.router = nn.Linear(width, 2)
        self.experts = nn.ModuleList(nn.Linear(width, width) for _ in range(2))

    def forward(self, x):
        rows = x.reshape(-1, x.shape[-1])
        best, out = self.router(rows).argmax(-1), torch.zeros_like(rows)
        for index, expert in enumerate(self.experts):
            places = torch.where(best == index)[0]
            if places.numel() == 0:
                continue
            out = out.index_add(0, places, expert(rows[places]).tanh())
        return out.view_as(x)


def test_a_loop_over_values_is_measured_without_a_graph_and_refused_where_one_is_needed():
    model = language_model("llama-160m").model
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model.model.layers[0].mlp = Experts(16)
    ids = torch.randint(0, 13, (4, 1, 7), generator=torch.Generator().manual_seed(1))
    objective = Objective(model, ids)
    with pytest.raises(InputError, match=r"LlamaForCausalLM cannot be traced: .*gauss-newton") as caught:
        measure(objective, trace="taylor")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
    measured = measure(objective, trace="gauss-newton")
    expected = sum(float(model(input_ids=b, labels=b).loss.detach()) for b in ids) / len(ids)
    assert measured.loss.value == pytest.approx(expected, rel=1e-6)
    assert audit_smoothness(objective).verdict == "unknown"
