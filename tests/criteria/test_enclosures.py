"""Every rule of interval arithmetic: what an operation gives at random arguments and points of random boxes is inside.

The table of rules drives the test: one without a case here fails it.
"""

import math
import operator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from villani.criteria.enclosures import RULES
from villani.criteria.intervals import Range
from villani.criteria.ranges import ranges
from villani.objective.graph import LossGraph

aten = torch.ops.aten
SIZES = [0.0, 1e-42, 1e-30, 1e-3, 0.5, 1.0, 3.0, 20.0, 90.0, 750.0, 1e5, 1e20, math.inf]
DRAWS = 20  # boxes for each rule


class Box:
    """A tensor of θ whose entries lie between two float32 numbers."""

    def __init__(self, draw, *shape, low=-math.inf, high=math.inf, sizes=SIZES):
        ends = sorted(float(np.float32(draw.choice(sizes) * draw.choice([-1, 1]))) for _ in range(2))
        self.low, self.high = (min(max(end, low), high) for end in ends)
        if self.low == self.high and math.isinf(self.low):
            self.low, self.high = -math.inf, math.inf
        self.shape = shape

    def points(self, draw, count):
        """Corners, and places between them on a linear and on a logarithmic scale; in float32."""
        huge = [float(np.float32(10 ** draw.uniform(0, 37))) for _ in range(2)]
        low, high = max(self.low, -huge[0]), min(self.high, huge[1])
        low, high = min(low, self.high), max(high, self.low)
        for _ in range(count):
            kind = draw.integers(0, 4, self.shape)
            between = low + (high - low) * draw.uniform(0, 1, self.shape)
            crowded = (low if draw.integers(2) else high) * 10 ** -draw.uniform(0, 40, self.shape)
            value = np.select([kind == 0, kind == 1, kind == 2], [low, high, crowded], between)
            yield torch.tensor(np.clip(np.float32(value), low, high), dtype=torch.float32)


def graph_of(target, args, kwargs):
    """A graph of one operation; boxes become parameters, tensors constants."""
    graph, boxes, parameters, constants = torch.fx.Graph(), [], {}, {}

    def leaf(value):
        if isinstance(value, list):
            return [leaf(v) for v in value]
        if not isinstance(value, Box | torch.Tensor):
            return value
        node = graph.placeholder(f"x{len(graph.nodes)}")
        if isinstance(value, Box):
            parameters[node] = len(boxes)
            boxes.append(value)
        node.meta["val"] = torch.ones(value.shape) if isinstance(value, Box) else value
        if isinstance(value, torch.Tensor):
            constants[node] = value
        return node

    before = [leaf(a) for a in args], {k: leaf(v) for k, v in kwargs.items()}
    node = graph.call_function(target, *map(tuple, before[:1]), before[1])
    values = torch.fx.node.map_aggregate((node.args, node.kwargs), lambda n: getattr(n, "meta", {"val": n})["val"])
    node.meta["val"] = target(*values[0], **values[1])
    if isinstance(node.meta["val"], tuple | list):
        first = graph.call_function(operator.getitem, (node, 0))
        first.meta["val"] = node.meta["val"][0]
        node = first
    return LossGraph(tuple(graph.nodes), parameters, constants, {}, node), boxes


def scalar(draw, *choices):
    return choices[draw.integers(len(choices))]


def matrix(draw, **options):
    return Box(draw, 3, 4, **options)


def of(*args, **kwargs):
    """A case with one tensor in front and these arguments behind it."""
    return lambda d: ([matrix(d), *args], kwargs)


def labels(d, ignored):
    found = torch.tensor(d.integers(0, 4, 3))
    found[d.integers(3)] = ignored
    return found


def softplus(d):
    return [matrix(d), scalar(d, 1, 0.1, 7.5, -1, -0.3, 1e-3), scalar(d, 20, 0, -2.5, 3.0)], {}


def reduced(d):
    return {"dim": scalar(d, [0], [1], [-1], [0, 1], None), "keepdim": bool(d.integers(2))}


def norm_of(target):
    def case(d):
        named = {"weight": scalar(d, None, Box(d, 4)), "eps": scalar(d, 1e-5, 1e-12, 3.0, 0.0, 1e-45)}
        if target is aten.layer_norm.default:
            named["bias"] = scalar(d, None, Box(d, 4))
        # differences of far larger numbers are rounding, in either precision
        return [matrix(d, sizes=SIZES[:8]), [4]], named

    return case


def classified(d, **more):
    given = {"reduction": scalar(d, 0, 1, 2), "ignore_index": scalar(d, -100, 7)}
    target = labels(d, given["ignore_index"]) if d.integers(2) else torch.full((3,), given["ignore_index"])
    return [matrix(d, sizes=SIZES[:10]), target], given | more


CASES = {
    **dict.fromkeys([
        aten.alias.default, aten.clone.default, aten.contiguous.default, aten.detach.default, aten.t.default,
        aten.numpy_T.default,
        aten.squeeze.default, aten.neg.default, aten.square.default, aten.sqrt.default, aten.rsqrt.default,
        aten.reciprocal.default, aten.abs.default, aten.exp.default, aten.sigmoid.default, aten.tanh.default,
        aten.erf.default, aten.atan.default, aten.sin.default, aten.cos.default, aten.silu.default,
        aten.mish.default, aten.log.default, aten.relu.default, aten.relu6.default, aten.amax.default,
        aten.amin.default, aten.max.default, aten.min.default, aten.diagonal.default,
    ], of()),
    operator.getitem: lambda d: ([matrix(d), 1], {}),
    aten.view.default: of([12]),
    aten._unsafe_view.default: of([2, 6]),
    aten.reshape.default: of([4, 3]),
    aten.flatten.using_ints: of(0, 1),
    aten.transpose.int: of(0, 1),
    aten.permute.default: of([1, 0]),
    aten.unsqueeze.default: of(1),
    aten.squeeze.dim: of(0),
    aten.squeeze.dims: of([0]),
    aten.expand.default: of([2, 3, 4]),
    aten.repeat.default: of([2, 1]),
    aten.slice.Tensor: of(1, 1, 3),
    aten.unfold.default: of(1, 2, 1),
    aten.select.int: of(0, 2),
    aten.split.Tensor: of(2),
    aten.split_with_sizes.default: of([1, 2]),
    aten.chunk.default: of(2),
    aten.unbind.int: of(0),
    aten.embedding.default: of(torch.tensor([0, 2])),
    aten.gather.default: of(1, torch.tensor([[0, 3]])),
    aten.index.Tensor: of([torch.tensor([1, 2])]),
    aten.index_select.default: of(0, torch.tensor([1])),
    aten.flip.default: of([0]),
    aten.roll.default: of([1]),
    aten.max.dim: of(1),
    aten.min.dim: of(1),
    aten.topk.default: of(2),
    aten.sort.default: of(),
    aten.sort.stable: of(stable=True),
    aten._to_copy.default: lambda d: ([matrix(d)], {"dtype": scalar(d, torch.float64, torch.bfloat16, torch.float16)}),
    aten.cat.default: lambda d: ([[matrix(d), Box(d, 3, 4)], scalar(d, 0, 1)], {}),
    aten.stack.default: lambda d: ([[matrix(d), Box(d, 3, 4)]], {}),
    aten.where.self: lambda d: ([torch.tensor(d.random((3, 4)) < 0.5), matrix(d), matrix(d)], {}),
    aten.where.ScalarOther: lambda d: ([torch.tensor(d.random((3, 4)) < 0.5), matrix(d), d.normal()], {}),
    aten.where.ScalarSelf: lambda d: ([torch.tensor(d.random((3, 4)) < 0.5), d.normal(), matrix(d)], {}),
    aten.where.Scalar: lambda d: ([torch.tensor(d.random((3, 4)) < 0.5), d.normal(), -math.inf], {}),
    aten.masked_fill.Scalar: lambda d: ([matrix(d), torch.tensor(d.random((3, 4)) < 0.5), d.normal()], {}),
    aten.masked_fill.Tensor: lambda d: ([matrix(d), torch.tensor(d.random((3, 4)) < 0.5), torch.tensor(0.1)], {}),
    aten.constant_pad_nd.default: lambda d: ([matrix(d), [1, 1], d.normal()], {}),
    **dict.fromkeys([
        aten.maximum.default, aten.max.other, aten.minimum.default, aten.min.other,
    ], lambda d: ([matrix(d), Box(d, 4)], {})),
    aten.conv1d.default: lambda d: (
        [Box(d, 2, 4, 5), Box(d, 4, 2, 3), scalar(d, None, Box(d, 4)), [scalar(d, 1, 2)], [scalar(d, 0, 2)], [1], 2], {}
    ),
    aten.scatter.src: lambda d: ([matrix(d), 1, torch.tensor([[0, 3]]), Box(d, 1, 2)], {}),
    aten.scatter.value: lambda d: ([matrix(d), 1, torch.tensor([[0, 3]]), d.normal()], {}),
    aten.index_put.default: lambda d: ([matrix(d), [torch.tensor([0, 2])], Box(d, 2, 4), scalar(d, False, True)], {}),
    aten.expm1.default: of(),
    aten.triu.default: of(1),
    aten.tril.default: of(),
    aten.add.Tensor: lambda d: ([matrix(d), scalar(d, Box(d, 4), 0.1, -3)], {"alpha": scalar(d, 1, -2, 0.3)}),
    aten.sub.Tensor: lambda d: ([matrix(d), scalar(d, Box(d, 3, 1), 0.1)], {"alpha": scalar(d, 1, -2, 0.3)}),
    aten.mul.Tensor: lambda d: ([matrix(d), scalar(d, Box(d, 4), 0.1, 0, -1e-30)], {}),
    aten.div.Tensor: lambda d: ([matrix(d), scalar(d, Box(d, 4), 0.1, -7)], {}),
    aten.pow.Tensor_Scalar: lambda d: ([matrix(d), scalar(d, 0, 1, 2, 3, -1, -2, 0.5, 0.3, -0.7, 0.0002, 17)], {}),
    aten.sum.default: of(),
    aten.sum.dim_IntList: lambda d: ([matrix(d)], reduced(d)),
    aten.mean.default: of(),
    aten.mean.dim: lambda d: ([matrix(d)], reduced(d)),
    aten.cumsum.default: lambda d: ([matrix(d), scalar(d, 0, 1)], {}),
    aten.var.correction: lambda d: ([matrix(d)], reduced(d) | {"correction": scalar(d, None, 0, 1, 2.5, 3, 11, 15)}),
    aten.var.dim: lambda d: ([matrix(d)], reduced(d) | {"unbiased": bool(d.integers(2))}),
    aten.var.default: lambda d: ([matrix(d), bool(d.integers(2))], {}),
    aten.linalg_vector_norm.default: lambda d: (
        [matrix(d), scalar(d, 2, 1, 3, 1.5, math.inf, 0, 0.5, -1)], reduced(d)
    ),
    aten.linear.default: lambda d: ([matrix(d), Box(d, 5, 4), scalar(d, None, Box(d, 5))], {}),
    aten.addmm.default: lambda d: (
        [Box(d, 5), matrix(d), Box(d, 4, 5)], {"beta": scalar(d, 1, 0, -2), "alpha": scalar(d, 1, 3.5)}
    ),
    aten.baddbmm.default: lambda d: (
        [Box(d, 2, 1, 5), Box(d, 2, 3, 4), Box(d, 2, 4, 5)], {"beta": scalar(d, 1, -2), "alpha": scalar(d, 1, 3.5)}
    ),
    aten.matmul.default: lambda d: ([matrix(d), scalar(d, Box(d, 4, 2), Box(d, 4))], {}),
    aten.mm.default: lambda d: ([matrix(d), Box(d, 4, 2)], {}),
    aten.bmm.default: lambda d: ([Box(d, 2, 3, 4), Box(d, 2, 4, 5)], {}),
    aten.mv.default: lambda d: ([matrix(d), Box(d, 4)], {}),
    aten.dot.default: lambda d: ([Box(d, 4), Box(d, 4)], {}),
    aten.softplus.default: softplus,
    aten.gelu.default: lambda d: ([matrix(d)], {"approximate": scalar(d, "none", "tanh")}),
    aten.leaky_relu.default: lambda d: ([matrix(d), scalar(d, 0.01, 0, -2.5, 3)], {}),
    aten.hardtanh.default: lambda d: ([matrix(d), scalar(d, -1, -0.1), scalar(d, 1, 0.3)], {}),
    aten.clamp.default: lambda d: ([matrix(d), scalar(d, None, -0.1, 5), scalar(d, 1, 0.3)], {}),
    aten.clamp.Tensor: lambda d: ([matrix(d), Box(d, 4), scalar(d, None, Box(d, 4))], {}),
    aten.clamp_min.default: lambda d: ([matrix(d), scalar(d, 0.1, -7)], {}),
    aten.clamp_max.default: lambda d: ([matrix(d), scalar(d, 0.1, -7)], {}),
    aten.softmax.int: lambda d: ([matrix(d), scalar(d, 0, -1)], {"dtype": scalar(d, None, torch.float64)}),
    aten._softmax.default: lambda d: ([matrix(d), 1, False], {}),
    aten._safe_softmax.default: lambda d: ([matrix(d), 1], {}),
    aten.log_softmax.int: lambda d: ([matrix(d), scalar(d, 0, -1)], {}),
    aten._log_softmax.default: lambda d: ([matrix(d), 1, False], {}),
    aten.logsumexp.default: lambda d: ([matrix(d)], {"dim": scalar(d, [0], [1], [0, 1])}),
    aten.layer_norm.default: norm_of(aten.layer_norm.default),
    aten.rms_norm.default: norm_of(aten.rms_norm.default),
    aten.cross_entropy_loss.default: lambda d: classified(d, label_smoothing=scalar(d, 0.0, 0.1, 1.0)),
    aten.nll_loss_nd.default: classified,
    aten.nll_loss.default: classified,
    aten.binary_cross_entropy_with_logits.default: lambda d: (
        [matrix(d, sizes=SIZES[:10]), torch.tensor(np.float32(d.random((3, 4))))], {"reduction": scalar(d, 0, 1, 2)}
    ),
    aten.mse_loss.default: lambda d: ([matrix(d), scalar(d, matrix(d), Box(d, 4))], {"reduction": scalar(d, 0, 1, 2)}),
}  # fmt: skip


def test_every_rule_has_a_case():
    assert set(CASES) == set(RULES)


def seen(graph, point):
    """The result in a precision: least, largest, whether some entry is NaN."""
    with torch.no_grad():
        value = graph.values(point, {graph.loss})[graph.loss]
    if not value.is_floating_point() or not value.numel():
        return math.inf, -math.inf, False
    void = bool(value.isnan().any())
    kept = value[~value.isnan()].double()
    return (float(kept.min()), float(kept.max()), void) if kept.numel() else (math.inf, -math.inf, void)


@pytest.mark.parametrize("target", list(RULES), ids=str)
def test_results_lie_inside(target):
    bounded = 0

    @settings(max_examples=DRAWS, deadline=None, derandomize=True, database=None)
    @given(st.integers(0, 2**32))
    def check(seed):
        nonlocal bounded
        draw = np.random.default_rng(seed)
        graph, boxes = graph_of(target, *CASES[target](draw))
        found = ranges(graph, {i: Range(b.low, b.high) for i, b in enumerate(boxes)})[graph.loss]
        bounded += found.low > -math.inf or found.high < math.inf
        for point in zip(*(b.points(draw, 4) for b in boxes), strict=True):
            exact, own = seen(graph, [t.double() for t in point]), seen(graph, point)
            for low, high, _ in (exact, own):
                assert found.low <= low and high <= found.high, (found, low, high, point)  # noqa: PT018
            assert not (exact[2] and found.defined), (found, point)
            assert not (found.positive and found.finite and exact[0] < 0), (found, point)

    check()
    assert bounded, "no draw was bounded on either side, so that nothing was tested"
