"""Is F a Villani function? The four criteria together, each with its verdict and its evidence; THEORY.md §0, §2."""

from dataclasses import dataclass

from villani.criteria.coverage import Coverage, audit_coverage
from villani.criteria.differential import CONFIRMED, SCALES, Differential, Progress, audit_differential
from villani.criteria.smoothness import Smoothness, audit_smoothness
from villani.criteria.verdicts import Outcome
from villani.landscape.objective import Objective


@dataclass(frozen=True, eq=False)
class Audit:
    """The criteria of the preprint's abstract, examined for one objective at one θ.

    Attributes:
        smoothness: (i), with every operation that is not smooth.
        coverage: (ii) and (iii), with the flat directions that refute them.
        differential: (iv), with the orbits that refute it.
    """

    smoothness: Smoothness
    coverage: Coverage
    differential: Differential

    @property
    def outcomes(self) -> dict[str, Outcome]:
        """The verdict of every criterion."""
        return {
            "smoothness": Outcome(self.smoothness.verdict, self.smoothness.reason),
            "growth": self.coverage.growth,
            "tails": self.coverage.tails,
            "differential_growth": self.differential.outcome,
        }

    @property
    def villani(self) -> bool | None:
        """Whether F is a Villani function: False if a criterion is refuted, True if all hold, else None."""
        verdicts = {outcome.verdict for outcome in self.outcomes.values()}
        return False if "refuted" in verdicts else True if verdicts == {"holds"} else None


def audit(
    objective: Objective,
    temperature: float = 1e-3,
    *,
    seed: int = 0,
    probes: int = 1,
    confirmed: int = CONFIRMED,
    scales: tuple[float, ...] = SCALES,
    loss_bound: float | None = None,
    progress: Progress | None = None,
) -> Audit:
    """Examine the four criteria at the objective's θ, which is left as it was.

    Args:
        objective: with its λ and mask.
        temperature: s > 0, at which (iv) is judged.
        seed: of probes and of trial moves.
        probes: in each group; see `audit_differential`.
        confirmed: orbits that are measured again on fresh groups.
        scales: R of the walk along the worst orbit, powers of two.
        loss_bound: a lower bound of a custom loss, if one is known.
        progress: called with (what, done, all).

    Raises:
        InputError: s not positive, too few groups, or probes.
    """
    differential = audit_differential(
        objective, temperature, seed=seed, probes=probes, confirmed=confirmed, scales=scales, progress=progress
    )
    orbits = {finding.orbit.name: finding.orbit.exponents for finding in differential.findings}
    return Audit(
        smoothness=audit_smoothness(objective),
        coverage=audit_coverage(objective, orbits, loss_bound=loss_bound, seed=seed),
        differential=differential,
    )
