"""Rules of interval arithmetic: values moved and joined, arithmetic, functions of one number."""

import math
from collections.abc import Callable
from typing import Any

import torch

from villani.criteria.enclosure import FUNCTION, Operation
from villani.criteria.intervals import (
    INFINITY,
    UNKNOWN,
    Range,
    above,
    absolute,
    below,
    minus,
    of_number,
    plus,
    power,
    reciprocal,
    times,
    total,
    union,
)
from villani.criteria.patterns import arguments, entries, inverse_norm, limits, original, root_mean_square

aten = torch.ops.aten


# Values moved, chosen, joined


def moved(o: Operation) -> Range:
    """What is only moved about."""
    return o.look(o.node.args[0])


def joined(o: Operation) -> Range:
    """Several put together."""
    return union(*[o.look(p) for p in o["tensors"]])


def either(o: Operation) -> Range:
    """One of two."""
    return union(o.range("self"), o.range("other"))


def filled(o: Operation) -> Range:
    """Entries replaced by a number."""
    return union(o.range("self"), o.range("value"))


def zeroed(o: Operation) -> Range:
    """Entries replaced by 0."""
    return union(o.range("self"), of_number(0.0))


# Arithmetic


def added(o: Operation) -> Range:
    """a ± alpha·b."""
    scale, b = o["alpha"], o.range("other")
    if scale != 1:
        b = o.rounded(times(b, of_number(scale)), 2)
    return plus(o.range("self"), b if o.node.target is aten.add.Tensor else minus(b))


def product(o: Operation) -> Range:
    """a·b; a square where both are the same, a normalised x where one is x and the other its inverse norm."""
    a, b = o["self"], o["other"]
    if a is b:
        return power(o.look(a), 2)
    for x, scale in ((a, b), (b, a)):
        if (found := _of_unit_square(x, inverse_norm(scale), o)) is not None:
            return found
    return times(o.look(a), o.look(b))


def quotient(o: Operation) -> Range:
    """a/b; a normalised x where b is its norm."""
    found = _of_unit_square(o["self"], root_mean_square(o["other"]), o)
    if found is not None:
        return found
    inverse = reciprocal(o.range("other"))
    return times(o.range("self"), inverse) if inverse is not UNKNOWN else UNKNOWN


def _of_unit_square(x: Any, square: tuple[Any, int, float] | None, o: Operation) -> Range | None:
    """|x| ≤ √D of x divided by its own √(mean(x²) + ε); without an ε that is no number where x = 0."""
    if square is None or square[0] is not original(x) or square[2] < o.precision.tiny or not o.look(x).finite:
        return None
    root = above(math.sqrt(square[1]))
    return o.rounded(Range(-root, root), square[1] / 2 + FUNCTION)


def raised(o: Operation) -> Range:
    """xⁿ, n as it is and as the precision has it."""
    n, a = o["exponent"], o.range("self")
    if not isinstance(n, int | float):
        return UNKNOWN
    near = torch.tensor(float(n), dtype=o.node.meta["val"].dtype)  # what is computed with
    return union(power(a, n), power(a, float(near)))


def raised_to(n: float) -> Callable[[Operation], Range]:
    """xⁿ for an n that the operation has."""
    return lambda o: power(o.range("self"), n)


def summed(o: Operation) -> Range:
    """Sums over dimensions."""
    if not entries(o["self"]):
        return of_number(0.0)
    return o.rounded(total(o.range("self"), o.terms), o.terms)


def mean(o: Operation) -> Range:
    """Means over dimensions."""
    return o.rounded(o.range("self"), o.terms) if o.terms else UNKNOWN


def cumulated(o: Operation) -> Range:
    """Sums of the first entries."""
    a, count = o.range("self"), max(1, entries(o["self"]))
    return o.rounded(union(a, total(a, count)), count)


def variance(o: Operation) -> Range:
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


def norm(o: Operation) -> Range:
    """No p-norm with p ≥ 1 is more than the sum of moduli."""
    p = o["ord"]
    if not isinstance(p, int | float) or not p >= 1 or not entries(o["self"]):
        return UNKNOWN
    a = absolute(o.range("self"))
    high = o.rounded(total(a, entries(o["self"])), 2 * entries(o["self"])).high
    if math.isfinite(p) and high < INFINITY:  # powers overflow before the norm does
        high = high if o.rounded(power(Range(0.0, high), p), 1).bounded else INFINITY
    return Range(0.0, high, a.positive, a.finite)


def contracted(left: str, right: str, bias: str | None = None) -> Callable[[Operation], Range]:
    """Sums of products, and a bias."""

    def rule(o: Operation) -> Range:
        inner = int(o[left].meta["val"].shape[-1])
        inner_product = o.rounded(total(times(o.range(left), o.range(right)), inner), inner + 1)
        return inner_product if bias is None or o[bias] is None else plus(inner_product, o.range(bias))

    return rule


def convolved(o: Operation) -> Range:
    """Sums of products, of which those with the zeros around are 0, and a bias."""
    inner = entries(o["weight"]) // max(1, int(o["weight"].meta["val"].shape[0]))
    terms = union(times(o.range("input"), o.range("weight")), of_number(0.0))
    products = o.rounded(total(terms, inner), inner + 1)
    return products if o["bias"] is None else plus(products, o.range("bias"))


def put(o: Operation) -> Range:
    """Entries replaced by those of another tensor, or by a number."""
    other = next(name for name in ("src", "value", "values") if name in arguments(o.node))
    if arguments(o.node).get("accumulate"):
        return UNKNOWN
    return union(o.range("self"), o.range(other))


def larger(o: Operation) -> Range:
    """The larger of two."""
    a, b = o.range("self"), o.range("other")
    return Range(max(a.low, b.low), max(a.high, b.high), a.positive or b.positive, a.finite and b.finite)


def smaller(o: Operation) -> Range:
    """The smaller of two."""
    a, b = o.range("self"), o.range("other")
    return Range(min(a.low, b.low), min(a.high, b.high), a.positive and b.positive, a.finite and b.finite)


# Functions


def monotone(function: Callable[[float], tuple[float, float]], positive: bool = False) -> Callable[[Operation], Range]:
    """An increasing function with f(0) ≥ 0, given from below and above; `positive` where it is so on all numbers."""

    def rule(o: Operation) -> Range:
        a = o.range("self")
        low, high = function(a.low)[0], function(a.high)[1]
        return Range(max(low, 0.0) if positive else low, high, a.finite and (a.positive or positive), a.finite)

    return rule


def near(function: Callable[[float], float]) -> Callable[[float], tuple[float, float]]:
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


def sigmoid(x: float) -> float:
    """1/(1 + e^{−x})."""
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def soft(x: float) -> float:
    """log(1 + eˣ)."""
    return x + math.log1p(math.exp(-x)) if x > 0 else math.log1p(math.exp(x))


def softplus(o: Operation) -> Range:
    """log(1 + e^{βx})/β, which increases whatever the sign of β, or x itself where βx is beyond the threshold."""
    a, beta, threshold = o.range("self"), o["beta"], o["threshold"]
    numbers = all(isinstance(n, int | float) and math.isfinite(n) for n in (beta, threshold))
    if not numbers or beta == 0 or not a.finite:
        return UNKNOWN
    scaled = o.rounded(times(a, of_number(beta)), 2)
    smooth = Range(max(near(soft)(scaled.low)[0], 0.0), near(soft)(scaled.high)[1], True)
    found = o.rounded(times(smooth, reciprocal(of_number(beta))), FUNCTION)
    if scaled.high > threshold:
        cut = o.rounded(times(of_number(threshold), reciprocal(of_number(beta))), FUNCTION)
        kept = (max(a.low, min(cut.low, a.high)), a.high) if beta > 0 else (a.low, min(a.high, max(cut.high, a.low)))
        found = union(found, Range(*kept))
    return Range(found.low, found.high, beta > 0 and (threshold >= 0 or a.positive))


def wave(o: Operation) -> Range:
    """Sine and cosine."""
    return Range(-1.0, 1.0) if o.range("self").finite else UNKNOWN  # sin ∞ is no number


def gated(least: float) -> Callable[[Operation], Range]:
    """GELU in both forms, SiLU, Mish: from their minimum to max(x, 0)."""

    def rule(o: Operation) -> Range:
        a = o.range("self")
        if not a.finite:
            return UNKNOWN
        return Range(least if a.low < 0 else 0.0, max(a.high, 0.0), a.positive)

    return rule


def logarithm(o: Operation) -> Range:
    """Of a positive argument; else it may be no number."""
    a = o.range("self")
    if not (a.positive or a.low > 0):
        return UNKNOWN
    low = near(math.log)(a.low)[0] if a.low > 0 else -INFINITY
    high = near(math.log)(a.high)[1] if 0 < a.high < INFINITY else INFINITY
    return Range(low, high, a.low > 1, a.finite)


def clamped(o: Operation) -> Range:
    """Between limits, which may be numbers or tensors."""
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


def leaky(o: Operation) -> Range:
    """x from 0 on, slope·x below, whatever the sign of the slope."""
    slope, a = o["negative_slope"], o.range("self")
    if not isinstance(slope, int | float):
        return UNKNOWN
    parts = []
    if a.low < 0:
        parts.append(times(Range(a.low, min(a.high, 0.0), False, a.finite), of_number(slope)))
    if a.high >= 0:
        parts.append(Range(max(a.low, 0.0), a.high, a.positive, a.finite))
    return union(*parts)
