"""Whether a law on the plane has a feature that a tensor grid does not see: a trench, a spike, a well far away.

ψ = exp(−(U − min U)/2) is enclosed over rectangles, which are halved until it varies by at most `_VARIES` on each;
there it is held against the grid's interpolant, which is 0 beyond the grid. This finds what has weight. It is no proof
that the spectrum is right: ψ is small where barriers and wells of little mass are.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.polynomial import legendre
from numpy.typing import NDArray

from villani.theory.enclosures import Interval, enclose
from villani.theory.expressions import Array
from villani.theory.plane import lobatto
from villani.theory.potential import Potential

_VARIES = 0.02  # of ψ, whose largest value is 1
_CELLS = 150_000
_FAR = 1e8


@dataclass(frozen=True)
class Search:
    """What was found.

    Attributes:
        point: (2,) where ψ is not what the grid says, or None.
        size: (2,) of the rectangle in which that showed.
        complete: whether the search came to its end.
    """

    point: Array | None
    size: Array | None
    complete: bool


def search(case: Potential, edges: list[Array], degree: int) -> Search:
    """Look for features of exp(−βF/2) that polynomials of `degree` on the tensor grid with these edges miss."""
    interpolant, least = _interpolant(case, edges, degree)
    axes = [_extended(edge) for edge in edges]
    low = np.stack(np.meshgrid(*(axis[:-1] for axis in axes), indexing="ij")).reshape(2, -1)
    high = np.stack(np.meshgrid(*(axis[1:] for axis in axes), indexing="ij")).reshape(2, -1)
    work = 0
    while low.shape[1]:
        work += low.shape[1]
        if work > _CELLS:
            return Search(None, None, False)
        middle = (low + high) / 2
        with np.errstate(all="ignore"):
            here = np.nan_to_num(np.exp(-(case.energy(middle) - least) / 2))
        missed = np.abs(here - interpolant(middle)) > 2 * _VARIES
        if missed.any():
            worst = int(np.argmax(missed))
            return Search(middle[:, worst], (high - low)[:, worst], True)
        least_here, most_here, steepest = _root(case, least, low, high)
        open_ = ~(np.maximum(most_here - here, here - least_here) <= _VARIES)
        low, high = low[:, open_], high[:, open_]
        axis = steepest[open_]
        column = np.arange(low.shape[1])
        cut = (low[axis, column] + high[axis, column]) / 2
        left, right = high.copy(), low.copy()
        left[axis, column] = right[axis, column] = cut
        low, high = np.concatenate([low, right], axis=1), np.concatenate([left, high], axis=1)
    return Search(None, None, True)


def _root(case: Potential, least: float, low: Array, high: Array) -> tuple[Array, Array, NDArray[np.intp]]:
    """Bounds on ψ over rectangles (2, n), from U and from its slopes; and the axis (n,) along which U may vary most."""
    middle = (low + high) / 2
    over, at = enclose(case.loss, low, high), enclose(case.loss, middle, middle)
    decay = case.weight_decay
    with np.errstate(all="ignore"):
        value, centred = over.value, at.value
        reach = [
            (over.gradient[i] + Interval(low[i], high[i]).scaled(decay)).size * (high[i] - low[i]) / 2 for i in range(2)
        ]
        for i in range(2):
            w, m = Interval(low[i], high[i]), Interval(middle[i], middle[i])
            value, centred = value + w.square().scaled(decay / 2), centred + m.square().scaled(decay / 2)
            centred = Interval(centred.low - reach[i], centred.high + reach[i])
        energy = value.meets(centred).scaled(case.beta)
        bounds = np.exp(-(energy.high - least) / 2), np.exp(-(energy.low - least) / 2)
    longest = np.argmax(high - low, axis=0)
    steepest = np.where(np.isfinite(reach).all(axis=0), np.argmax(reach, axis=0), longest)
    return np.nan_to_num(bounds[0], nan=0.0), np.nan_to_num(bounds[1], nan=np.inf, posinf=np.inf), steepest


def _extended(edges: Array) -> Array:
    """The edges, and cells of growing size beyond them."""
    size = edges[-1] - edges[0]
    beyond = size * 16.0 ** np.arange(int(np.log(_FAR / size) / np.log(16)) + 2 if size < _FAR else 1)
    return np.concatenate([edges[0] - beyond[::-1], edges, edges[-1] + beyond])


def _interpolant(case: Potential, edges: list[Array], degree: int) -> tuple[Callable[[Array], Array], float]:
    """ψ as the grid has it, and min U over its nodes."""
    nodes, _, _ = lobatto(degree)
    transform = np.linalg.inv(legendre.legvander(nodes, degree))
    x, y = ((e[:-1, None] + e[1:, None] + np.diff(e)[:, None] * nodes) / 2 for e in edges)
    grid = np.array(np.broadcast_arrays(x[:, None, :, None], y[None, :, None, :]))
    energy = case.energy(grid.reshape(2, -1)).reshape(grid.shape[1:])
    least = float(np.nanmin(energy))
    root = np.einsum("rp,ijpq,sq->ijrs", transform, np.exp(-(energy - least) / 2), transform)

    def value(points: Array) -> Array:
        inside = np.all([(p > e[0]) & (p < e[-1]) for p, e in zip(points, edges, strict=True)], axis=0)
        found = np.zeros(points.shape[1])
        for part in np.array_split(np.flatnonzero(inside), max(1, int(inside.sum()) // 5000)):
            place, basis = [], []
            for p, e in zip(points[:, part], edges, strict=True):
                i = np.clip(np.searchsorted(e, p, side="right") - 1, 0, len(e) - 2)
                place.append(i)
                basis.append(legendre.legvander(2 * (p - e[i]) / (e[i + 1] - e[i]) - 1, degree))
            found[part] = np.einsum("nrs,nr,ns->n", root[place[0], place[1]], basis[0], basis[1])
        return found

    return value, least
