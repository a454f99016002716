"""Interval arithmetic over a traced loss: between which bounds every intermediate value stays as θ varies.

The bounds hold in exact arithmetic for every θ in a box given tensor by tensor, a side of which may be infinite. They
say that an argument of log stays positive, that a kink is out of reach, that a loss is nonnegative, or that it is
bounded along parameters that no decay holds back. They are as loose as intervals are: arguments that depend on each
other are treated as if they did not, except for x·x and for x divided by its own root mean square. Where no rule is
known, a value may be anything.
"""

import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch

from villani.criteria.intervals import (
    ANYTHING,
    INFINITY,
    UNKNOWN,
    Range,
    absolute,
    minus,
    of_number,
    of_tensor,
    plus,
    power,
    reciprocal,
    times,
    total,
    union,
)
from villani.criteria.patterns import (
    argument,
    depends_on,
    entries,
    inverse_norm,
    is_floating,
    limits,
    original,
    root_mean_square,
)
from villani.landscape.graph import LossGraph

aten = torch.ops.aten
Look = Callable[[Any], Range]
Rule = Callable[[torch.fx.Node, Look], Range]


def fixed_ranges(graph: LossGraph) -> dict[torch.fx.Node, Range]:
    """The ranges of what does not depend on θ: masks, counts, rotations."""
    moved = depends_on(graph)
    values: dict[torch.fx.Node, Any] = {**graph.constants, **graph.inputs}
    found: dict[torch.fx.Node, Range] = {}

    def look(node: torch.fx.Node) -> Any:
        if node in moved:  # only its shape is wanted
            return torch.zeros(node.meta["val"].shape, dtype=node.meta["val"].dtype)
        return values[node]

    for node in graph.nodes:
        if node in moved:
            continue
        if node.op == "call_function":
            arguments: Any = torch.fx.map_arg(node.args, look)
            options: Any = torch.fx.map_arg(node.kwargs, look)
            target: Any = node.target
            values[node] = target(*arguments, **options)
        value = values.get(node)
        found[node] = of_tensor(value) if isinstance(value, torch.Tensor) else UNKNOWN
    return found


def ranges(
    graph: LossGraph, box: Mapping[int, Range], fixed: Mapping[torch.fx.Node, Range] | None = None
) -> dict[torch.fx.Node, Range]:
    """The range of every node for θ in a box.

    Args:
        graph: the traced loss.
        box: index of a tensor in θ → the range of its entries; tensors not named may be anything.
        fixed: `fixed_ranges(graph)`, where it is at hand.
    """
    found = dict(fixed_ranges(graph) if fixed is None else fixed)

    def look(argument: Any) -> Range:
        if isinstance(argument, torch.fx.Node):
            return found[argument]
        return of_number(argument) if isinstance(argument, int | float) else UNKNOWN

    for node in graph.nodes:
        if node in graph.parameters:
            found[node] = box.get(graph.parameters[node], ANYTHING)
        elif node not in found:
            rule = _RULES.get(node.target)
            result = rule(node, look) if rule else UNKNOWN
            usable = is_floating(node) and not math.isnan(result.low) and not math.isnan(result.high)
            found[node] = result if usable else UNKNOWN
    return found


# Rules: rule(node, look) → range, where `look` gives the range of an argument


def _same(node: torch.fx.Node, look: Look) -> Range:
    return look(node.args[0])


def _join(node: torch.fx.Node, look: Look) -> Range:
    parts: Any = node.args[0]
    return union(*[look(p) for p in parts])


def _where(node: torch.fx.Node, look: Look) -> Range:
    return union(look(node.args[1]), look(node.args[2]))


def _filled(node: torch.fx.Node, look: Look) -> Range:
    return union(look(node.args[0]), look(node.args[2]))


def _padded(node: torch.fx.Node, look: Look) -> Range:
    return union(look(node.args[0]), of_number(argument(node, 2, 0.0)))


def _zeroed(node: torch.fx.Node, look: Look) -> Range:
    return union(look(node.args[0]), of_number(0.0))


def _add(node: torch.fx.Node, look: Look) -> Range:
    scale: Any = node.kwargs.get("alpha", 1)
    b = times(look(node.args[1]), of_number(scale))
    return plus(look(node.args[0]), b if node.target is aten.add.Tensor else minus(b))


def _negate(node: torch.fx.Node, look: Look) -> Range:
    return minus(look(node.args[0]))


def _multiply(node: torch.fx.Node, look: Look) -> Range:
    a, b = node.args[:2]
    if a is b:
        return power(look(a), 2)
    for x, scale in ((a, b), (b, a)):
        norm = inverse_norm(scale)
        if norm is not None and norm[0] is original(x):
            return Range(-math.sqrt(norm[1]), math.sqrt(norm[1]), False, look(x).finite)
    return times(look(a), look(b))


def _divide(node: torch.fx.Node, look: Look) -> Range:
    a, b = node.args[:2]
    norm = root_mean_square(b)
    if norm is not None and norm[0] is original(a):
        return Range(-math.sqrt(norm[1]), math.sqrt(norm[1]), False, look(a).finite)
    inverse = reciprocal(look(b))
    return times(look(a), inverse) if inverse is not UNKNOWN else UNKNOWN


def _power(node: torch.fx.Node, look: Look) -> Range:
    n = node.args[1]
    return power(look(node.args[0]), n) if isinstance(n, int | float) else UNKNOWN


def _square(node: torch.fx.Node, look: Look) -> Range:
    return power(look(node.args[0]), 2)


def _sqrt(node: torch.fx.Node, look: Look) -> Range:
    return power(look(node.args[0]), 0.5)


def _rsqrt(node: torch.fx.Node, look: Look) -> Range:
    return power(look(node.args[0]), -0.5)


def _reciprocal(node: torch.fx.Node, look: Look) -> Range:
    return reciprocal(look(node.args[0]))


def _absolute(node: torch.fx.Node, look: Look) -> Range:
    return absolute(look(node.args[0]))


def _sum(node: torch.fx.Node, look: Look) -> Range:
    return total(look(node.args[0]), max(1, entries(node.args[0]) // max(1, entries(node))))


def _cumulated(node: torch.fx.Node, look: Look) -> Range:
    a = look(node.args[0])
    return union(a, total(a, max(1, entries(node.args[0]))))


def _variance(node: torch.fx.Node, look: Look) -> Range:
    """At most spread² · n/(n − 1), unbiased as it may be."""
    a = look(node.args[0])
    return Range(0.0, 2 * (a.high - a.low) ** 2, False, a.finite)


def _norm(node: torch.fx.Node, look: Look) -> Range:
    """No p-norm with p ≥ 1 is more than the sum of moduli."""
    if argument(node, 1, 2) < 1:
        return UNKNOWN
    a = absolute(look(node.args[0]))
    return Range(0.0, total(a, entries(node.args[0])).high, a.positive, a.finite)


def _contract(node: torch.fx.Node, look: Look) -> Range:
    """Sums of `inner` products; `linear` and `addmm` then add a bias."""
    first = 1 if node.target in (aten.addmm.default, aten.baddbmm.default) else 0
    if first and node.kwargs:
        return UNKNOWN
    a: Any = node.args[first]
    product = total(times(look(a), look(node.args[first + 1])), int(a.meta["val"].shape[-1]))
    bias = node.args[0] if first else (argument(node, 2) if node.target is aten.linear.default else None)
    return product if bias is None else plus(product, look(bias))


def _increasing(function: Callable[[float], float], positive: bool = False) -> Rule:
    """An increasing function with f(0) ≥ 0; `positive` where it is so on all numbers."""

    def rule(node: torch.fx.Node, look: Look) -> Range:
        a = look(node.args[0])
        return Range(function(a.low), function(a.high), a.positive or (positive and a.finite), a.finite)

    return rule


def _wave(node: torch.fx.Node, look: Look) -> Range:
    return Range(-1.0, 1.0, False, look(node.args[0]).finite)


def _gated(least: float) -> Rule:
    """GELU, SiLU, Mish: from their minimum to max(x, 0)."""

    def rule(node: torch.fx.Node, look: Look) -> Range:
        a = look(node.args[0])
        return Range(least if a.low < 0 else 0.0, max(a.high, 0.0), a.positive, a.finite)

    return rule


def _exp(x: float) -> float:
    return math.exp(x) if x < 709 else INFINITY


def _softplus(x: float) -> float:
    return x if x > 700 else math.log1p(_exp(x))


def _sigmoid(x: float) -> float:
    return 1 / (1 + _exp(-x))


def _log(node: torch.fx.Node, look: Look) -> Range:
    """Of a positive argument; else it may be no number."""
    a = look(node.args[0])
    if not a.positive:
        return UNKNOWN
    low = math.log(a.low) if a.low > 0 else -INFINITY
    high = math.log(a.high) if 0 < a.high < INFINITY else a.high
    return Range(low, high, a.low > 1, a.finite)


def _clamp(node: torch.fx.Node, look: Look) -> Range:
    a = look(node.args[0])
    low, high = (None if x is None else look(x) for x in limits(node))
    least, most = a.low, a.high
    if low is not None:
        least, most = max(least, low.low), max(most, low.high)
    if high is not None:
        least, most = min(least, high.low), min(most, high.high)
    return Range(least, most, least > 0, a.finite)


def _softmax(node: torch.fx.Node, look: Look) -> Range:
    return Range(0.0, 1.0, look(node.args[0]).finite)  # a mask of −∞ gives 0; that it fills no row is for the data


def _log_softmax(node: torch.fx.Node, look: Look) -> Range:
    a = look(node.args[0])
    classes = int(node.meta["val"].shape[node.args[1]])
    return Range(a.low - a.high - math.log(classes) if a.bounded else -INFINITY, 0.0, False, a.finite)


def _log_sum(node: torch.fx.Node, look: Look) -> Range:
    a = look(node.args[0])
    return Range(a.low, a.high + math.log(max(1, entries(node.args[0]))), False, a.finite)


def _normalise(node: torch.fx.Node, look: Look) -> Range:
    """Layer norm and RMS norm: ‖x̂‖² ≤ D whatever goes in; then gain and bias."""
    shape: Any = node.args[1]
    root = math.sqrt(math.prod(shape))
    result = Range(-root, root, False, look(node.args[0]).finite)
    gain = argument(node, 2)
    bias = argument(node, 3) if node.target is aten.layer_norm.default else None
    result = result if gain is None else times(result, look(gain))
    return result if bias is None else plus(result, look(bias))


def _attention(node: torch.fx.Node, look: Look) -> Range:
    return look(node.args[2])  # convex combinations of values


def _reduced(a: Range, node: torch.fx.Node, position: int, count: int) -> Range:
    """None, mean or sum of `count` terms, as torch numbers reductions."""
    return total(a, max(1, count)) if argument(node, position, 1) == 2 else a


def _cross_entropy(node: torch.fx.Node, look: Look) -> Range:
    """log Σ exp(z) − z_y ∈ [0, log V + spread]; class weights and soft targets are not looked into."""
    logits: Any = node.args[0]
    target: Any = node.args[1]
    if argument(node, 2) is not None or target.meta["val"].is_floating_point():
        return UNKNOWN
    a, shape = look(logits), logits.meta["val"].shape
    term = Range(0.0, math.log(shape[1 if len(shape) > 1 else 0]) + a.high - a.low, False, a.finite)
    return _reduced(term, node, 3, entries(target))


def _likelihood(node: torch.fx.Node, look: Look) -> Range:
    """−x_y of log-probabilities x; ignored positions count 0."""
    if argument(node, 2) is not None:
        return UNKNOWN
    return _reduced(union(minus(look(node.args[0])), of_number(0.0)), node, 3, entries(node.args[1]))


def _binary_cross_entropy(node: torch.fx.Node, look: Look) -> Range:
    a, target = look(node.args[0]), look(node.args[1])
    if any(x is not None for x in node.args[2:4]) or target.low < 0 or target.high > 1:
        return UNKNOWN
    high = _softplus(max(abs(a.low), abs(a.high)))
    return _reduced(Range(0.0, high, False, a.finite), node, 4, entries(node.args[0]))


def _squared_error(node: torch.fx.Node, look: Look) -> Range:
    square = power(plus(look(node.args[0]), minus(look(node.args[1]))), 2)
    return _reduced(square, node, 2, entries(node.args[0]))


def _rules(*pairs: tuple[Rule, list[Any]]) -> dict[Any, Rule]:
    return {target: rule for rule, targets in pairs for target in targets}


_RULES = _rules(
    (_same, [
        operator.getitem, aten.alias.default, aten.clone.default, aten.contiguous.default, aten._to_copy.default,
        aten.detach.default, aten.view.default, aten._unsafe_view.default, aten.reshape.default,
        aten.flatten.using_ints,
        aten.transpose.int, aten.t.default, aten.permute.default, aten.unsqueeze.default, aten.squeeze.default,
        aten.squeeze.dim, aten.squeeze.dims, aten.expand.default, aten.repeat.default, aten.slice.Tensor,
        aten.select.int, aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default, aten.unbind.int,
        aten.embedding.default, aten.gather.default, aten.index.Tensor, aten.index_select.default, aten.flip.default,
        aten.roll.default, aten.diagonal.default, aten.mean.dim, aten.mean.default, aten.amax.default,
        aten.amin.default, aten.max.default, aten.min.default, aten.max.dim, aten.min.dim, aten.topk.default,
        aten.sort.default, aten.sort.stable,
    ]),
    (_join, [aten.cat.default, aten.stack.default]),
    (_where, [aten.where.self, aten.where.ScalarOther, aten.where.ScalarSelf, aten.where.Scalar]),
    (_filled, [aten.masked_fill.Scalar, aten.masked_fill.Tensor]),
    (_padded, [aten.constant_pad_nd.default]),
    (_zeroed, [aten.triu.default, aten.tril.default]),
    (_add, [aten.add.Tensor, aten.sub.Tensor]),
    (_negate, [aten.neg.default]),
    (_multiply, [aten.mul.Tensor]),
    (_divide, [aten.div.Tensor]),
    (_power, [aten.pow.Tensor_Scalar]),
    (_square, [aten.square.default]),
    (_sqrt, [aten.sqrt.default]),
    (_rsqrt, [aten.rsqrt.default]),
    (_reciprocal, [aten.reciprocal.default]),
    (_absolute, [aten.abs.default]),
    (_sum, [aten.sum.default, aten.sum.dim_IntList]),
    (_cumulated, [aten.cumsum.default]),
    (_variance, [aten.var.correction, aten.var.dim, aten.var.default]),
    (_norm, [aten.linalg_vector_norm.default]),
    (_contract, [
        aten.linear.default, aten.addmm.default, aten.baddbmm.default, aten.matmul.default, aten.mm.default,
        aten.bmm.default, aten.mv.default, aten.dot.default,
    ]),
    (_increasing(_exp, positive=True), [aten.exp.default]),
    (_increasing(_softplus, positive=True), [aten.softplus.default]),
    (_increasing(_sigmoid, positive=True), [aten.sigmoid.default]),
    (_increasing(math.tanh), [aten.tanh.default]),
    (_increasing(math.erf), [aten.erf.default]),
    (_increasing(math.atan), [aten.atan.default]),
    (_wave, [aten.sin.default, aten.cos.default]),
    (_gated(-0.17005), [aten.gelu.default]),
    (_gated(-0.27847), [aten.silu.default]),
    (_gated(-0.30885), [aten.mish.default]),
    (_log, [aten.log.default]),
    (_clamp, [
        aten.relu.default, aten.relu6.default, aten.hardtanh.default, aten.clamp.default, aten.clamp.Tensor,
        aten.clamp_min.default, aten.clamp_max.default,
    ]),
    (_softmax, [aten.softmax.int, aten._softmax.default, aten._safe_softmax.default]),
    (_log_softmax, [aten.log_softmax.int, aten._log_softmax.default]),
    (_log_sum, [aten.logsumexp.default]),
    (_attention, [aten.scaled_dot_product_attention.default]),
    (_normalise, [aten.layer_norm.default, aten.rms_norm.default]),
    (_cross_entropy, [aten.cross_entropy_loss.default]),
    (_likelihood, [aten.nll_loss_nd.default, aten.nll_loss.default]),
    (_binary_cross_entropy, [aten.binary_cross_entropy_with_logits.default]),
    (_squared_error, [aten.mse_loss.default]),
)  # fmt: skip
