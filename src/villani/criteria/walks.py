"""Ψ_s along an orbit: measured at each θ_R, beside the exact expansion from what was measured at θ; THEORY.md §2.2."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from villani.criteria.orbits import Orbit, predicted_psi, rescaled
from villani.criteria.parts import PartStatistics
from villani.objective.objective import Objective
from villani.statistics import Array, Estimate


@dataclass(frozen=True)
class Step:
    """One point θ_R of a walk.

    Attributes:
        scale: R.
        loss_change: |L(θ_R) − L(θ)|, the largest over groups; 0 where all are the same bits.
        predicted: Ψ_s(θ_R) from what was measured at θ.
        measured: Ψ_s(θ_R).
    """

    scale: float
    loss_change: float
    predicted: Estimate
    measured: Estimate


def walk_orbit(
    objective: Objective,
    orbit: Orbit,
    along: Array,
    measure: Callable[[float], PartStatistics],
    temperature: float,
    scales: Sequence[float],
    until: float = 0.0,
) -> tuple[Step, ...]:
    """From the current θ, which is left as it was.

    Args:
        objective: with its λ and mask.
        orbit: to walk along.
        along: (A,) its exponent of every part.
        measure: statistics of the parts at the θ of the moment, which is θ_R for the R that it is given.
        temperature: s.
        scales: R, powers of two; R = 1 is added in front.
        until: further doublings go up to here, as long as Ψ is not seen below zero and below where it began.
    """
    space, decay = objective.parameters, objective.weight_decay
    base = measure(1.0)
    steps: list[Step] = []

    def step(scale: float, there: PartStatistics) -> None:
        steps.append(
            Step(
                scale,
                float(np.max(np.abs(there.losses - base.losses) / base.tokens)),
                predicted_psi(along, base, space, decay, temperature, scale),
                predicted_psi(np.zeros_like(along), there, space, decay, temperature, 1.0),
            )
        )

    step(1.0, base)
    wanted = list(scales)
    while wanted:
        scale = wanted.pop(0)
        with rescaled(objective, orbit.exponents, scale):
            step(scale, measure(scale))
        if not wanted and 2 * scale <= until and not _fallen(steps):
            wanted.append(2 * scale)
    return tuple(steps)


def walked_sets(along: Array, scale: float) -> list[list[int]]:
    """The sets of parts whose traces a point of a walk needs: at R = 1 those of each exponent, else all together."""
    kinds = np.unique(along) if scale == 1 else [None]
    return [np.flatnonzero(along == kind if kind is not None else np.ones(len(along))).tolist() for kind in kinds]


def _fallen(steps: Sequence[Step]) -> bool:
    """Whether the last point is below zero and below the first beyond its error."""
    return steps[-1].measured.interval()[1] < min(0.0, steps[0].measured.value)
