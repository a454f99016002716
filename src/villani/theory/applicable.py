"""Which constants of §3 apply to a potential, with their inputs: proved ones where there are, else searched for.

Constants tensorise (the constant of a product is the largest of its factors), so that all but C8, which counts
dimensions, are taken for the core of a potential and hold for the whole. Proved inputs come with the catalogue, or, of
C2 to C4 on lines and radii, from intervals (`extremes.py`). What is searched for is the largest value on a dense grid
out to 1e6: plain evidence, hence "estimated", and where a truth contradicts the bound, the hypothesis is what is
false.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from villani.statistics import Status
from villani.theory.constants import (
    Constant,
    Kind,
    bakry_emery,
    dissipative,
    dissipative_radius,
    exact_quadratic,
    holley_stroock,
    lipschitz,
    lyapunov_log_sobolev,
    lyapunov_poincare,
    preprint,
    variance_quotient,
)
from villani.theory.extremes import Line, Supremum
from villani.theory.potential import Potential
from villani.theory.truth import Truth

_FAR = 1e6


@dataclass(frozen=True)
class Proved:
    """Closed forms for L of one core; None where there is none, inf where the hypothesis fails.

    They hold for the parameters that they were made for: whoever makes them checks these.

    Attributes:
        curvature: κ with ∇²L ⪰ −κI.
        oscillation: sup L − inf L.
        lipschitz: sup ‖∇L‖.
        offset: b with ⟨θ, ∇L⟩ ≥ −b.
        ball: R ↦ sup L − inf L on ‖θ‖ ≤ R.
        why: one line of proof, with the parameters that it needs.
    """

    curvature: float | None = None
    oscillation: float | None = None
    lipschitz: float | None = None
    offset: float | None = None
    ball: Callable[[float], float] | None = None
    why: str = ""


@dataclass(frozen=True)
class Missing:
    """A constant that does not apply, and the reason."""

    id: str
    reason: str


def upper_bounds(case: Potential, proved: Proved | None = None) -> tuple[list[Constant], list[Missing]]:
    """All upper bounds of §3 whose hypotheses hold, as claimed or otherwise, and why the others are missing."""
    proved = proved or Proved()
    decay, beta = case.weight_decay, case.beta
    if decay == 0:
        return [], [Missing(f"C{i}", "λ = 0") for i in range(1, 9)]
    found = [preprint(decay, beta, case.dimension)]
    missing = []
    if case.constant:
        return [*found, exact_quadratic(decay, beta)], []
    line = Line(case) if case.core == 1 else None
    search = HypothesisSearch(case, line)
    missing.append(Missing("C1", "L is not constant"))
    curvature, sure = _choose(proved.curvature, search.curvature, line.concavity if line else None)
    _, gaussian = case.parts
    if gaussian:  # L is flat in the coordinates beside the core, however convex it is there
        curvature = max(curvature, 0.0)
    if case.breaks:
        missing.append(Missing("C2", "L has a kink with a falling slope"))
    elif curvature < decay:
        found.append(bakry_emery(decay, beta, curvature, sure))
    else:
        missing.append(Missing("C2", f"κ = {curvature:.4g} ≥ λ"))
    oscillation, sure = _choose(proved.oscillation, search.oscillation, _sum(line.oscillation) if line else None)
    if oscillation < np.inf:
        found.append(holley_stroock(decay, beta, max(oscillation, 0.0), sure))
    else:
        missing.append(Missing("C3", "L is unbounded"))
    gradient, sure = _choose(proved.lipschitz, search.gradient, line.slope if line else None)
    if gradient < np.inf:
        found.append(lipschitz(decay, beta, max(gradient, 0.0), sure))
    else:
        missing.append(Missing("C4", "‖∇L‖ is unbounded"))
    for more, less in (_lyapunov(case, search), _dissipative(case, search, proved)):
        found += more
        missing += less
    return found, missing


def lower_bounds(truth: Truth) -> list[Constant]:
    """The computed constants as lower bounds, C9 with the best linear function, and what is certified of C_P if less.

    An estimated truth gives estimated bounds, which refute nothing.
    """
    one_below = 1 - truth.error
    found = [
        variance_quotient(truth.moments.top_variance * one_below, 1.0, truth.status, "the widest direction"),
        _computed("computed C_P", truth.poincare * one_below, "Poincaré", truth.status),
    ]
    if truth.status != "certified" and truth.floor > 0:
        found.append(variance_quotient(truth.floor, 1.0, "certified", "one function, by intervals"))
    if truth.log_sobolev is not None:
        found.append(_computed("computed C_LS", truth.log_sobolev, "log-Sobolev", "estimated"))
    return found


def _computed(name: str, value: float, kind: Kind, status: Status) -> Constant:
    return Constant("truth", name, float(np.log(value)), "lower", kind, "none", status, "theory/exact.py")


class HypothesisSearch:
    """Extremes of L and Ψ on a grid: lines and radii densely, the plane on rays that crowd around the axes."""

    def __init__(self, case: Potential, line: Line | None = None) -> None:
        self.case = case
        outward = np.concatenate([[1e-9], np.linspace(0, 30, 3001)[1:], np.geomspace(30, _FAR, 1501)[1:]])
        scale = 1 / np.sqrt(case.beta * case.weight_decay)
        outward = np.unique(np.concatenate([outward * scale, outward]))
        if case.core == 2:
            outward = outward[::20]
            near = np.geomspace(1e-7, 0.7, 24)
            angles = np.concatenate([[0.0], near, np.pi / 2 - near[::-1]])
            angles = np.concatenate([angles + k * np.pi / 2 for k in range(4)])
            self.points = np.array([outward[:, None] * np.cos(angles), outward[:, None] * np.sin(angles)]).reshape(
                2, -1
            )
        elif case.shape == "radial":
            self.points = outward[None]
        else:
            self.points = np.concatenate([-outward[::-1], [0.0], outward])[None]
        if line is not None:  # what intervals were led to: spikes between the points
            crowded = np.concatenate([line.slope.points, line.concavity.points, *(s.points for s in line.oscillation)])
            self.points = np.union1d(self.points[0], crowded[np.abs(crowded) <= _FAR])[None]
            if case.shape == "radial":
                self.points = self.points[:, self.points[0] > 0]
        self.radius = np.sqrt((self.points**2).sum(axis=0))
        jet = case.loss.jet(self.points)
        self.loss = jet.value
        with np.errstate(all="ignore"):
            slope = np.sqrt((jet.gradient**2).sum(axis=0))
            bends = jet.hessian[0, 0] if case.core == 1 else np.linalg.eigvalsh(np.moveaxis(jet.hessian, 2, 0))[:, 0]
            if case.shape == "radial":
                bends = np.minimum(bends, jet.gradient[0] / self.radius)
        self.bends = bends
        self.oscillation = self._bounded(self.loss) + self._bounded(-self.loss)
        self.gradient = self._bounded(slope)
        self.curvature = self._bounded(-bends)
        local = case.local(self.points, jet)
        self.psi = local.psi(case.beta)
        self.force = local.radial_force

    def _bounded(self, values: NDArray[np.floating]) -> float:
        """The largest value, or inf if it is still growing over the last decade."""
        near, far = values[self.radius < _FAR / 10], values[self.radius >= _FAR / 10]
        if not np.isfinite(values).all():
            return np.inf
        top = float(near.max())
        grows = float(far.max()) > top + 1e-6 * max(abs(top), 1e-3)
        return np.inf if grows else max(top, float(far.max()))

    def oscillation_within(self, radius: float) -> float:
        """sup − inf of L on a ball."""
        inside = self.loss[self.radius <= radius]
        return float(np.ptp(inside)) if inside.size else 0.0


def _choose(proved: float | None, searched: float, enclosed: Supremum | None) -> tuple[float, bool]:
    """The value to use, and whether it is proved: a closed form, else intervals, else the search."""
    if proved is not None:
        return proved, True
    if enclosed is not None and enclosed.closed:
        return enclosed.bound, True
    return searched, False


def _sum(suprema: tuple[Supremum, Supremum]) -> Supremum:
    one, other = suprema
    return Supremum(one.bound + other.bound, one.seen + other.seen, one.points)


def _lyapunov(case: Potential, search: HypothesisSearch) -> tuple[list[Constant], list[Missing]]:
    """C5 with the best ball, and C6 with the best growth, on a line or a radius."""
    if case.core == 2:
        why = "an infimum of Ψ over the plane, which rays cannot tell (THEORY.md §2.2)"
        return [], [Missing("C5", why), Missing("C6", why)]
    if case.breaks:
        return [], [Missing("C5", "Ψ has an atom at the kink"), Missing("C6", "Ψ has an atom at the kink")]
    decay, beta, s = case.weight_decay, case.beta, 2 / case.beta
    order = np.argsort(search.radius, kind="stable")
    radius, psi, loss = search.radius[order], search.psi[order], search.loss[order]
    outside = np.minimum.accumulate(psi[::-1])[::-1]
    inside = np.maximum(-np.minimum.accumulate(psi), 0.0)
    swing = np.maximum.accumulate(loss) - np.minimum.accumulate(loss)
    allowed = np.flatnonzero((outside[1:] > 0) & np.isfinite(swing[:-1])) + 1
    if not allowed.size:
        return [], [Missing("C5", "Ψ is not positive outside any ball"), Missing("C6", "Ψ does not grow")]
    tried = allowed[np.unique(np.geomspace(1, len(allowed), 60).astype(int)) - 1]
    fifth = min(
        (lyapunov_poincare(decay, beta, outside[i], inside[i - 1], swing[i - 1], proved=False) for i in tried),
        key=lambda c: c.log_value,
    )
    found, curvature = [fifth], max(search.curvature - decay, 0.0)
    for share in (0.1, 0.3, 0.5, 0.8, 0.95):
        growth = share * decay**2 / s
        offset = growth * radius**2 - psi
        if np.isfinite(curvature) and offset[radius >= _FAR / 10].max() <= offset[radius < _FAR / 10].max():
            found.append(
                lyapunov_log_sobolev(beta, growth, max(float(offset.max()), 0.0), curvature, fifth, proved=False)
            )
    if len(found) == 1:
        return found, [Missing("C6", "Ψ does not grow like ‖θ‖², or ∇²F has no lower bound")]
    return [fifth, min(found[1:], key=lambda c: c.log_value)], []


def _dissipative(case: Potential, search: HypothesisSearch, proved: Proved) -> tuple[list[Constant], list[Missing]]:
    """C7 with the best growth m ≤ λ."""
    decay, beta = case.weight_decay, case.beta
    dimension = case.dimension if case.shape == "radial" else case.core
    options: list[tuple[float, float, bool]] = []
    if proved.offset is not None:
        options.append((decay, proved.offset, True))
    elif case.core == 1 and not case.breaks:
        for share in (0.25, 0.5, 0.75, 0.9, 1.0):
            offset = share * decay * search.radius**2 - search.force
            near, far = offset[search.radius < _FAR / 10], offset[search.radius >= _FAR / 10]
            if far.max() <= near.max() + 1e-9 * abs(near.max()):
                options.append((share * decay, max(float(offset.max()), 0.0), False))
    found = []
    for growth, offset, sure in options:
        radius = dissipative_radius(beta, dimension, growth, offset)
        swing = proved.ball(radius) if proved.ball else search.oscillation_within(radius)
        if np.isfinite(swing):
            found.append(dissipative(decay, beta, dimension, growth, offset, swing, sure and proved.ball is not None))
    if not found:
        return [], [Missing("C7", "no b with ⟨θ, ∇F⟩ ≥ m‖θ‖² − b was found")]
    return [min(found, key=lambda c: c.log_value)], []
