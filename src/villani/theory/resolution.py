"""Proofs about a law exp(−U) on a line: that a mesh sees all of U, and that nothing that counts lies beyond its ends.

**Inside.** A solver knows U at the nodes of its panels, hence solves for the polynomials through them. Where intervals
prove |U − polynomial| ≤ ε on every panel, Holley–Stroock gives C_P(U)/C_P(polynomials) ∈ [e^{−2ε}, e^{2ε}].

**Outside.** Let B be the mesh, T a tail beyond an end b, A = sup_x ∫_b^x e^U ∫_x^∞ e^{−U}, and f the slowest mode on B,
of variance 1. Then C_P(B) ≤ C_P (extend f by constants), and if 8A ≤ C_P(B), C_P ≤ C_P(B)·(1 + 2μ(T)f(b)² + …): by
Muckenhoupt ∫_T u² ≤ 4A ∫_T u′² where u(b) = 0, so that the form of f on T is at least −2μ(T)f(b)²/C_P, to first order
in a number that is required to be tiny. D(x) = e^{−U(x)} ∫_b^x e^U and R(x) = e^{U(x)} ∫_x^∞ e^{−U} obey linear
recursions in lower bounds on the outward slope, so that wide cells do where U rises.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.polynomial import legendre
from numpy.typing import NDArray

from villani.theory.enclosures import REACH, Interval, enclose
from villani.theory.expressions import Array, parse
from villani.theory.potential import Potential

_CELLS = 200_000  # of all panels of a mesh together
_TAIL_CELLS = 20_000
_FALL = 0.25  # nats that U may fall by across a cell of a tail, as far as is known
_LOGARITHM = parse("log(r)")
_NARROWEST = 2.0**-40  # of a panel


def enclosed_energy(
    case: Potential, low: Array, high: Array, volume: bool = False
) -> tuple[Interval, Interval, Interval]:
    """Bounds on U, U′ and U″ over the cells [low, high] (n,) of a line; `volume`: of U − (d − 1) ln r."""
    value, slope, bend = enclose(case.loss, low[None], high[None]).on_line
    w = Interval(low, high)
    decay, beta = case.weight_decay, case.beta
    with np.errstate(all="ignore"):
        value = (value + w.square().scaled(decay).scaled(0.5)).scaled(beta)
        slope = (slope + w.scaled(decay)).scaled(beta)
        bend = (bend + Interval(np.array(decay), np.array(decay))).scaled(beta)
        if volume:
            logs = enclose(_LOGARITHM, low[None], high[None]).on_line
            power = 1.0 - case.dimension
            value, slope, bend = (
                part + log.scaled(power) for part, log in zip((value, slope, bend), logs, strict=True)
            )
    return value, slope, bend


@dataclass
class Proof:
    """What intervals show of U on the panels of a mesh; `panels` asks it panel by panel.

    Attributes:
        case: whose U.
        target: nats that U and the polynomial may differ by.
        worst: what they differ by at most, on all panels that were asked about; inf where that was not shown.
        volume: whether the panels are of U − (d − 1) ln r.
        cells: that may still be looked at.
    """

    case: Potential
    target: float
    volume: bool = False
    worst: float = 0.0
    cells: int = field(default=_CELLS)

    @property
    def error(self) -> float:
        """Relative, of C_P."""
        return float(np.expm1(2 * self.worst))

    def sees(self, panels: Array, coefficients: Array) -> NDArray[np.bool_]:
        """Which panels (m, 2) hold nothing that the Legendre series (m, p) of U misses; the others want halving."""
        good: NDArray[np.bool_] = np.ones(len(panels), dtype=bool)
        panel = np.arange(len(panels)).repeat(4)
        start = np.tile(np.linspace(-1, 1, 5)[:-1], len(panels))
        width = np.full(len(start), 0.5)
        series: list[Array] = [coefficients]
        for _ in range(3):
            series.append(np.asarray(legendre.legder(series[-1], axis=1), dtype=np.float64))
        order = coefficients.shape[1]
        degrees = np.arange(order)
        size = np.abs(coefficients)
        fourth = size @ np.prod([(degrees + k) * np.maximum(degrees - k + 1, 0) / (2 * k) for k in range(1, 5)], axis=0)
        middle, half = panels.mean(axis=1), np.diff(panels)[:, 0] / 2
        room = 2 * np.spacing(np.abs(panels).max(axis=1))  # the rounding of a point
        shaky = 1e-14 * size.sum(axis=1) + 4 * room / half * (size @ degrees**2)  # and of the values at the nodes
        while len(panel):
            self.cells -= len(panel)
            if self.cells < 0:
                self.worst = np.inf
                return good
            centre = start + width / 2
            at, wide, unit = middle[panel], half[panel], room[panel]
            x, left, right = at + wide * centre, at + wide * start, at + wide * (start + width)
            value, slope, _ = enclosed_energy(self.case, *self._within(at, x - unit, x + unit), self.volume)
            _, _, bend = enclosed_energy(self.case, *self._within(at, left - unit, right + unit), self.volume)
            here = [_series(s, panel, centre) for s in series]
            slack = 1e-15 * size[panel]
            error = _near(here[0], slack.sum(axis=1))
            tilt = _near(here[1], slack @ degrees**2)
            curl = _near(
                here[2], np.abs(here[3]) * width / 2 + fourth[panel] * width**2 / 8 + slack @ degrees**4
            )  # fmt: skip
            with np.errstate(all="ignore"):
                missed = value - error
                rest = (slope.scaled(wide) - tilt).size * width / 2
                rest = rest + (bend.scaled(wide).scaled(wide) - curl).size * width**2 / 8
            bound = missed.size + rest
            seen = missed.least_size > self.target + shaky[panel]
            narrow = half[panel] < 1e3 * unit
            good[panel[seen & ~narrow]] = False
            done = (bound <= self.target) | (rest <= missed.size / 4) | (width < _NARROWEST)
            going = good[panel]
            if (going & done).any():
                self.worst = max(self.worst, float(bound[going & done].max()))
            again = going & ~done
            pieces = np.clip(np.cbrt(bound[again] / self.target), 2, 8)
            pieces = np.exp2(np.ceil(np.log2(np.where(np.isfinite(pieces), pieces, 8)))).astype(int)
            panel = panel[again].repeat(pieces)
            begin, small = start[again].repeat(pieces), (width[again] / pieces).repeat(pieces)
            first = np.cumsum(pieces) - pieces
            start, width = begin + (np.arange(len(begin)) - first.repeat(pieces)) * small, small
        return good

    def _within(self, middle: Array, low: Array, high: Array) -> tuple[Array, Array]:
        """Cells without what rounding carried over a kink, which is an edge of panels; `middle` is a panel's."""
        for kink in self.case.breaks:
            low = np.where(middle > kink, np.maximum(low, kink), low)
            high = np.where(middle < kink, np.minimum(high, kink), high)
        return low, high


def _series(coefficients: Array, panel: NDArray[np.intp], at: Array) -> Array:
    """Legendre series of the panels (m, p), each at its own points (n,)."""
    values: Array = np.einsum("np,np->n", coefficients[panel], legendre.legvander(at, coefficients.shape[1] - 1))
    return values


def _near(value: Array, error: Array) -> Interval:
    return Interval(value - error, value + error)


@dataclass(frozen=True)
class Tail:
    """Beyond an end b of a mesh.

    Attributes:
        hardy: A, an upper bound; inf where none was shown.
        mass: μ(T)/ρ(b), an upper bound.
        trouble: the farthest point from which U was not shown to rise outwards; b itself if it rises all along.
        well: the most that U, at the points looked at, falls outwards, in nats: a lower bound on the depth of a well.
        width: of what falls, a lower bound.
    """

    hardy: float
    mass: float
    trouble: float
    well: float
    width: float


def tail(case: Potential, end: float, outwards: int, scale: float, inwards: bool = False) -> Tail:
    """Bounds beyond `end`, to the right (outwards = 1) or left (−1), as far as ±`REACH`.

    Args:
        case: whose U; of a radial law −(d − 1) ln r is added.
        end: b.
        outwards: the direction.
        scale: a length to begin with.
        inwards: the tail ends at 0, the centre of a radial law.
    """
    if inwards:
        steps = end * np.concatenate([[0.0], 1 - 0.5 ** np.arange(1, 50), [1.0]])
    else:
        steps = np.concatenate([[0.0], scale * 2.0 ** np.arange(int(np.log2(REACH / scale)))])
    starts, ends = steps[:-1], steps[1:]
    slopes = _rise(case, end, outwards, starts, ends)
    spent = 0
    with np.errstate(all="ignore"):
        while True:
            bad = ~(slopes * (ends - starts) >= -_FALL) & (ends - starts > 1e-13 * np.abs(ends))
            spent += int(bad.sum())
            if not bad.any() or spent > _TAIL_CELLS:
                break
            middle = (starts[bad] + ends[bad]) / 2
            halves = np.concatenate([starts[bad], middle]), np.concatenate([middle, ends[bad]])
            slopes = np.concatenate([slopes[~bad], _rise(case, end, outwards, *halves)])
            starts, ends = np.concatenate([starts[~bad], halves[0]]), np.concatenate([ends[~bad], halves[1]])
    order = np.argsort(starts)
    starts, ends, slopes = starts[order], ends[order], slopes[order]
    falling = ends[slopes <= 0]
    trouble = end + outwards * (float(falling.max()) if falling.size else 0.0)
    well, width = _fall(case, end + outwards * ends)
    if bad.any():
        return Tail(np.inf, np.inf, trouble, well, width)
    hardy, mass = _muckenhoupt(slopes, ends - starts, inwards)
    return Tail(hardy, mass, trouble, well, width)


def _muckenhoupt(slopes: Array, lengths: Array, ends: bool) -> tuple[float, float]:
    """Upper bounds on A and R(b) from lower bounds on the slope in consecutive cells; `ends`: nothing lies behind."""
    with np.errstate(all="ignore"):
        gain = np.where(slopes == 0, lengths, -np.expm1(-slopes * lengths) / slopes)
        keep = np.exp(-slopes * lengths)
    count = len(slopes)
    before, after = np.zeros(count + 1), np.zeros(count + 1)  # D and R at the edges
    after[-1] = 0.0 if ends else 1 / slopes[-1] if slopes[-1] > 0 else np.inf
    for i in range(count):
        before[i + 1] = gain[i] + keep[i] * before[i]
        j = count - 1 - i
        after[j] = gain[j] + (keep[j] * after[j + 1] if keep[j] > 0 else 0.0)
    product = np.maximum(before[1:], before[:-1]) * np.maximum(after[1:], after[:-1])
    hardy, mass = float(product.max()), float(after[0])
    return (hardy if np.isfinite(hardy) else np.inf), (mass if np.isfinite(mass) else np.inf)


def _fall(case: Potential, points: Array) -> tuple[float, float]:
    """How far U falls along the points, from the highest before; and the distance to the points beside the lowest."""
    energy = case.energy(points[None])
    if case.shape == "radial":
        energy = energy - (case.dimension - 1) * np.log(np.maximum(np.abs(points), 1e-300))
    with np.errstate(all="ignore"):
        falls = np.maximum.accumulate(energy) - energy
    falls = np.where(np.isfinite(falls), falls, 0.0)
    low = int(np.argmax(falls))
    near = np.abs(np.diff(points))[max(low - 1, 0) : low + 1]
    return float(falls[low]), float(near.min())


def _rise(case: Potential, end: float, outwards: int, starts: Array, ends: Array) -> Array:
    """Lower bounds on the outward slope of U (of a radial law with its volume) between distances from the end."""
    low, high = (end + starts, end + ends) if outwards > 0 else (end - ends, end - starts)
    low, high = np.nextafter(low, -np.inf), np.nextafter(high, np.inf)
    radial = case.shape == "radial"
    if radial and outwards < 0:  # towards 0: the volume's part at its least, at the outer end
        _, slope, _ = enclosed_energy(case, low, high)
        return (case.dimension - 1) * (1 - 1e-15) / high - slope.high
    _, slope, _ = enclosed_energy(case, low, high, radial)
    return slope.low if outwards > 0 else -slope.high
