"""`Estimate`: a number with its error, how it prints, and the arithmetic that leaves its error known. No torch."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, SupportsFloat

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from villani.errors import InputError, is_number
from villani.outwards import UNAVAILABLE
from villani.results import Content, Result, numbers

Array = NDArray[np.float64]
Status = Literal["certified", "statistical", "estimated", "as-claimed", "refuted"]

_TEXT = re.compile(r"(?:.?[<>=^])?\d*s?", re.DOTALL)  # a format of a text rather than of numbers


class Limits:
    """The interval of an estimate at a level, where it is no t-interval: data, so that it can be compared and saved."""

    def __call__(self, level: float) -> tuple[float, float]:
        """(low, high) at a level in (0, 1)."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False, repr=False)
class Estimate(Result):
    """A number, its standard error, and how it may be used.

        f"{estimate}"  # −3.1 ± 0.2, rounded by its own error; f"{estimate:.4g}" formats both numbers so
        float(estimate), 2 * estimate + 1  # the value alone; exact numbers move the error as they should

    Attributes:
        value: the estimate.
        sem: its standard error; 0 for a number that is not sampled.
        n: groups behind it.
        status: THEORY.md (top): certified | statistical | estimated | as-claimed | refuted.
        degrees_of_freedom: of the t-interval; n − 1 unless given.
        parts: addends of `value`, by name, where it is a sum.
        limits: level → interval, where a t-interval would not hold its level.

    The interval is a Student t-interval unless `limits` are given: its level is approximate, and it covers what was
    sampled (data and probes), not what was held fixed (the parameters, the corpus).
    """

    value: float
    sem: float
    n: int
    status: Status
    degrees_of_freedom: float | None = None
    parts: Mapping[str, "Estimate"] = field(default_factory=dict)
    limits: Limits | Callable[[float], tuple[float, float]] | None = None

    __array_ufunc__ = None  # numpy's numbers leave arithmetic to the methods below

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Two-sided interval at `level` in (0, 1); a point when nothing was sampled."""
        if not 0 < level < 1:
            raise ValueError(f"level={level}: expected a number between 0 and 1")
        if self.limits is not None:
            return self.limits(level)
        if self.sem == 0:
            return self.value, self.value
        freedom = self.n - 1 if self.degrees_of_freedom is None else self.degrees_of_freedom
        half = float(stdtrit(freedom, 0.5 + level / 2)) * self.sem
        return self.value - half, self.value + half

    @property
    def exact(self) -> bool:
        """Whether nothing was sampled: no error, and no interval but the point."""
        return self.sem == 0 and self.limits is None and self.status == "certified"

    def __float__(self) -> float:
        return float(self.value)

    def __str__(self) -> str:
        if math.isfinite(self.sem):
            return str(numbers().format_uncertain(float(self.value), float(self.sem)))
        return f"{numbers().format_number(float(self.value))} ± {UNAVAILABLE}"

    def __format__(self, specification: str) -> str:
        if _TEXT.fullmatch(specification):
            return format(str(self), specification)
        value = format(float(self.value), specification)
        return value if self.exact else f"{value} ± {format(float(self.sem), specification)}"

    def __repr__(self) -> str:
        if self.exact:
            return f"Estimate({self}, exact, {self.status})"
        low, high = map(float, self.interval())
        known = f"95 % in {numbers().format_interval(low, high)}"
        return f"Estimate({self}, {known if low < high else 'error not known'}, {self.status}, n = {self.n})"

    def __neg__(self) -> "Estimate":
        return self._linear(-1.0, 0.0)

    def __pos__(self) -> "Estimate":
        return self

    def __add__(self, other: Any) -> "Estimate":
        pair = self._pair(other, "+")
        return NotImplemented if pair is None else pair[0]._linear(1.0, pair[1])

    __radd__ = __add__

    def __sub__(self, other: Any) -> "Estimate":
        pair = self._pair(other, "−")
        if pair is None:
            return NotImplemented
        return self._linear(1.0, -pair[1]) if pair[0] is self else pair[0]._linear(-1.0, pair[1])

    def __rsub__(self, other: Any) -> "Estimate":
        pair = self._pair(other, "−")
        return NotImplemented if pair is None else self._linear(-1.0, pair[1])

    def __mul__(self, other: Any) -> "Estimate":
        pair = self._pair(other, "·")
        return NotImplemented if pair is None else pair[0]._linear(pair[1], 0.0)

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> "Estimate":
        pair = self._pair(other, "/")
        if pair is None:
            return NotImplemented
        if pair[0] is not self:
            return pair[0].__rtruediv__(pair[1])
        if pair[1] == 0:
            raise InputError("an estimate over 0: expected a number that is not 0")
        return self._linear(1.0, 0.0, pair[1])

    def __rtruediv__(self, other: Any) -> "Estimate":
        if self._pair(other, "/") is None:
            return NotImplemented
        if not self.exact:
            raise InputError(f"1/({self}) is not linear, so that its error does not follow from this one: {_INSTEAD}")
        if self.value == 0:
            raise InputError("a number over an exact 0: expected one that is not 0")
        return exact(float(other) / self.value, self.n)

    def __pow__(self, other: Any) -> "Estimate":
        raise InputError(f"({self}) to a power is not linear, so that its error does not follow: {_INSTEAD}")

    __rpow__ = __pow__

    def _pair(self, other: Any, sign: str) -> "tuple[Estimate, float] | None":
        """Which of two is the estimate, and the exact number beside it; None where the other is no number."""
        if isinstance(other, Estimate):
            if other.exact:
                return self, _number(other.value)
            if self.exact:
                return other, _number(self.value)
            raise InputError(
                f"({self}) {sign} ({other}): the covariance of two estimates is not known to them: {_INSTEAD}"
            )
        if not is_number(other):
            return None
        return self, _number(other)

    def _linear(self, factor: float, offset: float, divisor: float = 1.0) -> "Estimate":
        """factor·x/divisor + offset: its error and interval follow exactly, and its parts where they still add up."""

        def moved(x: float) -> float:
            return factor * x / divisor + offset

        value, sem = moved(self.value), abs(factor * self.sem / divisor)
        before, after = (math.isfinite(x) for x in (self.value, self.sem)), (math.isfinite(x) for x in (value, sem))
        if any(was and not now for was, now in zip(before, after, strict=True)):
            raise InputError(f"{factor:g}·({self})/{divisor:g} + {offset:g} is beyond what floats hold")
        if factor == 0:
            return exact(value, self.n)
        scale = {} if offset else {name: part._linear(factor, 0.0, divisor) for name, part in self.parts.items()}
        limits = None if self.limits is None else ScaledLimits(self.limits, factor, offset, divisor)
        return replace(self, value=value, sem=sem, parts=scale, limits=limits)


_INSTEAD = "use measurement.propagate(function) of what one measurement has, or float() for the values alone"


@dataclass(frozen=True, eq=False, repr=False)
class ScaledLimits(Content, Limits):
    """Those of factor·x/divisor + offset."""

    limits: Limits | Callable[[float], tuple[float, float]]
    factor: float
    offset: float
    divisor: float

    def __call__(self, level: float) -> tuple[float, float]:
        """The same level for the same values."""
        low, high = sorted(self.factor * end / self.divisor + self.offset for end in self.limits(level))
        return low, high


def _number(value: SupportsFloat) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise InputError(f"{number} beside an estimate: expected a finite number")
    return number


def exact(value: float, n: int = 1) -> Estimate:
    """A number that needs no sampling: exact up to floating-point rounding."""
    return Estimate(float(value), 0.0, n, "certified")
