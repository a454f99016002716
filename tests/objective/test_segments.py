"""Where a forward pass is cut: graphs made by hand, and models whose segments are computed one by one."""

import operator

import pytest
import torch
from torch.fx import Graph

from tests.sharded import write
from villani.inputs.models import load_model
from villani.objective.graph import Head, LogitGraph, trace_logits
from villani.objective.objective import Objective
from villani.objective.segments import stretches

IDS = torch.randint(0, 32, (1, 1, 9), generator=torch.Generator().manual_seed(1))


class Pass:
    """A forward pass by hand: x, tensors of θ, and operations that give tensors unless it is said otherwise."""

    def __init__(self, count):
        self.graph = Graph()
        self.x = self.graph.placeholder("x")
        self.w = [self.graph.placeholder(f"w{i}") for i in range(count)]

    def of(self, *inputs, tensor=True):
        node = self.graph.call_function(operator.add, inputs)
        node.meta["val"] = torch.zeros(()) if tensor else 0
        return node

    def cut(self, features, sizes):
        graph = LogitGraph(
            tuple(self.graph.nodes), {w: i for i, w in enumerate(self.w)}, {}, {"x": self.x}, features,
            Head(features, None, None, None),
        )  # fmt: skip
        return stretches(graph, sizes)


def test_a_residual_stream_is_cut_where_it_alone_is_alive():
    """h₁ = x w₀; h₂ = h₁ + f(h₁; w₁); h₃ = h₂ + f(h₂; w₂); a norm, which uses next to nothing of θ."""
    p = Pass(4)
    h1 = p.of(p.x, p.w[0])
    inner = p.of(h1, p.w[1])
    h2 = p.of(h1, inner)
    outer = p.of(h2, p.w[2])
    h3 = p.of(h2, outer)
    norm = p.of(h3, p.w[3])
    cut = p.cut(norm, [100, 100, 100, 1])
    assert [s.nodes for s in cut.segments] == [(h1,), (inner, h2), (outer, h3, norm)]
    assert [s.parameters for s in cut.segments] == [{p.w[0]: 0}, {p.w[1]: 1}, {p.w[2]: 2, p.w[3]: 3}]
    assert [s.inputs for s in cut.segments] == [(), (h1,), (h2,)]
    assert [s.outputs for s in cut.segments] == [(h1,), (h2,), (norm,)]
    assert cut.still == ()
    assert cut.fixed == {p.x}
    large = p.cut(norm, [100, 100, 100, 100]).segments
    assert [s.nodes for s in large] == [(h1,), (inner, h2), (outer, h3), (norm,)], "a tensor that is not little"


def test_more_is_alive_at_a_cut_only_where_that_makes_pieces_smaller():
    """A value of the first layer that the last one uses again is alive throughout."""
    p = Pass(4)
    first = p.of(p.x, p.w[0])
    second = p.of(first, p.w[1])
    third = p.of(second, p.w[2])
    last = p.of(third, first, p.w[3])
    assert [s.nodes for s in p.cut(last, [9, 9, 9, 9]).segments] == [(first,), (second,), (third,), (last,)]
    assert [s.inputs for s in p.cut(last, [9, 9, 9, 9]).segments] == [(), (first,), (second,), (third, first)]
    assert [s.inputs for s in p.cut(last, [90, 30, 30, 30]).segments][-1] == (first,), "one tensor is as large"


@pytest.mark.parametrize("alive", [4, 5])
def test_four_values_are_alive_at_a_cut_at_most(alive):
    p = Pass(alive + 1)
    values = [p.of(p.x, w) for w in p.w[:-1]]
    end = p.of(*values, p.w[-1])
    single, joined = [(v,) for v in values[:4]], (*values[4:], end)
    assert [s.nodes for s in p.cut(end, [9] * (alive + 1)).segments] == [*single, joined]


def test_what_is_no_tensor_crosses_no_cut():
    p = Pass(2)
    size = p.of(p.x, p.w[0], tensor=False)
    end = p.of(size, p.w[1])
    assert [s.nodes for s in p.cut(end, [9, 9]).segments] == [(size, end)]


def test_what_does_not_depend_on_theta_is_apart_and_what_nobody_uses_is_left_out():
    p = Pass(2)
    mask = p.of(p.x, 1)
    angles = p.of(mask, 2)
    p.of(mask, 3)  # not used
    h = p.of(mask, p.w[0])
    p.of(h, p.w[1])  # not used
    end = p.of(h, angles, p.w[1])
    cut = p.cut(end, [9, 9])
    assert [s.nodes for s in cut.segments] == [(h,), (end,)]
    assert cut.still == (mask, angles)
    assert cut.fixed == {mask, angles}


@pytest.fixture(scope="module", params=["llama", "gpt-2"])
def objective(request, tmp_path_factory):
    folder = write(request.param, tmp_path_factory.mktemp("sharded") / request.param)
    return Objective(load_model(folder, dtype=torch.float64, streamed=False).model, IDS)


def test_a_transformer_is_cut_where_one_tensor_is_alive(objective):
    """Its embedding is its largest tensor."""
    graph = trace_logits(objective, next(objective.batches(0)).plain())
    sizes = [1] * len(objective.parameters.parameters)
    sizes[0] = 6
    segments = stretches(graph, sizes).segments
    assert len(segments) >= 4
    assert [len(segment.inputs) for segment in segments] == [0] + [1] * (len(segments) - 1)
    assert segments[-1].outputs == (graph.head.features,)


def test_segments_one_by_one_give_the_logits_of_the_model(objective):
    """Each is computed from nothing but what its fields name; the model is asked as transformers has it."""
    batch = next(objective.batches(0))
    graph = trace_logits(objective, batch.plain())
    tensors = objective.parameters.tensors
    cut = stretches(graph, [t.nbytes for t in tensors])

    def compute(nodes, values):
        values = dict(values)
        for node in nodes:
            args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
            values[node] = node.target(*args, **kwargs)
        return values

    with torch.no_grad():
        still = compute(cut.still, graph.constants | graph.placed(batch))
        fixed = {node: still[node] for node in cut.fixed}
        handed = {}
        for segment in cut.segments:
            own = {node: tensors[i] for node, i in segment.parameters.items()}
            values = compute(segment.nodes, fixed | own | {node: handed[node] for node in segment.inputs})
            handed |= {node: values[node] for node in segment.outputs}
        logits = handed[graph.head.features] @ tensors[graph.head.weight].T
        whole = objective.model(input_ids=IDS[0], use_cache=False).logits
    assert logits.shape[1] in (8, 9)  # the last token predicts nothing
    torch.testing.assert_close(logits, whole[:, : logits.shape[1]], rtol=1e-5, atol=1e-6)
    placed = [node for segment in cut.segments for node in segment.nodes]
    assert len(placed) == len(set(placed))
