"""A certified lower bound on C_P: Var f/E‖∇f‖² of one function, by interval quadrature in one or two coordinates.

On each cell g = g(m) + ∇g·(x − m) + ½(x − m)ᵀ∇²g(ξ)(x − m), so that ∫g is volume·g(m) within the interval of ∇²g, and
cells are halved where that is widest. Beyond the box U ≥ β(inf L + (λ/2)‖θ‖²), with inf L from intervals. The function
is u·θ, or tanh(c·u·θ), which is nearly constant on either side of a barrier.
"""

from dataclasses import dataclass

import numpy as np

from villani.theory.enclosures import REACH, EnclosedJet, Interval, Part, enclose, enclosed_function
from villani.theory.expressions import Array
from villani.theory.potential import Potential

_CELLS = 150_000
_CLOSE = 1e-4  # relative, of the integrals


@dataclass(frozen=True)
class _Test:
    """f = s, or tanh(rate·s) with rate > 0, of s = u·θ − centre; `least` is about min U."""

    direction: Array
    centre: float
    rate: float
    least: float


def poincare_floor(case: Potential, direction: Array, box: tuple[Array, Array]) -> float:
    """A certified lower bound on C_P of the core (C9); 0 if there is none.

    Args:
        case: F, λ > 0, a core without radial volume.
        direction: u, (k,), about a unit vector.
        box: corners (k,) outside which hardly any mass lies.
    """
    if case.weight_decay == 0 or case.shape == "radial":
        return 0.0
    low, high = (np.asarray(corner, dtype=float) for corner in box)
    lowest = _infimum(case)
    if not np.isfinite(lowest):
        return 0.0
    test = _best_test(case, direction, low, high)
    mass, first, second, slope = _integrals(case, test, low, high)
    beyond = _outside(case, lowest, test, low, high)
    with np.errstate(all="ignore"):
        # Var f ≥ ∫f²/Z − (∫f/Z)², and E f′² = ∫f′²/Z, times ‖u‖²
        variance = second.low - (first.size + beyond[1]) ** 2 / max(float(mass.low), 1e-300)
        energy = (slope.high + beyond[2]) * float(test.direction @ test.direction)
        if not test.rate:
            energy = (mass.high + beyond[0]) * float(test.direction @ test.direction)
        floor = float(variance / energy) * (1 - 1e-12)
    return floor if np.isfinite(floor) and floor > 0 else 0.0


def _best_test(case: Potential, direction: Array, low: Array, high: Array) -> _Test:
    """The function of the largest quotient on a rough grid."""
    axes = (np.linspace(a, b, 301) for a, b in zip(low, high, strict=True))
    grid = np.stack(np.meshgrid(*axes)).reshape(len(low), -1)
    energy = case.energy(grid)
    least = float(np.nanmin(energy))
    mass = np.nan_to_num(np.exp(-(energy - least)))
    mass /= mass.sum()
    s = direction @ grid
    centre = float(s @ mass)
    s = s - centre
    spread = float(np.sqrt(s**2 @ mass))
    best = float(s**2 @ mass), 0.0
    for rate in np.geomspace(0.5, 32, 13) / spread:
        f = np.tanh(rate * s)
        quotient = float((f**2 @ mass - (f @ mass) ** 2) / ((rate * (1 - f**2)) ** 2 @ mass))
        best = max(best, (quotient, float(rate)))
    return _Test(direction, centre, best[1], least)


def _infimum(case: Potential) -> float:
    """A lower bound on L within ±`REACH`."""
    span = np.full((case.core, 1), REACH)
    return float(enclose(case.loss, -span, span).value.low[0])


def _integrals(case: Potential, test: _Test, low: Array, high: Array) -> list[Interval]:
    """∫q e^{least − U} over the box for q = 1, f, f² and f′²."""
    size = len(low)
    grid = np.meshgrid(*(np.linspace(a, b, 17)[:-1] for a, b in zip(low, high, strict=True)), indexing="ij")
    starts = np.array([part.ravel() for part in grid])
    widths = np.broadcast_to(((high - low) / 16)[:, None], starts.shape).copy()
    kept: list[Array] = []
    spent = 0
    while True:
        spent += starts.shape[1]
        found = _cells(case, test, starts, widths)  # (8, n): low and high of each integral
        if spent > _CELLS:
            kept.append(found)
            break
        gap = found[1::2] - found[::2]
        size_ = np.maximum(np.abs(found).sum(axis=1)[1::2] + sum(np.abs(k).sum(axis=1)[1::2] for k in kept), 1e-300)
        share = (gap / size_[:, None])[[0, 2, 3]].max(axis=0)
        again = share > _CLOSE / 2000
        kept.append(found[:, ~again])
        if not again.any():
            break
        axis = np.argmax(widths[:, again], axis=0) if size > 1 else np.zeros(int(again.sum()), dtype=int)
        starts, widths = starts[:, again], widths[:, again]
        column = np.arange(starts.shape[1])
        widths[axis, column] /= 2
        other = starts.copy()
        other[axis, column] += widths[axis, column]
        starts, widths = np.concatenate([starts, other], axis=1), np.concatenate([widths, widths], axis=1)
    every = np.concatenate(kept, axis=1)
    room = every.shape[1] * np.finfo(float).eps * np.abs(every).sum(axis=1)
    total = every.sum(axis=1)
    return [Interval(total[i] - room[i], total[i + 1] + room[i + 1]) for i in range(0, len(total), 2)]


def _cells(case: Potential, test: _Test, starts: Array, widths: Array) -> Array:
    """Low and high of every integral over every cell, (8, n)."""
    middle = starts + widths / 2
    room = 4 * np.spacing(np.abs(starts) + widths)
    thin = _jets(case, test, middle - room, middle + room)
    wide = _jets(case, test, starts - room, starts + widths + room)
    volume = Interval(np.prod(widths - 2 * room, axis=0), np.prod(widths + 2 * room, axis=0))
    rows = []
    with np.errstate(all="ignore"):
        for at, over in zip(thin, wide, strict=True):
            mean = at.value
            for (i, j), part in over.hessian.items():
                if part is None:
                    continue
                if i == j:
                    mean = mean + part.scaled(widths[i] ** 2 / 24 * (1 + 1e-15))
                else:
                    worst = part.size * widths[i] * widths[j] / 16 * (1 + 1e-14)
                    mean = mean + Interval(-worst, worst)
            first = over.value.low, over.value.high  # never worse than the range
            whole = mean.meets(Interval(*first)) * volume
            rows += [whole.low, whole.high]
    return np.array([np.where(np.isnan(row), side * np.inf, row) for row, side in zip(rows, (-1, 1) * 4, strict=True)])


def _jets(case: Potential, test: _Test, low: Array, high: Array) -> list[EnclosedJet]:
    """q e^{least − U} over boxes (k, n) for q = 1, f, f² and f′²."""
    size = len(low)
    with np.errstate(all="ignore"):
        loss = enclose(case.loss, low, high)
        none: dict[tuple[int, int], Part] = dict.fromkeys(loss.hessian)
        exact = [
            Interval(np.array([float(x)]), np.array([float(x)])) for x in (case.weight_decay, -case.beta, test.least)
        ]
        decay, minus, shift = exact
        value = loss.value
        gradient: list[Part] = list(loss.gradient)
        hessian: dict[tuple[int, int], Part] = dict(loss.hessian)
        line = Interval(np.array([-test.centre]), np.array([-test.centre]))
        for i in range(size):
            w = Interval(low[i], high[i])
            value = value + w.square() * decay.scaled(0.5)
            part, bend = gradient[i], hessian[i, i]
            gradient[i] = w * decay if part is None else part + w * decay
            hessian[i, i] = decay if bend is None else bend + decay
            line = line + w.scaled(float(test.direction[i]))
        exponent = EnclosedJet(
            value * minus + shift,
            tuple(None if part is None else part * minus for part in gradient),
            {key: None if part is None else part * minus for key, part in hessian.items()},
        )
        density = exponent.through(enclosed_function("exp", exponent.value))
        slopes = tuple(Interval(np.array([float(u)]), np.array([float(u)])) for u in test.direction)
        f, slope = EnclosedJet(line, slopes, none), constant(1.0, none, size)
        if test.rate:
            inner = constant(test.rate, none, size) * f
            f = inner.through(enclosed_function("tanh", inner.value))
            slope = constant(test.rate, none, size) * (slope + constant(-1.0, none, size) * f * f)
        return [density, f * density, f * f * density, slope * slope * density]


def constant(value: float, none: dict[tuple[int, int], Part], size: int) -> EnclosedJet:
    """A number as a jet."""
    return EnclosedJet(Interval(np.array([value]), np.array([value])), (None,) * size, none)


def _outside(case: Potential, lowest: float, test: _Test, low: Array, high: Array) -> tuple[float, float, float]:
    """Upper bounds on ∫q e^{least − U} beyond the box for q = 1, |f| and f′², from the Gaussian of the decay."""
    rate, k = case.beta * case.weight_decay, case.core
    radius = float(np.minimum(-low, high).min())
    if not radius > 0:
        return np.inf, np.inf, np.inf
    # integrals of e^{−rate·x²/2}, and of x² times that, over the line and beyond ±radius
    one, gone = np.sqrt(2 * np.pi / rate), np.exp(-rate * radius**2 / 2)
    far, far_square = 2 * gone / (rate * radius), 2 * gone * (radius / rate + 1 / (rate**2 * radius))
    with np.errstate(over="ignore"):
        scale = np.exp(test.least - case.beta * lowest) * (1 + 1e-9)
    mass = scale * k * far * one ** (k - 1)
    square = scale * k * (far_square * one ** (k - 1) + (k - 1) * far * one ** (k - 1) / rate)
    if test.rate:
        return float(mass), float(mass), float(mass * test.rate**2)
    length = float(np.abs(test.direction).sum()) + abs(test.centre)
    return float(mass), float(length * (mass + square)), float(mass)  # |s| ≤ length·(1 + ‖θ‖²)
