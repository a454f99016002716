"""The guard: the λ below which (iv) is seen to fail at s on an orbit through this θ; THEORY.md §8(4).

On a Theorem-C orbit the leading coefficient of Ψ_s is (λ²‖mA‖² + ‖∇_B L‖²)/s − Δ_B L. It is negative, and Ψ_s → −∞, for

    λ² < (sΔ_B L − ‖∇_B L‖²)/‖mA‖².

A lower guard only: to be above it at one θ proves nothing, and no λ helps on an orbit of Theorem D.
"""

from dataclasses import dataclass

import numpy as np

from villani.criteria.degrees import Degrees
from villani.criteria.differential import short_batch
from villani.criteria.orbits import exponents_of, orbits_of
from villani.criteria.parts import PartStatistics, part_statistics, parts_of
from villani.criteria.skipped import incomplete
from villani.criteria.symmetries import generators
from villani.errors import InputError
from villani.measurement.design import check_design, check_temperature
from villani.objective.graph import trace_loss
from villani.objective.objective import Objective
from villani.statistics import Array, Estimate, jackknife_deviations
from villani.streams import Purpose, word


@dataclass(frozen=True)
class Guard:
    """What one orbit asks of λ at a temperature.

    Attributes:
        orbit: its name.
        weight_decay_squared: λ²_guard; below 0 where every λ, 0 too, leaves the coefficient positive.
    """

    orbit: str
    weight_decay_squared: Estimate


class GuardMeter:
    """Measures the guards of all Theorem-C orbits of a model at the θ it has at the time.

    The symmetries are read off the graph once. Each group takes a gradient and `probes` Hessian-vector products.

    Args:
        objective: a sample of at least 3 groups.
        temperature: s > 0.
        probes: in each group, on all of θ.
        seed: of the probes, together with the step.

    Raises:
        InputError: s not positive, too few groups, `objective.finite`, a loss that cannot be traced, or no such orbit.
    """

    def __init__(self, objective: Objective, temperature: float, *, probes: int = 1, seed: int = 0) -> None:
        check_temperature(temperature)
        if objective.finite or len(objective.groups) < 3:
            raise InputError(f"groups={len(objective.groups)}: the guard needs a sample of at least 3")
        check_design(len(objective.groups), probes, seed, finite=False)
        degrees = Degrees(trace_loss(objective, short_batch(objective)))
        basis = generators(degrees)
        space = objective.parameters
        found = [orbit for orbit in orbits_of(basis, space) if orbit.theorem == "C"]
        parts = parts_of(space, [g.exponents for g in basis])
        self.objective, self.temperature, self.probes, self.seed, self.parts = (
            objective,
            temperature,
            probes,
            seed,
            parts,
        )
        self.orbits = {orbit.name: exponents_of(orbit, parts) for orbit in found}
        if not self.orbits:
            missed = incomplete(degrees.skipped.all(), [p.name for p in space.parameters])
            words = "no orbit of Theorem C was found, so that the guard says nothing about the model's λ"
            raise InputError(f"{words}. {missed}" if missed else words)

    def measure(self, step: int = 0) -> list[Guard]:
        """λ²_guard of every orbit that has a decayed A, at the θ of now.

        Args:
            step: other probes for every step.
        """
        seed = word(self.seed, Purpose.GUARD, step)
        groups = range(len(self.objective.groups))
        statistics = part_statistics(self.objective, self.parts, groups, seed=seed, probes=self.probes)
        found = []
        for name, exponents in self.orbits.items():
            up, low = exponents == exponents.max(), exponents == exponents.min()
            norm = float(statistics.norms[up].sum())
            if norm > 0:
                found.append(Guard(name, self._estimate(statistics, low, norm)))
        return found

    def values(self, step: int = 0) -> dict[str, float]:
        """The estimates alone, by orbit: what `GuardFollowing` takes."""
        return {guard.orbit: guard.weight_decay_squared.value for guard in self.measure(step)}

    def _estimate(self, statistics: PartStatistics, low: Array, norm: float) -> Estimate:
        def value(left_out: int | None) -> float:
            laplacian = float(statistics.mean_traces(left_out)[low].sum())
            return (self.temperature * laplacian - float(statistics.gradient_norms(left_out)[low].sum())) / norm

        count = len(statistics.tokens)
        deviations = jackknife_deviations(np.array([[value(j)] for j in range(count)]))
        return Estimate(value(None), float((deviations**2).sum()) ** 0.5, count, "statistical")
