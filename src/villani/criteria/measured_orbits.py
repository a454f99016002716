"""Measurements for the audit of criterion (iv): which groups are for what, and units of work of their own."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import torch

from villani.criteria.orbits import Orbit, Threshold, exponents_of, replaced, threshold
from villani.criteria.parts import EXACT, Parts, PartStatistics, part_statistics
from villani.criteria.rounding import beyond, drift_allowed, laplacian_rounding
from villani.criteria.search import descent
from villani.criteria.walks import Step
from villani.objective.objective import Objective
from villani.results import Content
from villani.statistics import Array
from villani.work.team import Rows
from villani.work.work import Work

SCREENING, FRESH = 0, 1  # probes
_STEPS = 3  # of L-BFGS in a round of descent


@dataclass(frozen=True, eq=False, repr=False)
class MeasuredOrbit(Content):
    """One orbit and its s* at one θ.

    Attributes:
        orbit: the rescaling.
        threshold: of the groups that confirm, or of those that screen where it was not confirmed.
        confirmed: whether the groups had no part in choosing this orbit.
        guard: the smallest λ for which s* is above the temperature of the audit; ∞ where no λ helps, 0 where any does.
        moved: values of tensors, by index, where θ is not the objective's own but what the search led to.
        walk: along the orbit, in order of R, R = 1 first.
    """

    orbit: Orbit
    threshold: Threshold
    confirmed: bool
    guard: float
    moved: Mapping[int, torch.Tensor]
    walk: tuple[Step, ...] = ()


class OrbitMeasurements:
    """Measurements for one audit: which groups are for what, and what tells and keeps how far it is."""

    def __init__(self, objective: Objective, parts: Parts, probes: int, seed: int, search: bool, work: Work) -> None:
        self.objective, self.parts, self.probes, self.seed, self.work = objective, parts, probes, seed, work
        every = range(len(objective.groups))
        shares = 3 if search else 2
        cuts = [len(every) * k // shares for k in range(shares + 1)]
        chunks = [every[a:b] for a, b in pairwise(cuts)]
        self.screening, self.fresh = (every, every) if objective.finite else (chunks[0], chunks[-1])
        self.descending = every if objective.finite else chunks[1]
        self.confirmed: dict[bool, PartStatistics] = {}  # of the groups that confirm; True: where the search led to

    def exponents(self, orbit: Orbit) -> Array:
        """(A,) of every part."""
        return exponents_of(orbit, self.parts)

    def shrinking(self, orbit: Orbit) -> list[int]:
        """The parts of B."""
        return [int(i) for i in np.flatnonzero(self.exponents(orbit) == -orbit.down)]

    def threshold(self, orbit: Orbit, statistics: PartStatistics, comparisons: int = 1) -> Threshold:
        """s* of an orbit, as one of so many that are compared."""
        return threshold(self.exponents(orbit), statistics, self.objective.weight_decay, comparisons=comparisons)

    @cached_property
    def drift_allowed(self) -> float:
        """How far rounding may move the loss, nats per token."""
        return drift_allowed(self.objective.loss(self.fresh[0]), self.objective.parameters.dtype)

    def beyond_rounding(self, finding: MeasuredOrbit) -> Threshold:
        """The threshold of a finding again, with what rounding may have put into Δ_B L; infinite where that is all."""
        self.work.stage("telling Δ_B L from rounding")
        small = self.objective.parameters.size <= EXACT
        groups = list(self.fresh) if small else list(self.fresh)[:1]

        def unit() -> Rows:
            seed = 2 * self.seed + FRESH
            return {"error": np.array(laplacian_rounding(self.objective, self.parts, finding.orbit, groups, seed))}

        scope = self.work.scope(f"rounding/{finding.orbit.name}/{len(finding.moved)}")
        with replaced(self.objective, finding.moved):
            row = scope.once("rounding", unit)
        return beyond(finding.threshold, float(row["error"]))

    def statistics(
        self, work: Work, groups: range, kind: int, blocks: list[list[int]], gradients: PartStatistics | None = None
    ) -> PartStatistics:
        """Of the parts, at the θ of the moment; see `part_statistics`."""
        return part_statistics(
            self.objective, self.parts, groups, seed=2 * self.seed + kind, probes=self.probes, blocks=blocks,
            gradients=gradients, work=work,
        )  # fmt: skip

    def descent(self, work: Work, chosen: list[int]) -> dict[int, torch.Tensor]:
        """Tensors after a round of it."""

        def unit() -> Rows:
            found = descent(self.objective, self.parts, chosen, self.descending, _STEPS, work)
            return {str(i): value.cpu().numpy() for i, value in found.items()}

        return {int(name): torch.from_numpy(value) for name, value in work.once("descent", unit).items()}
