"""Which way, how many probes and how many groups reach a wanted error: a pilot measures noise and cost, a plan spends.

A sample of one group has variance σ_b² + σ_w²/m: σ_b² between groups, which every unbiased way shares, and σ_w² of a
way's probes, m of them. It takes a + m·c seconds. The plan is the way and m with the least variance × seconds, and as
many groups as the wanted error asks for (THEORY.md §6).

The pilot's groups decide the plan and nothing else: the figures come from other groups, so that no choice made on the
pilot biases them. Their number is fixed before they are looked at. Only where their standard error comes out too large
are more added; the coverage of the interval under this rule is simulated in `benchmarks/coverage_plan.py`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from villani.curvature.ways import Way
from villani.errors import InputError
from villani.measurement.target import Target
from villani.statistics import Array, Estimate

PILOT = 8  # groups that every way is tried on, twice each
SHARE, LEAST, MOST = 0.2, 16, 64  # the design chosen is rehearsed on a share of the groups that it seems to take
PROBES = (1, 2, 3, 4, 6, 8, 12, 16)
MARGIN = 1.05  # more groups are asked for than a standard error that came out too large needs
GROWTH = 2  # at most, from one look to the next: few groups can be far wrong about how many a share of the figure needs


@dataclass(frozen=True)
class Plan:
    """What is going to be measured, and what it will cost.

    Attributes:
        way: to the trace.
        probes: m, in a group.
        groups: how many, fixed before the first of them is measured.
        first: index of the first; those before it are the pilot's.
        probe_deviation: σ_w, of one probe on a group.
        data_deviation: of the figure between groups, without probe noise.
        seconds_per_group: of one process.
        uncertainty: relative standard error of `groups` as a prediction of how many it will take.
        note: why a faster way was left out; empty if none was.
    """

    way: Way
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
        probes = f"{self.probes} probe{'s' if self.probes > 1 else ''}"
        return f"{self.way}, {self.groups} groups of {probes} (give or take {100 * self.uncertainty:.0f} %)"


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
    way, probes = best
    value = float(np.mean([t.figure for t in trials.values()]))
    return Plan(
        way=way,
        probes=probes,
        groups=groups_for(target, value, variance(best), least),
        first=PILOT,
        probe_deviation=trials[way].probe_variance ** 0.5,
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
