"""Between which bounds one operation of a traced loss leaves its result: a rule for each, with the arguments it reads.

A rule gives the range of the true function on real numbers; the roundings of the operation itself are added to it. An
argument that a rule does not read has to be the default: else nothing is known, as of an operation without a rule.
"""

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from villani.criteria.intervals import (
    INFINITY,
    UNKNOWN,
    Range,
    above,
    absolute,
    below,
    minus,
    nearest,
    of_number,
    plus,
    power,
    reciprocal,
    rounded,
    times,
    total,
    union,
)
from villani.criteria.patterns import (
    arguments,
    changed,
    entries,
    every_row_open,
    inverse_norm,
    limits,
    masks,
    original,
    root_mean_square,
)

aten = torch.ops.aten
_FUNCTION = 8.0  # roundings of a library's function
_EXACT, _CORRECT = 0.0, -1.0  # none, as of a copy; one to the nearest float, as of a sum


@dataclass(frozen=True, eq=False)
class Operation:
    """One operation, and what is known of what goes into it.

    Attributes:
        node: of the graph.
        known: ranges of the nodes before it.
        fixed: values of the nodes that do not depend on θ.
    """

    node: torch.fx.Node
    known: Mapping[torch.fx.Node, Range]
    fixed: Mapping[torch.fx.Node, torch.Tensor]

    def __getitem__(self, name: str) -> Any:
        return arguments(self.node)[name]

    @property
    def precision(self) -> torch.finfo:
        """Of the result."""
        return torch.finfo(self.node.meta["val"].dtype)

    def look(self, part: Any) -> Range:
        """The range of a node; of a number, which is rounded to the precision of the result."""
        if isinstance(part, torch.fx.Node):
            return self.known[part]
        if not isinstance(part, int | float):
            return UNKNOWN
        near = torch.tensor(part, dtype=self.node.meta["val"].dtype)
        return union(of_number(part), of_number(float(near)))

    def range(self, name: str) -> Range:
        """The range of an argument."""
        return self.look(self[name])

    def rounded(self, a: Range, steps: float) -> Range:
        """With that many roundings in the precision of the result."""
        return rounded(a, steps, self.node.meta["val"].dtype)

    @property
    def terms(self) -> int:
        """Entries that a reduction joins to one."""
        return entries(self["self"]) // max(1, entries(self.node))


@dataclass(frozen=True)
class Rule:
    """How to bound the result of an operation.

    Attributes:
        range: of the function on real numbers.
        reads: names of the arguments that it takes into account; None where it holds whatever they are.
        steps: roundings to be added to its result; or `_EXACT`, or `_CORRECT`.
        least, most: what the result never leaves, whatever the rounding.
    """

    range: Callable[[Operation], Range]
    reads: frozenset[str] | None
    steps: float
    least: float = -INFINITY
    most: float = INFINITY

    def __call__(self, operation: Operation) -> Range:
        """The range of the result; unknown where an argument is not understood, or an entry of one may be NaN."""
        node = operation.node
        if self.reads is not None and not changed(node) <= self.reads:
            return UNKNOWN
        if not all(operation.look(n).defined for n in node.all_input_nodes if _floating(n)):
            return UNKNOWN
        found = self.range(operation)
        if math.isnan(found.low) or math.isnan(found.high):
            return UNKNOWN
        if self.steps == _CORRECT:
            return nearest(found, node.meta["val"].dtype)
        return operation.rounded(found, self.steps).within(self.least, self.most) if self.steps else found


def _floating(node: torch.fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.is_floating_point()


# Values moved, chosen, joined


def _first(o: Operation) -> Range:
    return o.look(o.node.args[0])


def _join(o: Operation) -> Range:
    return union(*[o.look(p) for p in o["tensors"]])


def _where(o: Operation) -> Range:
    return union(o.range("self"), o.range("other"))


def _filled(o: Operation) -> Range:
    return union(o.range("self"), o.range("value"))


def _zeroed(o: Operation) -> Range:
    return union(o.range("self"), of_number(0.0))


# Arithmetic


def _add(o: Operation) -> Range:
    scale, b = o["alpha"], o.range("other")
    if scale != 1:
        b = o.rounded(times(b, of_number(scale)), 2)
    return plus(o.range("self"), b if o.node.target is aten.add.Tensor else minus(b))


def _multiply(o: Operation) -> Range:
    a, b = o["self"], o["other"]
    if a is b:
        return power(o.look(a), 2)
    for x, scale in ((a, b), (b, a)):
        if (norm := _of_unit_square(x, inverse_norm(scale), o)) is not None:
            return norm
    return times(o.look(a), o.look(b))


def _divide(o: Operation) -> Range:
    norm = _of_unit_square(o["self"], root_mean_square(o["other"]), o)
    if norm is not None:
        return norm
    inverse = reciprocal(o.range("other"))
    return times(o.range("self"), inverse) if inverse is not UNKNOWN else UNKNOWN


def _of_unit_square(x: Any, norm: tuple[Any, int, float] | None, o: Operation) -> Range | None:
    """|x| ≤ √D of x divided by its own √(mean(x²) + ε); without an ε that is no number where x = 0."""
    if norm is None or norm[0] is not original(x) or norm[2] < o.precision.tiny or not o.look(x).finite:
        return None
    root = above(math.sqrt(norm[1]))
    return o.rounded(Range(-root, root), norm[1] / 2 + _FUNCTION)


def _power(o: Operation) -> Range:
    n, a = o["exponent"], o.range("self")
    if not isinstance(n, int | float):
        return UNKNOWN
    near = torch.tensor(float(n), dtype=o.node.meta["val"].dtype)  # what is computed with
    return union(power(a, n), power(a, float(near)))


def _raised(n: float) -> Callable[[Operation], Range]:
    return lambda o: power(o.range("self"), n)


def _sum(o: Operation) -> Range:
    if not entries(o["self"]):
        return of_number(0.0)
    return o.rounded(total(o.range("self"), o.terms), o.terms)


def _mean(o: Operation) -> Range:
    return o.rounded(o.range("self"), o.terms) if o.terms else UNKNOWN


def _cumulated(o: Operation) -> Range:
    a, count = o.range("self"), max(1, entries(o["self"]))
    return o.rounded(union(a, total(a, count)), count)


def _variance(o: Operation) -> Range:
    """Σ(x − x̄)² ≤ n·spread²/4, over n − correction; no number where that is not positive."""
    given, n = arguments(o.node), o.terms
    correction = given.get("correction", 1) if "unbiased" not in given else int(given["unbiased"])
    correction = 1 if correction is None else correction
    if not isinstance(correction, int | float) or not n - correction > 0 or not o.range("self").finite:
        return UNKNOWN
    a = o.rounded(o.range("self"), n)
    spread = Range(0.0, plus(a, minus(a)).high)
    share = times(of_number(n / 4), reciprocal(of_number(float(n - correction))))
    return o.rounded(times(power(spread, 2), share), 2 * n)


def _norm(o: Operation) -> Range:
    """No p-norm with p ≥ 1 is more than the sum of moduli."""
    p = o["ord"]
    if not isinstance(p, int | float) or not p >= 1 or not entries(o["self"]):
        return UNKNOWN
    a = absolute(o.range("self"))
    high = o.rounded(total(a, entries(o["self"])), 2 * entries(o["self"])).high
    if math.isfinite(p) and high < INFINITY:  # powers overflow before the norm does
        high = high if o.rounded(power(Range(0.0, high), p), 1).bounded else INFINITY
    return Range(0.0, high, a.positive, a.finite)


def _contracted(left: str, right: str, bias: str | None = None) -> Callable[[Operation], Range]:
    """Sums of products, and a bias."""

    def rule(o: Operation) -> Range:
        inner = int(o[left].meta["val"].shape[-1])
        product = o.rounded(total(times(o.range(left), o.range(right)), inner), inner + 1)
        return product if bias is None or o[bias] is None else plus(product, o.range(bias))

    return rule


# Functions


def _monotone(function: Callable[[float], tuple[float, float]], positive: bool = False) -> Callable[[Operation], Range]:
    """An increasing function with f(0) ≥ 0, given from below and above; `positive` where it is so on all numbers."""

    def rule(o: Operation) -> Range:
        a = o.range("self")
        low, high = function(a.low)[0], function(a.high)[1]
        return Range(max(low, 0.0) if positive else low, high, a.finite and (a.positive or positive), a.finite)

    return rule


def _near(function: Callable[[float], float]) -> Callable[[float], tuple[float, float]]:
    """A library's function from below and above; it is off by less than four floats."""

    def both(x: float) -> tuple[float, float]:
        try:
            value = function(x)
        except OverflowError:
            value = INFINITY
        low = high = value
        for _ in range(4):
            low, high = below(low), above(high)
        return low, high

    return both


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def _soft(x: float) -> float:
    return x + math.log1p(math.exp(-x)) if x > 0 else math.log1p(math.exp(x))


def _softplus(o: Operation) -> Range:
    """log(1 + e^{βx})/β, which increases whatever the sign of β, or x itself where βx is beyond the threshold."""
    a, beta, threshold = o.range("self"), o["beta"], o["threshold"]
    numbers = all(isinstance(n, int | float) and math.isfinite(n) for n in (beta, threshold))
    if not numbers or beta == 0 or not a.finite:
        return UNKNOWN
    scaled = o.rounded(times(a, of_number(beta)), 2)
    smooth = Range(max(_near(_soft)(scaled.low)[0], 0.0), _near(_soft)(scaled.high)[1], True)
    found = o.rounded(times(smooth, reciprocal(of_number(beta))), _FUNCTION)
    if scaled.high > threshold:
        cut = o.rounded(times(of_number(threshold), reciprocal(of_number(beta))), _FUNCTION)
        kept = (max(a.low, min(cut.low, a.high)), a.high) if beta > 0 else (a.low, min(a.high, max(cut.high, a.low)))
        found = union(found, Range(*kept))
    return Range(found.low, found.high, beta > 0 and (threshold >= 0 or a.positive))


def _wave(o: Operation) -> Range:
    return Range(-1.0, 1.0) if o.range("self").finite else UNKNOWN  # sin ∞ is no number


def _gated(least: float) -> Callable[[Operation], Range]:
    """GELU in both forms, SiLU, Mish: from their minimum to max(x, 0)."""

    def rule(o: Operation) -> Range:
        a = o.range("self")
        if not a.finite:
            return UNKNOWN
        return Range(least if a.low < 0 else 0.0, max(a.high, 0.0), a.positive)

    return rule


def _log(o: Operation) -> Range:
    """Of a positive argument; else it may be no number."""
    a = o.range("self")
    if not (a.positive or a.low > 0):
        return UNKNOWN
    low = _near(math.log)(a.low)[0] if a.low > 0 else -INFINITY
    high = _near(math.log)(a.high)[1] if 0 < a.high < INFINITY else INFINITY
    return Range(low, high, a.low > 1, a.finite)


def _clamp(o: Operation) -> Range:
    a = o.range("self")
    low, high = (None if x is None else o.look(x) for x in limits(o.node))
    least, most = a.low, a.high
    if low is not None:
        least, most = max(least, low.low), max(most, low.high)
    if high is not None:
        least, most = min(least, high.low), min(most, high.high)
    if not all(x is None or x.defined for x in (low, high)):
        return UNKNOWN
    return Range(least, most, least > 0, a.finite)


def _leaky(o: Operation) -> Range:
    slope, a = o["negative_slope"], o.range("self")
    if not isinstance(slope, int | float):
        return UNKNOWN
    parts = []
    if a.low < 0:
        parts.append(times(Range(a.low, min(a.high, 0.0), False, a.finite), of_number(slope)))
    if a.high >= 0:
        parts.append(Range(max(a.low, 0.0), a.high, a.positive, a.finite))
    return union(*parts)


# Normalised sums


def _open(o: Operation, name: str, dim: int) -> bool:
    """Whether no row of scores may be masked as a whole, which leaves no number."""
    a = o.range(name)
    if a.finite:
        return True
    return every_row_open(masks(o[name], o.fixed, lambda n: _real(o, n)), o.node, dim)


def _real(o: Operation, node: torch.fx.Node) -> bool:
    return o.look(node).finite


def _softmax(o: Operation) -> Range:
    safe = o.node.target is aten._safe_softmax.default  # which has 0 for a row that is masked as a whole
    if not (safe and not _rises_to_infinity(o.range("self"))) and not _open(o, "self", o["dim"]):
        return UNKNOWN
    return Range(0.0, 1.0, o.range("self").finite)


def _rises_to_infinity(a: Range) -> bool:
    return not a.finite and a.high == INFINITY


def _log_softmax(o: Operation) -> Range:
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
    return Range(0.0, above(_near(math.log)(count)[1] + slack))


def _log_sum(o: Operation) -> Range:
    a = o.range("self")
    if not a.finite or not entries(o["self"]):
        return UNKNOWN
    return plus(a, _log_of(entries(o["self"]), o))


def _normalise(o: Operation) -> Range:
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


def _attention(o: Operation) -> Range:
    """Convex combinations of values, where every query sees a key."""
    given = arguments(o.node)
    parts = [o.range(name) for name in ("query", "key", "value")]
    scale = given["scale"]
    if not all(p.finite for p in parts) or (scale is not None and not math.isfinite(scale)):
        return UNKNOWN
    keys, mask = int(given["key"].meta["val"].shape[-2]), given["attn_mask"]
    if mask is not None:
        value = o.fixed.get(mask)
        if value is None:
            return UNKNOWN
        seen = value if value.dtype == torch.bool else value >= -o.precision.max
        if not bool(seen.any(-1).all()) or (value.is_floating_point() and not bool((value < INFINITY).all())):
            return UNKNOWN
    return o.rounded(parts[2], keys + _FUNCTION) if keys else UNKNOWN


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


def _cross_entropy(o: Operation) -> Range:
    """log Σ exp(z) − z_y ∈ [0, log V + spread], smoothed labels too; soft targets and weights are not looked into."""
    a, share = o.range("self"), o["label_smoothing"]
    if o["target"].meta["val"].is_floating_point() or not a.finite or not 0 <= share <= 1:
        return UNKNOWN
    shape = o["self"].meta["val"].shape
    classes = int(shape[1 if len(shape) > 1 else 0])
    high = plus(plus(a, minus(a)), _log_of(classes, o)).high
    return _classified(o.rounded(Range(0.0, high), classes + _FUNCTION if share else _FUNCTION), o)


def _likelihood(o: Operation) -> Range:
    """−x_y of log-probabilities x; ignored positions count 0."""
    return _classified(union(minus(o.range("self")), of_number(0.0)), o)


def _binary_cross_entropy(o: Operation) -> Range:
    a, target = o.range("self"), o.range("target")
    if not a.finite or not target.defined or target.low < 0 or target.high > 1:
        return UNKNOWN
    high = _near(_soft)(max(abs(a.low), abs(a.high)))[1]
    return _reduced(o.rounded(Range(0.0, high), _FUNCTION), o, entries(o["self"]))


def _squared_error(o: Operation) -> Range:
    shapes = [o[name].meta["val"].shape for name in ("self", "target")]
    square = power(o.rounded(plus(o.range("self"), minus(o.range("target"))), 1), 2)
    return _reduced(square, o, torch.broadcast_shapes(*shapes).numel())


def _rules(*rows: tuple[Rule, list[Any]]) -> dict[Any, Rule]:
    return {target: rule for rule, targets in rows for target in targets}


def _rule(
    function: Callable[[Operation], Range], reads: str | None, steps: float = _FUNCTION, least: float = -INFINITY,
    most: float = INFINITY,
) -> Rule:  # fmt: skip
    return Rule(function, None if reads is None else frozenset(reads.split()), steps, least, most)


RULES = _rules(
    (_rule(_first, None, _EXACT), [
        operator.getitem, aten.alias.default, aten.clone.default, aten.contiguous.default, aten.detach.default,
        aten.view.default, aten._unsafe_view.default, aten.reshape.default, aten.flatten.using_ints,
        aten.transpose.int, aten.t.default, aten.permute.default, aten.unsqueeze.default, aten.squeeze.default,
        aten.squeeze.dim, aten.squeeze.dims, aten.expand.default, aten.repeat.default, aten.slice.Tensor,
        aten.select.int, aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default, aten.unbind.int,
        aten.embedding.default, aten.gather.default, aten.index.Tensor, aten.index_select.default, aten.flip.default,
        aten.roll.default, aten.diagonal.default, aten.amax.default, aten.amin.default, aten.max.default,
        aten.min.default, aten.max.dim, aten.min.dim, aten.topk.default, aten.sort.default, aten.sort.stable,
    ]),
    (_rule(_first, None, _CORRECT), [aten._to_copy.default]),
    (_rule(_join, None, _EXACT), [aten.cat.default, aten.stack.default]),
    (_rule(_where, None, _EXACT), [
        aten.where.self, aten.where.ScalarOther, aten.where.ScalarSelf, aten.where.Scalar,
    ]),
    (_rule(_filled, None, _EXACT), [aten.masked_fill.Scalar, aten.masked_fill.Tensor, aten.constant_pad_nd.default]),
    (_rule(_zeroed, None, _EXACT), [aten.triu.default, aten.tril.default]),
    (_rule(_add, "self other alpha", _CORRECT), [aten.add.Tensor, aten.sub.Tensor]),
    (_rule(lambda o: minus(o.range("self")), "self", _EXACT), [aten.neg.default]),
    (_rule(_multiply, "self other", _CORRECT), [aten.mul.Tensor]),
    (_rule(_divide, "self other", _CORRECT), [aten.div.Tensor]),
    (_rule(_power, "self exponent"), [aten.pow.Tensor_Scalar]),
    (_rule(_raised(2), "self", _CORRECT), [aten.square.default]),
    (_rule(_raised(0.5), "self", 3.0), [aten.sqrt.default]),
    (_rule(_raised(-0.5), "self"), [aten.rsqrt.default]),
    (_rule(lambda o: reciprocal(o.range("self")), "self", _CORRECT), [aten.reciprocal.default]),
    (_rule(lambda o: absolute(o.range("self")), "self", _EXACT), [aten.abs.default]),
    (_rule(_sum, "self dim keepdim dtype", _CORRECT), [aten.sum.default, aten.sum.dim_IntList]),
    (_rule(_mean, "self dim keepdim dtype", _CORRECT), [aten.mean.default, aten.mean.dim]),
    (_rule(_cumulated, "self dim dtype", _CORRECT), [aten.cumsum.default]),
    (_rule(_variance, "self dim correction unbiased keepdim", _CORRECT), [
        aten.var.correction, aten.var.dim, aten.var.default,
    ]),
    (_rule(_norm, "self ord dim keepdim dtype"), [aten.linalg_vector_norm.default]),
    (_rule(_contracted("input", "weight", "bias"), "input weight bias", _CORRECT), [aten.linear.default]),
    (_rule(_contracted("mat1", "mat2", "self"), "self mat1 mat2", _CORRECT), [aten.addmm.default]),
    (_rule(_contracted("batch1", "batch2", "self"), "self batch1 batch2", _CORRECT), [aten.baddbmm.default]),
    (_rule(_contracted("self", "other"), "self other", _CORRECT), [aten.matmul.default]),
    (_rule(_contracted("self", "mat2"), "self mat2", _CORRECT), [aten.mm.default, aten.bmm.default]),
    (_rule(_contracted("self", "vec"), "self vec", _CORRECT), [aten.mv.default]),
    (_rule(_contracted("self", "tensor"), "self tensor", _CORRECT), [aten.dot.default]),
    (_rule(_monotone(_near(math.exp), positive=True), "self"), [aten.exp.default]),
    (_rule(_monotone(_near(_sigmoid), positive=True), "self", least=0.0, most=1.0), [aten.sigmoid.default]),
    (_rule(_monotone(_near(math.tanh)), "self", least=-1.0, most=1.0), [aten.tanh.default]),
    (_rule(_monotone(_near(math.erf)), "self", least=-1.0, most=1.0), [aten.erf.default]),
    (_rule(_monotone(_near(math.atan)), "self"), [aten.atan.default]),
    (_rule(_wave, "self", least=-1.0, most=1.0), [aten.sin.default, aten.cos.default]),
    (_rule(_softplus, "self beta threshold", _EXACT), [aten.softplus.default]),
    (_rule(_gated(-0.17005), "self approximate"), [aten.gelu.default]),
    (_rule(_gated(-0.27847), "self"), [aten.silu.default]),
    (_rule(_gated(-0.30885), "self"), [aten.mish.default]),
    (_rule(_leaky, "self negative_slope"), [aten.leaky_relu.default]),
    (_rule(_log, "self"), [aten.log.default]),
    (_rule(_clamp, "self min max min_val max_val", _EXACT), [
        aten.relu.default, aten.relu6.default, aten.hardtanh.default, aten.clamp.default, aten.clamp.Tensor,
        aten.clamp_min.default, aten.clamp_max.default,
    ]),
    (_rule(_softmax, "self dim dtype half_to_float", _EXACT), [
        aten.softmax.int, aten._softmax.default, aten._safe_softmax.default,
    ]),
    (_rule(_log_softmax, "self dim dtype half_to_float"), [aten.log_softmax.int, aten._log_softmax.default]),
    (_rule(_log_sum, "self dim keepdim"), [aten.logsumexp.default]),
    (_rule(_attention, "query key value attn_mask is_causal scale enable_gqa"), [
        aten.scaled_dot_product_attention.default,
    ]),
    (_rule(_normalise, "input normalized_shape weight bias eps cudnn_enable"), [
        aten.layer_norm.default, aten.rms_norm.default,
    ]),
    (_rule(_cross_entropy, "self target reduction ignore_index label_smoothing", _CORRECT), [
        aten.cross_entropy_loss.default,
    ]),
    (_rule(_likelihood, "self target reduction ignore_index", _CORRECT), [
        aten.nll_loss_nd.default, aten.nll_loss.default,
    ]),
    (_rule(_binary_cross_entropy, "self target reduction", _CORRECT), [
        aten.binary_cross_entropy_with_logits.default,
    ]),
    (_rule(_squared_error, "self target reduction", _CORRECT), [aten.mse_loss.default]),
)  # fmt: skip
