"""Suprema over a whole line, by branch and bound on interval enclosures: hypotheses that a spike cannot hide from.

"Everywhere" is |w| ≤ `REACH`. Cells begin a factor of two wide, and those that may still hold the supremum are halved.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from villani.theory.enclosures import REACH, Enclosure, enclose
from villani.theory.expressions import Array, Jet
from villani.theory.potential import Potential

_WORK = 15_000  # cells
_CLOSE = 1e-6  # relative: how near a bound comes to a value that was seen
_UNBOUNDED = 1e30  # a supremum above is called infinite


@dataclass(frozen=True)
class Supremum:
    """Of a function on a line.

    Attributes:
        bound: proved upper bound; inf where the function grows without end or where none was found.
        seen: the largest value at a point.
        points: (n,) where it was looked at, crowded about the supremum.
    """

    bound: float
    seen: float
    points: Array

    @property
    def closed(self) -> bool:
        """Whether the bound tells more than that the work ran out."""
        return bool(np.isfinite(self.bound)) or self.seen > _UNBOUNDED


class Line:
    """Suprema of L, −L, |L′| and −∇²L (its largest eigenvalue) of a potential with one coordinate, or of a radius."""

    def __init__(self, case: Potential) -> None:
        self.case = case

    @cached_property
    def oscillation(self) -> tuple[Supremum, Supremum]:
        """Of L and of −L; sup L − inf L is the sum."""
        return (
            self._supremum(lambda at: at.value.high, lambda at: at.value),
            self._supremum(lambda at: -at.value.low, lambda at: -at.value),
        )

    @cached_property
    def slope(self) -> Supremum:
        """Of |L′|."""
        return self._supremum(lambda at: at.gradient[0].size, lambda at: np.abs(at.gradient[0]))

    @cached_property
    def concavity(self) -> Supremum:
        """Of −∇²L. A radial L with L′(0) ≥ 0 has L′/r ≥ inf L″, so that −L″ alone decides."""
        found = self._supremum(lambda at: -at.hessian[0, 0].low, lambda at: -at.hessian[0, 0])
        if self.case.shape == "radial":
            zero = np.zeros((1, 1))
            if not enclose(self.case.loss, zero, zero).gradient[0].low[0] >= 0:
                return Supremum(np.inf, found.seen, found.points)
        return found

    def _supremum(self, above: Callable[[Enclosure], Array], at: Callable[[Jet], Array]) -> Supremum:
        loss = self.case.loss
        outward = np.concatenate([[0.0], 2.0 ** np.arange(-40, int(np.log2(REACH)))])
        edges = outward if self.case.shape == "radial" else np.concatenate([-outward[::-1], outward[1:]])
        edges = np.union1d(edges, self.case.breaks)
        low, high = edges[:-1], edges[1:]
        bounds: list[Array] = []  # of cells that are done
        points: list[Array] = []
        seen, work = -np.inf, 0
        while len(low):
            work += len(low)
            with np.errstate(all="ignore"):
                top = above(enclose(loss, low[None], high[None]))
                middle = low / 2 + high / 2
                values = at(loss.jet(middle[None]))
            top = np.where(np.isnan(top), np.inf, top)
            points.append(middle)
            finite = values[np.isfinite(values)]
            seen = max(seen, float(finite.max())) if finite.size else seen
            allowed = seen + _CLOSE * max(abs(seen), 1e-3)
            again = (top > allowed) & (high - low > 1e-13 * np.abs(low + high)) & (seen <= _UNBOUNDED)
            bounds.append(top[~again])
            if work > _WORK:
                bounds.append(top[again])
                break
            low, middle, high = low[again], middle[again], high[again]
            low, high = np.concatenate([low, middle]), np.concatenate([middle, high])
        bound = float(np.concatenate(bounds).max())
        return Supremum(bound if bound <= _UNBOUNDED else np.inf, seen, np.concatenate(points))
