"""Rules of interval arithmetic: softmax, normalisations and losses."""

import math

import torch

from villani.criteria.enclosed_functions import near, soft
from villani.criteria.enclosure import FUNCTION, Operation
from villani.criteria.intervals import (
    INFINITY,
    UNKNOWN,
    Range,
    above,
    minus,
    of_number,
    plus,
    power,
    times,
    total,
    union,
)
from villani.criteria.patterns import arguments, entries, every_row_open, masks

aten = torch.ops.aten


# Normalised sums


def _open(o: Operation, name: str, dim: int) -> bool:
    """Whether no row of scores may be masked as a whole, which leaves no number."""
    a = o.range(name)
    if a.finite:
        return True
    return every_row_open(masks(o[name], o.fixed, lambda n: _real(o, n)), o.node, dim)


def _real(o: Operation, node: torch.fx.Node) -> bool:
    return o.look(node).finite


def softmax(o: Operation) -> Range:
    """Between 0 and 1, where no row is masked as a whole."""
    safe = o.node.target is aten._safe_softmax.default  # which has 0 for a row that is masked as a whole
    if not (safe and not _rises_to_infinity(o.range("self"))) and not _open(o, "self", o["dim"]):
        return UNKNOWN
    return Range(0.0, 1.0, o.range("self").finite)


def _rises_to_infinity(a: Range) -> bool:
    return not a.finite and a.high == INFINITY


def log_softmax(o: Operation) -> Range:
    """At most 0, and at least −spread − log n."""
    a = o.range("self")
    if not _open(o, "self", o["dim"]):
        return UNKNOWN
    shape = o.node.meta["val"].shape
    classes = int(shape[o["dim"]]) if len(shape) else 1
    low = minus(plus(plus(a, minus(a)), _log_of(classes, o))).low if a.bounded else -INFINITY
    return Range(low, 0.0, False, a.finite)


def _log_of(count: int, o: Operation) -> Range:
    """Up to log n, of sums of n numbers of which one is 1."""
    slack = math.expm1(min(count * o.precision.eps, 700.0))
    return Range(0.0, above(near(math.log)(count)[1] + slack))


def log_sum(o: Operation) -> Range:
    """log Σ exp: between the least, and the largest and log n."""
    a = o.range("self")
    if not a.finite or not entries(o["self"]):
        return UNKNOWN
    return plus(a, _log_of(entries(o["self"]), o))


def normalised(o: Operation) -> Range:
    """Layer norm and RMS norm: ‖x̂‖² ≤ D whatever goes in, as long as ε > 0; then gain and bias."""
    given = arguments(o.node)
    eps = given["eps"]
    if (eps is not None and not eps >= o.precision.tiny) or not o.range("input").finite:
        return UNKNOWN
    features = math.prod(given["normalized_shape"])
    root = above(math.sqrt(features))
    result = o.rounded(Range(-root, root), 2)
    if given["weight"] is not None:
        result = o.rounded(times(result, o.range("weight")), 1)
    return result if given.get("bias") is None else plus(result, o.range("bias"))


# Losses


def _reduced(a: Range, o: Operation, count: int) -> Range:
    """None, mean or sum of `count` terms, as torch numbers reductions; the mean of none is no number."""
    if o["reduction"] == 0:
        return a
    if o["reduction"] not in (1, 2) or (o["reduction"] == 1 and not count):
        return UNKNOWN
    return o.rounded(total(a, count) if o["reduction"] == 2 else a, count + 1)


def _classified(a: Range, o: Operation) -> Range:
    """Reduced over targets, of which those with the index that is ignored count 0."""
    target = o.fixed.get(o["target"])
    if o["reduction"] == 1 and (target is None or not bool((target != o["ignore_index"]).any())):
        return UNKNOWN
    return _reduced(a, o, entries(o["target"]))


def cross_entropy(o: Operation) -> Range:
    """log Σ exp(z) − z_y ∈ [0, log V + spread], smoothed labels too; soft targets and weights are not looked into."""
    a, share = o.range("self"), o["label_smoothing"]
    if o["target"].meta["val"].is_floating_point() or not a.finite or not 0 <= share <= 1:
        return UNKNOWN
    shape = o["self"].meta["val"].shape
    classes = int(shape[1 if len(shape) > 1 else 0])
    high = plus(plus(a, minus(a)), _log_of(classes, o)).high
    return _classified(o.rounded(Range(0.0, high), classes + FUNCTION if share else FUNCTION), o)


def likelihood(o: Operation) -> Range:
    """−x_y of log-probabilities x; ignored positions count 0."""
    return _classified(union(minus(o.range("self")), of_number(0.0)), o)


def binary_cross_entropy(o: Operation) -> Range:
    """(1 − t)x + log(1 + e^{−x}) of targets t in [0, 1]."""
    a, target = o.range("self"), o.range("target")
    if not a.finite or not target.defined or target.low < 0 or target.high > 1:
        return UNKNOWN
    high = near(soft)(max(abs(a.low), abs(a.high)))[1]
    return _reduced(o.rounded(Range(0.0, high), FUNCTION), o, entries(o["self"]))


def squared_error(o: Operation) -> Range:
    """(a − b)²."""
    shapes = [o[name].meta["val"].shape for name in ("self", "target")]
    square = power(o.rounded(plus(o.range("self"), minus(o.range("target"))), 1), 2)
    return _reduced(square, o, torch.broadcast_shapes(*shapes).numel())
