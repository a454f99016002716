"""Bounds on a parsed function and its derivatives over boxes: the tree of `expressions.py` on intervals.

Every operation rounds outwards (`nextafter`); elementary functions are widened by several units in the last place,
which NumPy's keep. What is returned holds for every real point of the box, so that nothing can hide between points
that were looked at. A box on which the function is not everywhere real gives infinite bounds. Boxes stay within ±1e100
(`REACH`).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from villani.theory.expressions import (
    FUNCTIONS,
    Applied,
    Array,
    Coordinate,
    Expression,
    LogSumExp,
    Number,
    Power,
    Product,
    Sum,
    Tree,
)

REACH = 1e100  # |w| up to which statements "everywhere" are made: beyond, squares leave the range of floats
_ULPS = 8 * np.finfo(float).eps  # relative error that an elementary function is trusted with
_TINY = 1e-300  # and absolute, where it underflows
_WAVE = 6.28  # length on which a sine has taken all its values, nearly


@dataclass(frozen=True)
class Interval:
    """Numbers between `low` and `high`, elementwise; neither is ever nan."""

    low: Array
    high: Array

    def __add__(self, other: "Interval") -> "Interval":
        low, high = self.low + other.low, self.high + other.high
        exact = (self.low == 0) | (other.low == 0), (self.high == 0) | (other.high == 0)
        return Interval(
            np.where(exact[0], low, np.nextafter(low, -np.inf)), np.where(exact[1], high, np.nextafter(high, np.inf))
        )

    def __neg__(self) -> "Interval":
        return Interval(-self.high, -self.low)

    def __sub__(self, other: "Interval") -> "Interval":
        return self + -other

    def __mul__(self, other: "Interval") -> "Interval":
        a, b, c, d = self.low, self.high, other.low, other.high
        products = a * c, a * d, b * c, b * d  # 0·∞ is nan, and another of the four is then the 0 that counts
        low = np.nextafter(np.fmin(np.fmin(products[0], products[1]), np.fmin(products[2], products[3])), -np.inf)
        high = np.nextafter(np.fmax(np.fmax(products[0], products[1]), np.fmax(products[2], products[3])), np.inf)
        low = np.where(((a >= 0) & (c >= 0)) | ((b <= 0) & (d <= 0)), np.maximum(low, 0.0), low)
        high = np.where(((a >= 0) & (d <= 0)) | ((b <= 0) & (c >= 0)), np.minimum(high, 0.0), high)
        zero = ((a == 0) & (b == 0)) | ((c == 0) & (d == 0))
        return Interval(np.where(zero, 0.0, low), np.where(zero, 0.0, high))

    def square(self) -> "Interval":
        """x², which is not x·x of two different x."""
        return _power(self, 2.0)

    def scaled(self, factor: float | Array) -> "Interval":
        """Times an exact number."""
        number = np.asarray(factor, dtype=float)
        return self * Interval(number, number)

    def meets(self, other: "Interval") -> "Interval":
        """The intersection of two enclosures of the same numbers."""
        return Interval(np.maximum(self.low, other.low), np.minimum(self.high, other.high))

    @property
    def size(self) -> Array:
        """The largest absolute value."""
        return np.maximum(np.abs(self.low), np.abs(self.high))

    @property
    def least_size(self) -> Array:
        """The least absolute value."""
        return np.maximum(np.maximum(self.low, -self.high), 0.0)


Part = Interval | None  # None: identically 0


@dataclass(frozen=True)
class EnclosedJet:
    """Bounds on value, gradient and Hessian: gradient[i] and hessian[i, j] with i ≤ j, None where identically 0."""

    value: Interval
    gradient: tuple[Part, ...]
    hessian: dict[tuple[int, int], Part]

    def __add__(self, other: "EnclosedJet") -> "EnclosedJet":
        return EnclosedJet(
            self.value + other.value,
            tuple(_plus(a, b) for a, b in zip(self.gradient, other.gradient, strict=True)),
            {key: _plus(part, other.hessian[key]) for key, part in self.hessian.items()},
        )

    def __mul__(self, other: "EnclosedJet") -> "EnclosedJet":
        gradient = tuple(
            _plus(_times(self.value, b), _times(other.value, a))
            for a, b in zip(self.gradient, other.gradient, strict=True)
        )
        hessian = {}
        for (i, j), part in self.hessian.items():
            inner = _plus(_times(self.value, other.hessian[i, j]), _times(other.value, part))
            cross = _times(self.gradient[i], other.gradient[j])
            crossed = cross if i == j else _times(self.gradient[j], other.gradient[i])
            hessian[i, j] = _plus(inner, _plus(cross, crossed))
        return EnclosedJet(self.value * other.value, gradient, hessian)

    def through(self, curve: tuple[Interval, Interval, Interval]) -> "EnclosedJet":
        """f∘self, where `curve` encloses f, f′ and f″ over the values of self."""
        value, slope, bend = curve
        gradient = tuple(_times(slope, part) for part in self.gradient)
        hessian = {}
        for (i, j), part in self.hessian.items():
            a, b = self.gradient[i], self.gradient[j]
            product = a.square() if i == j and a is not None else _times(a, b)
            hessian[i, j] = _plus(_times(slope, part), _times(bend, product))
        return EnclosedJet(value, gradient, hessian)


@dataclass(frozen=True)
class Enclosure:
    """What `enclose` returns: as `EnclosedJet`, every part written out, zeros included, (n,)."""

    value: Interval
    gradient: tuple[Interval, ...]
    hessian: dict[tuple[int, int], Interval]

    @property
    def on_line(self) -> tuple[Interval, Interval, Interval]:
        """Value, slope and bend of a function of one coordinate."""
        return self.value, self.gradient[0], self.hessian[0, 0]


def enclose(function: Expression, low: Array, high: Array) -> Enclosure:
    """Bounds over the boxes [low, high], each (k, n)."""
    count = low.shape[1]
    with np.errstate(all="ignore"):
        found = _enclose(function.tree, low, high)
    zero = Interval(np.zeros(count), np.zeros(count))

    def whole(part: Part) -> Interval:
        if part is None:
            return zero
        return Interval(np.broadcast_to(part.low, count), np.broadcast_to(part.high, count))

    return Enclosure(
        whole(found.value), tuple(map(whole, found.gradient)), {key: whole(p) for key, p in found.hessian.items()}
    )


def _enclose(tree: Tree, low: Array, high: Array) -> EnclosedJet:
    size = len(low)
    none: dict[tuple[int, int], Part] = {(i, j): None for i in range(size) for j in range(i, size)}
    match tree:
        case Number(value):
            return EnclosedJet(Interval(np.array([value]), np.array([value])), (None,) * size, none)
        case Coordinate(index):
            one = Interval(np.ones(1), np.ones(1))
            gradient = tuple(one if i == index else None for i in range(size))
            return EnclosedJet(Interval(low[index], high[index]), gradient, none)
        case Sum(left, right):
            return _enclose(left, low, high) + _enclose(right, low, high)
        case Product(left, right):
            return _enclose(left, low, high) * _enclose(right, low, high)
        case Power(exponent, inner):
            base = _enclose(inner, low, high)
            return base.through(_power_curve(base.value, exponent))
        case Applied("sqrt", inner):
            base = _enclose(inner, low, high)
            return base.through(_power_curve(base.value, 0.5))
        case Applied(function, inner):
            base = _enclose(inner, low, high)
            return base.through(_CURVES[function](base.value))
        case LogSumExp(terms):
            return _log_sum_exp([_enclose(term, low, high) for term in terms])


def _plus(a: Part, b: Part) -> Part:
    return b if a is None else a if b is None else a + b


def _times(a: Part, b: Part) -> Part:
    return None if a is None or b is None else a * b


def _minus(a: Part, b: Part) -> Part:
    return a if b is None else -b if a is None else a - b


def _widened(low: Array, high: Array, nonnegative: bool = False) -> Interval:
    """Room for the error of an elementary function; a bound that is no number is no bound."""
    low = np.where(np.isnan(low), -np.inf, np.nextafter(low - _ULPS * np.abs(low) - _TINY, -np.inf))
    high = np.where(np.isnan(high), np.inf, np.nextafter(high + _ULPS * np.abs(high) + _TINY, np.inf))
    low = np.where(np.isnan(low), -np.inf, low)
    high = np.where(np.isnan(high), np.inf, high)
    return Interval(np.maximum(low, 0.0) if nonnegative else low, high)


def _extremes(function: str, order: int, turns: tuple[float, ...], nonnegative: bool) -> Callable[[Interval], Interval]:
    """Bounds on a derivative of an elementary function that is monotone between its turning points."""
    curve = FUNCTIONS[function]
    top = [float(curve(np.array([turn]))[order][0]) for turn in turns]

    def bounds(x: Interval) -> Interval:
        left, right = (
            np.nan_to_num(curve(end)[order], nan=0.0, posinf=np.inf, neginf=-np.inf) for end in (x.low, x.high)
        )
        low, high = np.minimum(left, right), np.maximum(left, right)
        for turn, value in zip(turns, top, strict=True):
            inside = (x.low <= turn) & (turn <= x.high)
            low = np.where(inside, np.minimum(low, value), low)
            high = np.where(inside, np.maximum(high, value), high)
        return _widened(low, high, nonnegative)

    return bounds


_THIRD, _ROOT, _SIGMOID = 1 / np.sqrt(3), 1 / np.sqrt(2), float(np.log(2 + np.sqrt(3)))
_STEEPEST = float(np.arctanh(_THIRD))
# function → for value, slope and bend: where it turns, and whether it is never negative
_TURNS: dict[str, tuple[tuple[tuple[float, ...], bool], ...]] = {
    "exp": (((), True), ((), True), ((), True)),
    "tanh": (((), False), ((0.0,), True), ((-_STEEPEST, _STEEPEST), False)),
    "cosh": (((0.0,), True), ((), False), ((0.0,), True)),
    "sinh": (((), False), ((0.0,), True), ((), False)),
    "atan": (((), False), ((0.0,), True), ((-_THIRD, _THIRD), False)),
    "erf": (((), False), ((0.0,), True), ((-_ROOT, _ROOT), False)),
    "sigmoid": (((), True), ((0.0,), True), ((-_SIGMOID, _SIGMOID), False)),
    "softplus": (((), True), ((), True), ((0.0,), True)),
    "logcosh": (((0.0,), True), ((), False), ((0.0,), True)),
}


def _turning(function: str) -> Callable[[Interval], tuple[Interval, Interval, Interval]]:
    value, slope, bend = (
        _extremes(function, order, turns, nonnegative) for order, (turns, nonnegative) in enumerate(_TURNS[function])
    )
    return lambda x: (value(x), slope(x), bend(x))


def _wave(x: Interval, phase: float) -> Interval:
    """cos(x − phase)."""
    value = np.cos(np.where(np.isfinite(x.low), x.low, 0.0) - phase)
    other = np.cos(np.where(np.isfinite(x.high), x.high, 0.0) - phase)
    slack = 1e-14 * (1 + x.size)

    def holds(at: float) -> NDArray[np.bool_]:
        first = np.ceil((x.low - phase - at - slack) / (2 * np.pi))
        last = np.floor((x.high - phase - at + slack) / (2 * np.pi))
        everything = ~(x.high - x.low < _WAVE) | ~(x.size < 1e12)
        found: NDArray[np.bool_] = everything | (last >= first)
        return found

    error = slack  # of x − phase, which moves the cosine by no more
    low = np.where(holds(np.pi), -1.0, np.minimum(value, other) - error)
    high = np.where(holds(0.0), 1.0, np.maximum(value, other) + error)
    return Interval(np.maximum(low, -1.0), np.minimum(high, 1.0))


def _sine(x: Interval) -> tuple[Interval, Interval, Interval]:
    value = _wave(x, np.pi / 2)
    return value, _wave(x, 0.0), -value


def _cosine(x: Interval) -> tuple[Interval, Interval, Interval]:
    value = _wave(x, 0.0)
    return value, -_wave(x, np.pi / 2), -value


def _logarithm(x: Interval) -> tuple[Interval, Interval, Interval]:
    """ln x; no bounds where x may be 0 or less."""
    real = x.low > 0
    low, high = np.where(real, x.low, 1.0), np.where(real, x.high, 1.0)
    value, slope = _widened(np.log(low), np.log(high)), _widened(1 / high, 1 / low, True)
    curve = value, slope, -slope.square()
    unknown = (
        Interval(np.where(real, part.low, -np.inf), np.where(real, part.high, np.inf)) for part in curve
    )  # fmt: skip
    first, second, third = unknown
    return first, second, third


def _absolute(x: Interval) -> tuple[Interval, Interval, Interval]:
    """|x|: on either side of 0 it is x or −x; across 0 the second derivative has an atom."""
    across = (x.low < 0) & (x.high > 0)
    slope = Interval(np.where(x.low >= 0, 1.0, -1.0), np.where(x.high <= 0, -1.0, 1.0))
    slope = Interval(np.where(x.low >= 0, 1.0, slope.low), np.where(x.low >= 0, 1.0, slope.high))
    return Interval(x.least_size, x.size), slope, Interval(np.zeros_like(x.low), np.where(across, np.inf, 0.0))


def _power(x: Interval, exponent: float) -> Interval:
    """x**exponent; no bounds where it is not real everywhere."""
    if exponent == 0:
        return Interval(np.ones_like(x.low), np.ones_like(x.low))
    whole = float(exponent).is_integer()
    even = whole and exponent % 2 == 0
    ends = x.low**exponent, x.high**exponent
    low, high = np.minimum(*ends), np.maximum(*ends)
    across = (x.low <= 0) & (x.high >= 0)
    if exponent > 0 and even:
        low = np.where(across, 0.0, low)
    elif exponent < 0 and whole:
        low, high = np.where(across, np.fmin(low, high) if even else -np.inf, low), np.where(across, np.inf, high)
    elif not whole:
        unreal = (x.low < 0) | ((x.low == 0) & (exponent < 0))
        low = np.where(unreal, np.where(x.low == 0, np.fmin(low, high), -np.inf), low)
        high = np.where(unreal, np.inf, high)
    found = _widened(low, high)
    nonnegative = even | (x.low >= 0)
    return Interval(np.where(nonnegative, np.maximum(found.low, 0.0), found.low), found.high)


def _power_curve(x: Interval, exponent: float) -> tuple[Interval, Interval, Interval]:
    p = exponent
    value, slope = _power(x, p), _power(x, p - 1).scaled(p)
    bend = _power(x, p - 2).scaled(p * (p - 1)) if p != 1 else _power(x, 0.0).scaled(0.0)
    return value, slope, bend


def _log_sum_exp(jets: list[EnclosedJet]) -> EnclosedJet:
    """ln Σ e^{z_i}, with p = softmax(z) and a term of reference r, since Σ p_i = 1.

    Gradient ∇z_r + Σ p_i (∇z_i − ∇z_r); Hessian ∇²z_r + Σ p_i (∇²z_i − ∇²z_r) + Σ_{i<j} p_i p_j ddᵀ, d = ∇z_i − ∇z_j.
    """
    ends = []
    for side in ("low", "high"):
        exponents = np.array(np.broadcast_arrays(*(getattr(jet.value, side) for jet in jets)))
        top = exponents.max(axis=0)
        level = np.where(np.isfinite(top), top, 0.0)
        total = level + np.log(np.exp(exponents - level).sum(axis=0))
        ends.append(np.where(np.isfinite(top), total, top))
    low, high = (np.where(np.isfinite(end), _ULPS * (np.abs(end) + len(jets)), 0.0) for end in ends)
    value = _widened(ends[0] - low, ends[1] + high)
    shares = []
    for i, jet in enumerate(jets):
        others = [other.value - jet.value for j, other in enumerate(jets) if j != i]
        odds = Interval(
            1 + sum((np.exp(o.low) for o in others), np.zeros(1)),
            1 + sum((np.exp(o.high) for o in others), np.zeros(1)),
        )
        share = _widened(1 / odds.high * (1 - len(jets) * _ULPS), 1 / odds.low * (1 + len(jets) * _ULPS), True)
        shares.append(Interval(share.low, np.minimum(share.high, 1.0)))
    size = len(jets[0].gradient)
    base = jets[0]
    gradient: list[Part] = list(base.gradient)
    hessian = dict(base.hessian)
    for share, jet in zip(shares[1:], jets[1:], strict=True):
        for i in range(size):
            gradient[i] = _plus(gradient[i], _times(share, _minus(jet.gradient[i], base.gradient[i])))
        for key in hessian:
            hessian[key] = _plus(hessian[key], _times(share, _minus(jet.hessian[key], base.hessian[key])))
    quarter = Interval(np.zeros(1), np.full(1, 0.25))
    for a in range(len(jets)):
        for b in range(a):
            both = (shares[a] * shares[b]).meets(quarter)
            apart = [_minus(jets[a].gradient[i], jets[b].gradient[i]) for i in range(size)]
            for i, j in hessian:
                left, right = apart[i], apart[j]
                product = left.square() if i == j and left is not None else _times(left, right)
                hessian[i, j] = _plus(hessian[i, j], _times(both, product))
    return EnclosedJet(value, tuple(gradient), hessian)


_CURVES: dict[str, Callable[[Interval], tuple[Interval, Interval, Interval]]] = {
    **{name: _turning(name) for name in _TURNS},
    "sin": _sine,
    "cos": _cosine,
    "log": _logarithm,
    "abs": _absolute,
}


def enclosed_function(name: str, x: Interval) -> tuple[Interval, Interval, Interval]:
    """Bounds on an elementary function, its slope and its bend over intervals."""
    return _CURVES[name](x)
