"""Criteria (ii) and (iii): does F grow, and has exp(−2F/s) Gaussian tails? Decided by what decays; THEORY.md §2.1.

If all of θ decays, F ≥ (λ/2)‖θ‖² + inf L settles both. If some of it does not, either is refuted by

- a flat direction (`flat`): L is constant along it at every θ, so that F does not grow along it, and the integral of
  exp(−2F/s) contains a line's infinite length as a factor;
- a slab (`bounded_tensors`): undecayed tensors u such that L ≤ C for all values of u and all others within a box, as
  when a normalisation stands between u and the loss. F is then bounded on a set of infinite volume: it does not grow as
  u → ∞, and ∫ exp(−2F/s) ≥ exp(−2 sup F/s)·∞.

An orbit along which L is constant and the decayed norm bounded, while θ → ∞, refutes growth; it leaves the tails open.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from villani.criteria.flat import STEPS, FlatDirection, flat_directions, widened
from villani.criteria.intervals import ANYTHING, Range, of_tensor
from villani.criteria.patterns import pieces
from villani.criteria.ranges import contradiction, fixed_values, ranges
from villani.criteria.verdicts import Outcome
from villani.errors import InputError
from villani.measurement.design import check_temperature
from villani.objective.graph import LossGraph, trace_loss
from villani.objective.objective import Objective
from villani.objective.weights import refuse_streamed
from villani.outwards import upper
from villani.results import Content
from villani.streams import Purpose, stream

Orbit = Mapping[int, float | torch.Tensor]
"""θ_R: index of a tensor in θ → exponent e of its entries t·Rᵉ, a number or of the tensor's shape; others stay."""
Traced = Sequence[tuple[LossGraph, float]]  # graphs with their number of terms

_LOSS_ROUNDING = 1e-5  # relative, of a mean in float32
_RADIUS = 1.0  # half the side of the box in which the other parameters may vary
_SCALES = (2.0, 4.0, 8.0)
_REFUSED = "a bound from interval arithmetic is refused, since a value lies outside it"


@dataclass(frozen=True)
class Slab:
    """L ≤ bound for every value of the tensors, whatever the others within `radius` of θ, entry by entry.

    Attributes:
        tensors: names of undecayed tensors.
        indices: of them in θ.
        coordinates: how many entries they have together.
        bound: nats per token; from interval arithmetic, hence far from tight.
        radius: of the box that holds the others.
        steps: distances, largest entry, of random moves of the tensors.
        losses: L after them, nats per token, the largest over the graphs looked at.
        contradiction: a value that was seen outside the bounds that prove this one; it then proves nothing.
    """

    tensors: tuple[str, ...]
    indices: tuple[int, ...]
    coordinates: int
    bound: float
    radius: float
    steps: tuple[float, ...]
    losses: tuple[float, ...]
    contradiction: str = ""


@dataclass(frozen=True, eq=False, repr=False)
class OrbitWitness(Content):
    """A curve to infinity with constant loss and bounded decayed norm.

    Attributes:
        name: of the orbit.
        exponents: of the orbit.
        scales: the R (or 1/R, where the orbit runs to infinity that way) that were tried.
        changes: |L(θ_R) − L(θ)|, nats per token.
        decayed_norms_squared: ‖mθ_R‖².
        norms_squared: ‖θ_R‖².
    """

    name: str
    exponents: Orbit
    scales: tuple[float, ...]
    changes: tuple[float, ...]
    decayed_norms_squared: tuple[float, ...]
    norms_squared: tuple[float, ...]


@dataclass(frozen=True, eq=False, repr=False)
class Coverage(Content):
    """What decays, and what follows for growth (ii) and tails (iii).

    Attributes:
        growth: criterion (ii), F ≥ c‖θ‖² − C.
        tails: criterion (iii), that exp(−2F/s) is integrable, for every s > 0.
        weight_decay: λ.
        parameters: d.
        decayed_parameters: d_m; 0 where λ = 0.
        undecayed: names of the tensors that do not decay; all where λ = 0.
        lower_bound: of L, nats per token; None where none is known.
        flat: flat directions.
        slab: tensors along which L is bounded, if any.
        orbits: those of the given orbits that refute growth.
    """

    growth: Outcome
    tails: Outcome
    weight_decay: float
    parameters: int
    decayed_parameters: int
    undecayed: tuple[str, ...]
    lower_bound: float | None
    flat: tuple[FlatDirection, ...] = ()
    slab: Slab | None = None
    orbits: tuple[OrbitWitness, ...] = ()

    def log_integral_bound(self, temperature: float) -> float | None:
        """Certified bound on log ∫ exp(−2F/s) dθ: (d/2) log(πs/λ) − 2 inf L/s; ∞ if it diverges, None if nobody knows.

        Raises:
            InputError: s is not positive and finite.
        """
        check_temperature(temperature)
        if self.tails.verdict == "refuted":
            return math.inf
        if self.tails.verdict != "holds" or self.lower_bound is None:
            return None
        volume = self.parameters / 2 * math.log(math.pi * temperature / self.weight_decay)
        return volume - 2 * self.lower_bound / temperature


def audit_coverage(
    objective: Objective,
    orbits: Mapping[str, Orbit] | None = None,
    *,
    loss_bound: float | None = None,
    seed: int = 0,
) -> Coverage:
    """Decide growth and tails from what decays; exhibit what refutes them. θ is not touched.

    Args:
        objective: with its λ and mask. λ = 0 counts as a mask that covers nothing.
        orbits: curves of constant loss, by name, to try against growth.
        loss_bound: a lower bound of L that is known to the caller. Cross-entropy of a language model, and what interval
            arithmetic can tell of a custom loss, need none. The certificate is as good as this bound.
        seed: of random directions.

    Raises:
        InputError: `loss_bound` is not finite, or L is below it at the given θ; an orbit names a tensor that θ does
            not have.
    """
    if loss_bound is not None:
        check_loss_bound(loss_bound, objective.loss())
    space = objective.parameters
    for name, orbit in (orbits or {}).items():
        if not all(0 <= i < len(space.parameters) for i in orbit):
            raise InputError(
                f"orbit {name}: tensors {sorted(orbit)} of {len(space.parameters)}: expected their indices"
            )
    undecayed = [i for i, p in enumerate(space.parameters) if objective.weight_decay == 0 or not p.decayed]
    traced: Traced = []
    untraced = ""
    if undecayed or (objective.loss_fn is not None and loss_bound is None):  # else nothing is read off the graph
        try:
            if undecayed:
                refuse_streamed(objective.model, "the search for flat directions", "load the model where it fits")
            traced = [(trace_loss(objective, b), objective_terms(objective, b)) for b in pieces(objective)]
        except InputError as error:
            untraced = str(error)
    lower, doubt = (loss_bound, "") if loss_bound is not None else _lower_bound(objective, traced)
    facts: dict[str, Any] = {
        "weight_decay": objective.weight_decay,
        "parameters": space.size,
        "decayed_parameters": space.decayed_size if objective.weight_decay else 0,
        "undecayed": tuple(space.parameters[i].name for i in undecayed),
        "lower_bound": lower,
    }
    if not undecayed:
        outcome = _certify(lower, doubt, stated=loss_bound is not None)
        return Coverage(outcome, outcome, **facts)
    if not traced:
        outcome = Outcome("unknown", f"{_uncovered(facts)}; no witness was searched for: {untraced}")
        return Coverage(outcome, outcome, **facts)
    flat, proposed = flat_directions(objective, traced, undecayed, seed)
    slab = bounded_tensors(objective, traced, undecayed, seed)
    doubt = slab.contradiction if slab is not None else ""
    if doubt:
        slab = None
    witnesses = [_walk(objective, traced, name, orbit, undecayed) for name, orbit in (orbits or {}).items()]
    found = tuple(w for w in witnesses if w is not None)
    tried = f"{_uncovered(facts)}; tried: {proposed} proposed shifts, bounds on L along every undecayed tensor"
    tried += f" ({_REFUSED}: {doubt})" if doubt else ""
    against: list[str] = []
    if flat:
        against.append(f"L is constant along {flat[0].kind} of {flat[0].tensor}")
    if slab is not None:
        against.append(f"L ≤ {upper(slab.bound, 3)} whatever the {slab.coordinates} entries of {_names(slab.tensors)}")
    tails = Outcome("refuted", f"{'; '.join(against)}: the integral of exp(−2F/s) diverges for every s")
    growth = Outcome("refuted", f"{'; '.join(against)}: F is bounded on the way to infinity")
    if not against:
        tails = Outcome("not refuted", tried)
        growth = Outcome("not refuted", f"{tried}, {len(witnesses)} orbits")
    if not against and found:
        growth = Outcome(
            "refuted", f"on the orbit {found[0].name} L is constant and the decayed norm bounded, as θ → ∞"
        )
    return Coverage(growth, tails, **facts, flat=tuple(flat), slab=slab, orbits=found)


def check_loss_bound(bound: float, seen: float) -> None:
    """Refuse a lower bound of L that a value of L contradicts.

    Raises:
        InputError: the bound is not finite, or above the value by more than rounding.
    """
    if not math.isfinite(bound):
        raise InputError(f"loss_bound={bound}: expected a finite number, below which L never falls")
    if seen < bound - _LOSS_ROUNDING * (1 + abs(bound)):
        raise InputError(f"loss_bound={bound:g}: L = {seen:.9g} at the given θ; give a number that L never falls below")


def objective_terms(objective: Objective, batch: Any) -> float:
    """Tokens, or terms of a custom loss, in a batch."""
    with objective.evaluating(), torch.no_grad():
        return float(batch.tokens) if objective.loss_fn is None else objective.forward(batch).tokens


def _certify(lower: float | None, doubt: str, stated: bool) -> Outcome:
    if lower is None:
        reason = f"{_REFUSED}: {doubt}" if doubt else "no lower bound of L is known"
        return Outcome("not refuted", f"every coordinate decays, but {reason}: give loss_bound if there is one")
    given = " if L is bounded below as stated" if stated else ""
    bound = f" + {lower:g}" if lower else ""
    return Outcome("holds", f"every coordinate decays: F ≥ (λ/2)‖θ‖²{bound}{given}")


def _uncovered(facts: Mapping[str, Any]) -> str:
    if facts["weight_decay"] == 0:
        return "λ = 0: nothing decays"
    missing = facts["parameters"] - facts["decayed_parameters"]
    return f"{missing} of {facts['parameters']} coordinates do not decay, in {_names(facts['undecayed'])}"


def _names(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more tensors"


def _lower_bound(objective: Objective, traced: Traced) -> tuple[float | None, str]:
    """0 for cross-entropy; else what intervals tell, if anything, and what was seen that contradicts them."""
    if objective.loss_fn is None:
        return 0.0, ""
    bounds = []
    with objective.evaluating(), torch.no_grad():
        for graph, terms in traced:
            found = ranges(graph, {})
            for point in ([t.detach() for t in objective.parameters.tensors], widened(objective)):
                if against := contradiction(graph, point, found):
                    return None, against
            bounds.append(_per_term(found[graph.loss].low, terms, -math.inf))
    return (min(bounds), "") if bounds and min(bounds) > -math.inf else (None, "")


def _per_term(bound: float, terms: float, toward: float) -> float:
    """A bound of a sum as one of the mean, rounded outwards."""
    share = bound / terms
    return share if share * terms == bound else math.nextafter(share, toward)


def bounded_tensors(objective: Objective, traced: Traced, undecayed: Sequence[int], seed: int = 0) -> Slab | None:
    """As many undecayed tensors as possible along all of which together L is bounded; None if there is none.

    Tensors are added one by one, so that the set is one that cannot be enlarged, not always the largest.
    """
    tensors = [t.detach() for t in objective.parameters.tensors]
    here = [of_tensor(t) for t in tensors]
    box = {i: Range(r.low - _RADIUS, r.high + _RADIUS) for i, r in enumerate(here)}
    fixed = [fixed_values(graph) for graph, _ in traced]

    def bound(free: Sequence[int]) -> float:
        opened = box | dict.fromkeys(free, ANYTHING)
        tops = zip(traced, fixed, strict=True)
        highs = [(ranges(graph, opened, known)[graph.loss].high, terms) for (graph, terms), known in tops]
        return max(_per_term(high, terms, math.inf) for high, terms in highs)

    free: list[int] = []
    for index in undecayed:
        if bound([*free, index]) < math.inf:
            free.append(index)
    if not free:
        return None
    losses, against = [], ""
    opened = box | dict.fromkeys(free, ANYTHING)
    proved = [ranges(graph, opened, known) for (graph, _), known in zip(traced, fixed, strict=True)]
    with objective.evaluating(), torch.no_grad():
        point = widened(objective)
        for step in STEPS:
            moved, apart = list(point), list(point)
            for i, t in enumerate(point):
                random = torch.from_numpy(stream(seed, Purpose.DIRECTION, 2 * len(point) + i).uniform(-1, 1, t.shape))
                apart[i] = t + (step if i in free else _RADIUS) * random.to(t)  # within the box, as far as others go
                moved[i] = apart[i] if i in free else t
            losses.append(max(float(graph.run(moved)) / terms for graph, terms in traced))
            for (graph, _), found in zip(traced, proved, strict=True):
                against = against or contradiction(graph, moved, found) or contradiction(graph, apart, found)
    parameters = objective.parameters.parameters
    return Slab(
        tensors=tuple(parameters[i].name for i in free),
        indices=tuple(free),
        coordinates=sum(parameters[i].tensor.numel() for i in free),
        bound=bound(free),
        radius=_RADIUS,
        steps=STEPS,
        losses=tuple(losses),
        contradiction=against,
    )


def _walk(
    objective: Objective, traced: Traced, name: str, orbit: Orbit, undecayed: Sequence[int]
) -> OrbitWitness | None:
    """Whether the orbit leads to infinity with constant loss and bounded decayed norm, for R → ∞ or R → 0."""
    tensors = [t.detach() for t in objective.parameters.tensors]
    exponents = {i: torch.as_tensor(e, dtype=t.dtype).expand(t.shape) for i, e in orbit.items() for t in [tensors[i]]}
    for i, e in exponents.items():
        exponents[i] = e.masked_fill(tensors[i] == 0, 0.0)
    for sign in (1, -1):
        rising = [i for i, e in exponents.items() if bool((sign * e > 0).any())]
        if rising and all(i in undecayed for i in rising):
            break
    else:
        return None
    rows: list[tuple[float, float, float]] = []

    def loss(point: Sequence[torch.Tensor]) -> list[float]:
        return [float(graph.run(point)) / terms for graph, terms in traced]

    with objective.evaluating(), torch.no_grad():
        start = loss(tensors)
        for scale in _SCALES:
            moved = [t * (scale**sign) ** exponents[i] if i in exponents else t for i, t in enumerate(tensors)]
            norms = [float(t.double().square().sum()) for t in moved]
            change = max(abs(a - b) for a, b in zip(loss(moved), start, strict=True))
            rows.append((change, sum(n for i, n in enumerate(norms) if i not in undecayed), sum(norms)))
    changes, decayed, norms_squared = zip(*rows, strict=True)
    tolerance = 1e2 * torch.finfo(tensors[0].dtype).eps * (1 + max(map(abs, start)))
    if not all(change <= tolerance for change in changes):
        return None
    return OrbitWitness(name, orbit, tuple(s**sign for s in _SCALES), changes, decayed, norms_squared)
