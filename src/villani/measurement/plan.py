"""Which way, how many probes and how many groups reach a wanted error: a pilot measures noise and cost, a plan spends.

A sample of one group has variance σ_b² + σ_w²/m: σ_b² between groups, which every unbiased way shares, and σ_w² of a
way's probes, m of them. It takes a + m·c seconds. The plan is the way and m with the least variance × seconds, and as
many groups as the wanted error asks for (THEORY.md §6).

The pilot's groups decide the plan and nothing else: the figures come from other groups, so that no choice made on the
pilot biases them. Their number is fixed before they are looked at. Only where their standard error comes out too large
are more added; the coverage of the interval under this rule is simulated in `benchmarks/coverage_plan.py`.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np

from villani.bounds import check_number
from villani.curvature.blocks import Blocks, BlockTrace
from villani.curvature.sketch import GradientSketch, buckets_for
from villani.curvature.trace import TraceMethod, group_statistics
from villani.errors import InputError
from villani.measurement.measure import (
    SHARES,
    Measurement,
    check_temperature,
    group_row,
    group_sums,
    measure,
    peak_memory,
)
from villani.objective.objective import Objective, at_one_theta, check_weight_decay
from villani.statistics import Array, Estimate, GroupSums, sampled_statistics
from villani.work.progress import duration
from villani.work.team import Ledger, Rows, Team

PILOT = 8  # groups that every way is tried on, twice each
SHARE, LEAST, MOST = 0.2, 16, 64  # the design chosen is rehearsed on a share of the groups that it seems to take
PROBES = (1, 2, 3, 4, 6, 8, 12, 16)
_MORE = 2  # further probes by which their cost is told
MARGIN = 1.05  # more groups are asked for than a standard error that came out too large needs
GROWTH = 2  # at most, from one look to the next: few groups can be far wrong about how many a share of the figure needs

Quantity = Literal["hessian_trace", "psi"]
Way = tuple[TraceMethod, Blocks]
FORWARD: tuple[Way, ...] = (("taylor", "whole"), ("taylor", "layer"), ("gauss-newton", "whole"))
REVERSE: tuple[Way, ...] = (("gauss-newton", "whole"), ("hutchinson", "whole"))


@dataclass(frozen=True)
class Target:
    """The wanted standard error.

    Attributes:
        error: > 0.
        relative: whether it is a share of the figure's own size.
        quantity: the figure: tr ∇²L, or Ψ_s at the λ and s that follow.
        weight_decay: λ.
        temperature: s.
    """

    error: float
    relative: bool = True
    quantity: Quantity = "hessian_trace"
    weight_decay: float = 0.0
    temperature: float = 1e-3

    def __post_init__(self) -> None:
        check_number("target_error", self.error)
        if not 0 < self.error < math.inf:
            raise InputError(f"target_error={self.error}: expected a finite number > 0")
        check_weight_decay(self.weight_decay)
        check_temperature(self.temperature)

    def estimate(self, found: Measurement) -> Estimate:
        """The figure as it was measured."""
        if self.quantity == "psi":
            return found.psi(self.weight_decay, temperature=self.temperature)
        return found.hessian_trace

    def figure(self, objective: Objective, sums: GroupSums) -> Estimate:
        """The figure from some groups."""
        joint = sampled_statistics(sums)
        if self.quantity == "hessian_trace":
            return joint.component(3)
        space = objective.parameters
        decay, s = self.weight_decay, self.temperature
        exact = decay**2 * float(space.norms_squared()[space.decayed].sum()) / s - decay * space.decayed_size
        return joint.linear(np.array([0.0, 1 / s, 2 * decay / s, -1.0]), exact)

    def allowed(self, value: float) -> float:
        """The largest standard error that is good enough."""
        return self.error * abs(value) if self.relative else self.error


@dataclass(frozen=True)
class Plan:
    """What is going to be measured, and what it will cost.

    Attributes:
        trace: the way.
        blocks: its blocks.
        probes: m, in a group.
        groups: how many, fixed before the first of them is measured.
        first: index of the first; those before it are the pilot's.
        probe_deviation: σ_w, of one probe on a group.
        data_deviation: of the figure between groups, without probe noise.
        seconds_per_group: of one process.
        uncertainty: relative standard error of `groups` as a prediction of how many it will take.
        note: why a faster way was left out; empty if none was.
    """

    trace: TraceMethod
    blocks: Blocks
    probes: int
    groups: int
    first: int
    probe_deviation: float
    data_deviation: float
    seconds_per_group: float
    uncertainty: float
    note: str = ""

    @property
    def seconds(self) -> float:
        """Predicted, summed over processes; the pilot is not in it."""
        return self.groups * self.seconds_per_group

    def __str__(self) -> str:
        way = f"{self.trace} by {self.blocks}" if self.trace == "taylor" and self.blocks != "whole" else self.trace
        probes = f"{self.probes} probe{'s' if self.probes > 1 else ''}"
        return f"{way}, {self.groups} groups of {probes} (give or take {100 * self.uncertainty:.0f} %)"


@at_one_theta
def measure_to(
    objective: Objective,
    target: Target,
    *,
    seed: int = 0,
    least: int = 16,
    shares: int = SHARES,
    ledger: Ledger | None = None,
    progress: Callable[[int, int], None] | None = None,
    told: Callable[[Plan], None] | None = None,
    team: Team | None = None,
) -> tuple[Measurement, Plan]:
    """Measure until the standard error of the figure is at most what is wanted.

    Args:
        objective: its groups are the supply, of which as many are used as it takes.
        target: the wanted error.
        seed: of everything random.
        least: groups to measure at least.
        shares: see `measure`.
        ledger: keeps finished groups and the pilot's; a resumed run keeps to the plan that was made first.
        progress: called with (finished, total) groups of the pilot, then of the measurement.
        told: called with the plan before it is carried out.
        team: see `measure`.

    Raises:
        InputError: `objective.finite`, a supply that is too small for the pilot or for the wanted error, or what
            `measure` raises.
    """
    if objective.finite:
        raise InputError("a target error needs groups that are a sample of the text: with finite=True, set probes")
    supply = len(objective.groups)
    if supply < PILOT + max(least, 3):
        raise InputError(f"{supply} groups: a target error needs {PILOT + max(least, 3)} or more to choose from")
    kept = ledger or Kept()
    plan = _planned(objective, target, seed, least, shares, kept, progress, team)
    if told:
        told(plan)
    count = plan.groups
    while True:
        if plan.first + count > supply:
            there = supply - plan.first
            raise InputError(
                f"target_error={target.error:g} needs {count} groups or more, "
                f"{duration(count * plan.seconds_per_group)} of work, and {there} are there: "
                f"raise max_groups, or ask for about {target.error * math.sqrt(count / there):.2g}"
            )
        found = measure(
            objective, plan.probes, seed, trace=plan.trace, blocks=plan.blocks,
            groups=range(plan.first, plan.first + count), shares=shares, ledger=kept, progress=progress, team=team,
        )  # fmt: skip
        wanted = more_groups(count, target.estimate(found), target)
        if wanted == count:
            return found, plan
        count = wanted


def _planned(
    objective: Objective,
    target: Target,
    seed: int,
    least: int,
    shares: int,
    ledger: Ledger,
    progress: Callable[[int, int], None] | None,
    team: Team | None,
) -> Plan:
    """The best way on `PILOT` groups, then rehearsed on others to know its noise and its cost."""
    ways, note = ways_for(objective)
    if not shares:  # no double backward passes, then
        ways = tuple(way for way in ways if way[0] == "taylor") or ways
    plan = make_plan(pilot(objective, ways, seed, target, ledger, progress, team), target, least=least, note=note)
    return rehearse(objective, plan, seed, target, least, ledger, progress, team)


def rehearsal_size(groups: int) -> int:
    """How many groups to rehearse on before `groups` are measured."""
    return min(max(math.ceil(SHARE * groups), LEAST), MOST)


def more_groups(count: int, estimate: Estimate, target: Target) -> int:
    """How many groups to have in all, given what `count` of them say; `count` when the error is small enough."""
    allowed = target.allowed(estimate.value)
    if estimate.sem <= allowed:
        return count
    if allowed == 0:
        raise InputError(f"{target.quantity} is 0: a relative error of it cannot be reached; give an absolute one")
    needed = MARGIN * count * (estimate.sem / allowed) ** 2
    return max(count + 1, math.ceil(min(needed, GROWTH * count)))


class Kept:
    """A ledger in memory, for one call."""

    def __init__(self) -> None:
        self._rows: dict[str, Rows] = {}

    def get(self, key: str) -> Rows | None:
        """See `Ledger.get`."""
        return self._rows.get(key)

    def put(self, key: str, arrays: Rows, *, seconds: float, peak_memory_bytes: int) -> None:
        """See `Ledger.put`."""
        del seconds, peak_memory_bytes
        self._rows[key] = arrays


@dataclass(frozen=True)
class Trial:
    """What one way did on the pilot's groups.

    Attributes:
        values: (2, P) per-token traces, from two independent probes on each of P groups; weighted by tokens.
        figure: what is wanted, estimated from these groups.
        other: what the figure's variance has beyond that of the trace, for one group; 0 where the figure is the trace.
        seconds: of a group with one probe, the gradient included.
        more_seconds: of every further probe.
    """

    values: Array
    figure: float
    other: float
    seconds: float
    more_seconds: float

    @property
    def probe_variance(self) -> float:
        """σ_w², unbiased."""
        return float(np.mean((self.values[0] - self.values[1]) ** 2) / 2)


def ways_for(objective: Objective) -> tuple[tuple[Way, ...], str]:
    """The ways that the model allows, and why Taylor sweeps are not among them if so."""
    if objective.loss_fn is not None:
        return (("hutchinson", "whole"),), "a custom loss_fn has neither logits nor a traced graph"
    try:
        BlockTrace(objective).check(next(objective.batches(0)))
    except InputError as error:
        return REVERSE, str(error)
    return FORWARD, ""


def make_plan(trials: Mapping[Way, Trial], target: Target, *, least: int, note: str = "") -> Plan:
    """The way and number of probes with the least variance × seconds, and about how many groups the target takes."""
    data = data_variance(np.concatenate([t.values for t in trials.values()]))
    data += float(np.mean([t.other for t in trials.values()]))

    def variance(choice: tuple[Way, int]) -> float:
        way, probes = choice
        return max(data, 0.0) + trials[way].probe_variance / probes

    def seconds(choice: tuple[Way, int]) -> float:
        way, probes = choice
        return trials[way].seconds + (probes - 1) * trials[way].more_seconds

    choices = [(way, probes) for way in trials for probes in PROBES]
    best = min(choices, key=lambda choice: variance(choice) * seconds(choice))
    (trace, blocks), probes = best
    value = float(np.mean([t.figure for t in trials.values()]))
    return Plan(
        trace=trace,
        blocks=blocks,
        probes=probes,
        groups=groups_for(target, value, variance(best), least),
        first=PILOT,
        probe_deviation=trials[best[0]].probe_variance ** 0.5,
        data_deviation=max(data, 0.0) ** 0.5,
        seconds_per_group=seconds(best),
        uncertainty=math.inf,
        note=note,
    )


def settle(plan: Plan, target: Target, figure: Estimate, seconds: float, least: int) -> Plan:
    """The plan with what its rehearsal showed: the `figure` from as many groups, and the `seconds` of each."""
    variance = figure.n * figure.sem**2
    error = figure.sem / abs(figure.value) if target.relative and figure.value else 0.0
    return replace(
        plan,
        groups=groups_for(target, figure.value, variance, least),
        first=plan.first + figure.n,
        seconds_per_group=seconds,
        uncertainty=math.sqrt(2 / (figure.n - 1) + 4 * error**2),  # of a variance, and of a squared figure
    )


def groups_for(target: Target, value: float, variance: float, least: int) -> int:
    """How many groups bring the standard error of a figure of this size down to the target."""
    allowed = target.allowed(value)
    return max(least, math.ceil(variance / allowed**2)) if allowed else least


def data_variance(values: Array) -> float:
    """σ_b² from (n, P) samples whose probes are independent: the mean covariance of two rows; never below 0."""
    count = len(values)
    covariance = np.cov(values)
    return float(max((covariance.sum() - np.trace(covariance)) / (count * (count - 1)), 0.0))


def pilot(
    objective: Objective,
    ways: Sequence[Way],
    seed: int,
    target: Target,
    ledger: Ledger | None = None,
    progress: Callable[[int, int], None] | None = None,
    team: Team | None = None,
) -> dict[Way, Trial]:
    """Try every way on the first `PILOT` groups, twice each with probes of their own, and time it."""
    units: dict[str, Callable[[], Rows]] = {}
    for index, way in enumerate(ways):
        name = "-".join(way)
        unit = _timed(objective, way, seed)
        units |= {
            f"pilot/{name}/{copy}/{group}": partial(unit, group, 1, seed + 1 + 2 * index + copy)
            for group in range(PILOT)
            for copy in (0, 1)
        }
        units[f"pilot/{name}/more"] = partial(unit, 0, 1 + _MORE, seed)
    found = dict(
        zip(units, (team or Team()).map(units, ledger, progress, partial(peak_memory, objective.device)), strict=True)
    )
    trials = {}
    for way in ways:
        name = "-".join(way)
        copies = [[found[f"pilot/{name}/{copy}/{group}"] for group in range(PILOT)] for copy in (0, 1)]
        sums = [group_sums(objective, rows, sketched=False) for rows in copies]
        seconds = float(np.median([row["seconds"][0] for rows in copies for row in rows]))
        more = (float(found[f"pilot/{name}/more"]["seconds"][0]) - seconds) / _MORE
        trials[way] = Trial(
            values=np.stack([_weighted(s) for s in sums]),
            figure=float(np.mean([target.figure(objective, s).value for s in sums])),
            other=float(np.mean([_other_variance(objective, s, target) for s in sums])),
            seconds=seconds,
            more_seconds=max(more, 0.1 * seconds),
        )
    return trials


def rehearse(
    objective: Objective,
    plan: Plan,
    seed: int,
    target: Target,
    least: int,
    ledger: Ledger | None = None,
    progress: Callable[[int, int], None] | None = None,
    team: Team | None = None,
) -> Plan:
    """Carry the design out on groups of its own: its variance and seconds, without the luck of having been chosen."""
    size = min(rehearsal_size(plan.groups), len(objective.groups) - plan.first - least)
    if size < 3:
        return plan
    unit = _timed(objective, (plan.trace, plan.blocks), seed)
    units = {
        f"pilot/rehearsal/{group}": partial(unit, group, plan.probes, seed)
        for group in range(plan.first, plan.first + size)
    }
    rows = (team or Team()).map(units, ledger, progress, partial(peak_memory, objective.device))
    figure = target.figure(objective, group_sums(objective, rows, sketched=False))
    return settle(plan, target, figure, float(np.mean([row["seconds"][0] for row in rows])), least)


def _timed(objective: Objective, way: Way, seed: int) -> Callable[[int, int, int], Rows]:
    """Measures a group with so many probes of a seed, and keeps the seconds in its row."""
    sketch = GradientSketch(objective.parameters, seed, buckets_for(len(objective.groups)))
    sampler = BlockTrace(objective, way[1]) if way[0] == "taylor" else None

    def unit(group: int, probes: int, own_seed: int) -> Rows:
        start = time.perf_counter()
        found = group_statistics(objective, group, probes, own_seed, way[0], sketch, sampler)
        return {**group_row(found), "seconds": np.array([time.perf_counter() - start])}

    return unit


def _other_variance(objective: Objective, sums: GroupSums, target: Target) -> float:
    if target.quantity == "hessian_trace":
        return 0.0
    return len(sums.tokens) * (target.figure(objective, sums).sem ** 2 - sampled_statistics(sums).component(3).sem ** 2)


def _weighted(sums: GroupSums) -> Array:
    """(P,) per-token traces whose plain mean and variance are those of the ratio of sums, to first order."""
    weights = sums.tokens / sums.tokens.mean()
    samples = sums.hessian_trace.mean(axis=1) / sums.tokens
    mean = (weights * samples).mean()
    centred: Array = mean + weights * (samples - mean)
    return centred
