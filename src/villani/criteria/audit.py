"""Is F a Villani function? The four criteria together, each with its verdict and its evidence; THEORY.md §0, §2."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from villani.criteria.coverage import Coverage, audit_coverage
from villani.criteria.differential import (
    CONFIRMED,
    SCALES,
    SEARCH,
    Differential,
    audit_differential,
    check_search,
)
from villani.criteria.rays import Ray, UnitVector, check_kinds, directions, kinds, walk
from villani.criteria.smoothness import Smoothness, audit_smoothness
from villani.criteria.verdicts import Outcome
from villani.curvature.trace import fastest
from villani.errors import InputError, check_whole
from villani.objective.objective import Objective, at_one_theta
from villani.objective.origin import Origin, origin_of
from villani.outwards import upper
from villani.results import Result
from villani.work.memory import give_back
from villani.work.work import Work

CRITERIA = ("(i) smoothness", "(ii) growth", "(iii) tails", "(iv) differential growth")  # in the order of `outcomes`
RAYS = ("random", "gradient", "parameters")
RADII = (0.0, 1.0, 2.0, 4.0)  # in units of ‖θ‖
RAY_GROUPS = 4
_RANDOM = 2  # random directions


@dataclass(frozen=True, eq=False, repr=False)
class Audit(Result):
    """The criteria of the preprint's abstract, examined for one objective at one θ.

    Attributes:
        smoothness: (i), with every operation that is not smooth.
        coverage: (ii) and (iii), with the flat directions that refute them.
        differential: (iv), with the orbits that refute it.
        rays: Ψ along straight rays, by direction: what looks quadratic, and decides nothing about (iv).
        notes: why a ray was left out, by direction.
        origin: what was examined.
    """

    smoothness: Smoothness
    coverage: Coverage
    differential: Differential
    rays: Mapping[str, Ray]
    notes: Mapping[str, str]
    origin: Origin | None = None

    def __repr__(self) -> str:
        names = zip(CRITERIA, self.outcomes.values(), strict=True)
        verdicts = "; ".join(f"{name}: {outcome.verdict}" for name, outcome in names)
        above, s = self.differential.refuted_above, self.differential.temperature
        where = f"\n      (iv) fails for every s > {upper(above, 3)}" if above < math.inf else ""
        return f"Audit(Villani: {self.villani}; {verdicts}{where}; λ = {self.coverage.weight_decay:g}, s = {s:g})"

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


def check_audit(
    temperature: float, *, groups: int, probes: int, seed: int, confirmed: int, search: int, rays: Sequence[str],
    ray_groups: int, finite: bool, parameters: int | None = None,
) -> None:  # fmt: skip
    """Refuse what `audit` cannot do, whatever the model; see `check_search` for the reasons of most.

    Args:
        temperature, probes, seed, confirmed, search, rays, ray_groups: as of `audit`.
        groups: how many there are.
        finite: whether they are all the data.
        parameters: d, if it is known.

    Raises:
        InputError: a number out of range, too few groups or probes, or an unknown kind of ray.
    """
    check_search(
        temperature, groups=groups, probes=probes, confirmed=confirmed, search=search, finite=finite,
        parameters=parameters,
    )  # fmt: skip
    check_whole(0, seed=seed)
    check_whole(1 if finite else 3, ray_groups=ray_groups)
    check_kinds(rays)


def stages(
    *, groups: int, finite: bool, probes: int, confirmed: int, search: int, rays: int, ray_groups: int, undecayed: bool
) -> dict[str, float | None]:
    """What an audit consists of, in order: gradients of a group that each takes.

    A product with all of ∇²L takes as long as 3.5 of them, a sweep as 1.3 and each further set of parts as half a one.

    Args:
        groups, finite, probes, confirmed, search, ray_groups: as of `audit`.
        rays: how many.
        undecayed: whether something does not decay, so that the graph is read for it.
    """
    share = groups if finite else groups / (3 if search else 2)
    swept = point(share, probes)
    points = 1 + rays * (len(RADII) - 1) if rays else 0
    return {
        "graph: smoothness": None, "looking for symmetries": None, "checking orbits on the loss": None,
        "screening orbits": share * (1.0 + 3.5 * probes),
        "descending to a smaller s*": (1 + search) / 2 * (swept + 4 * share) * bool(search),
        "confirming orbits": share * (1.0 + (1.3 + 0.5 * confirmed) * probes),
        "confirming the descent": swept * bool(search),
        "walking the orbit": (1 + len(SCALES)) * swept, "graph: coverage": None if undecayed else 0.0,
        "walking along rays": points * (groups if finite else ray_groups) * (1.3 + 1.3 * probes),
    }  # fmt: skip


def replay_stages(
    *, groups: int, probes: int, scales: int, orbit: bool, flat: bool, slab: bool
) -> dict[str, float | None]:
    """What a replay consists of, as `stages` tells it of an audit; `scales` is how many R > 1 are walked to."""
    walk: dict[str, float | None] = {
        "proving the orbit": None, "walking the orbit": (2 + scales) * point(groups, probes),
    }  # fmt: skip
    graphs = {"proving the flat direction": flat, "bounding the loss": slab}
    return (walk if orbit else {}) | {name: None for name, there in graphs.items() if there}


def point(groups: float, probes: int) -> float:
    """Gradients of a group that statistics of all parts take at one θ: one of each group, and its sweeps."""
    return groups * (1.0 + 1.3 * probes)


def _narrowed(direction: UnitVector, objective: Objective) -> UnitVector:
    """A direction in θ's precision, in which it is added to θ; no more than one copy of it is held."""
    for index, piece in enumerate(direction):
        direction[index] = piece.to(objective.parameters.dtype)
    give_back()  # a gradient and its sum were made for it
    return direction


@at_one_theta
def audit(
    objective: Objective,
    temperature: float = 1e-3,
    *,
    seed: int = 0,
    probes: int = 1,
    confirmed: int = CONFIRMED,
    scales: Sequence[float] = SCALES,
    search: int = SEARCH,
    rays: Sequence[str] = RAYS,
    ray_groups: int = RAY_GROUPS,
    loss_bound: float | None = None,
    work: Work | None = None,
) -> Audit:
    """Examine the four criteria at the objective's θ, which is left as it was.

    Args:
        objective: with its λ and mask.
        temperature: s > 0, at which (iv) is judged.
        seed: of probes, random directions and trial moves.
        probes: in each group; see `audit_differential`.
        confirmed: orbits that are measured again on fresh groups.
        scales: R of the walk along the worst orbit, powers of two.
        search: rounds of descent towards a θ of smaller s*; 0 for none.
        rays: directions, or kinds of them, to walk along (`villani.criteria.rays.directions`); () for none.
        ray_groups: groups to measure them on; at least 3 unless `objective.finite`, where all are taken.
        loss_bound: a lower bound of a custom loss, if one is known.
        work: keeps finished units; in memory by default.

    Raises:
        InputError: s not positive, too few groups, or probes; an unknown ray.
    """
    check_audit(
        temperature, groups=len(objective.groups), probes=probes, seed=seed, confirmed=confirmed, search=search,
        rays=rays, ray_groups=ray_groups, finite=objective.finite, parameters=objective.parameters.size,
    )  # fmt: skip
    work = work or Work()
    work.stage("reading the graph of the loss", "graph: smoothness")
    wanted = kinds(directions(objective, seed, random=_RANDOM, layers=any(n.startswith("layer") for n in rays)), rays)
    smoothness = audit_smoothness(objective)
    differential = audit_differential(
        objective, temperature, seed=seed, probes=probes, confirmed=confirmed, scales=scales, search=search,
        work=work,
    )  # fmt: skip
    work.stage("looking for what nothing holds back", "graph: coverage")
    orbits = {finding.orbit.name: finding.orbit.exponents for finding in differential.findings}
    coverage = audit_coverage(objective, orbits, loss_bound=loss_bound, seed=seed)
    walked: dict[str, Ray] = {}
    notes: dict[str, str] = {}
    unit = float(objective.parameters.norms_squared().sum()) ** 0.5 or 1.0
    chosen = None if objective.finite else range(min(ray_groups, len(objective.groups)))

    if wanted:
        work.stage("walking along rays")
    method = fastest(objective) if wanted else None
    for index, (name, direction) in enumerate(wanted.items()):
        try:
            walked[name] = walk(
                objective, _narrowed(direction(), objective), [unit * r for r in RADII], groups=chosen,
                probes=max(probes, 2) if objective.finite else probes, seed=seed, trace=method,
                work=work.scope("rays").part(index, len(wanted)), name=name,
            )  # fmt: skip
        except InputError as error:
            notes[name] = str(error)
    origin = origin_of(
        objective, "audit", int(seed), probes=int(probes), search=int(search), ray_groups=int(ray_groups)
    )
    return Audit(smoothness, coverage, differential, walked, notes, origin)
