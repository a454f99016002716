"""How many groups reach a wanted error: the first of them tell, and count.

One sample of every group is an unbiased sample of the figure, with the noise of text and probe together, so that its
variance over n groups says how many bring the standard error down to the target (THEORY.md §6). More probes in a group
would save little: with the gradient that every group takes anyway, a probe of any way costs about as much as another
group, and another group lowers both kinds of noise.

The groups that the number was planned on stay in the figure. An estimate that is looked at before it is decided whether
to go on covers a little less, and how much is simulated in `benchmarks/coverage_plan.py`.
"""

import math
from dataclasses import dataclass

from villani.curvature.ways import Way
from villani.errors import InputError
from villani.measurement.target import Target
from villani.statistics import Estimate

START = 12  # groups that a number of groups is planned on, at least
SHARE, LEAST, MOST = 0.125, 2, 8  # of the groups planned, those sampled twice to tell probe noise from that of the text
MARGIN = 1.05  # more groups are asked for than a standard error that came out too large needs
GROWTH = 2  # at most, from one look to the next: few groups can be far wrong about how many a share of the figure needs


@dataclass(frozen=True)
class Plan:
    """What is going to be measured, and what it will cost.

    Attributes:
        way: to the trace.
        probes: in a group.
        groups: how many it will take, those that the plan was made on included.
        start: how many it was made on.
        probe_deviation: σ_w, of one probe on a group.
        data_deviation: of the figure between groups, without probe noise.
        seconds_per_group: of one process.
        uncertainty: relative standard error of `groups` as a prediction of how many it will take.
        note: why a faster way was left out; empty if none was.
    """

    way: Way
    probes: int
    groups: int
    start: int
    probe_deviation: float
    data_deviation: float
    seconds_per_group: float
    uncertainty: float
    note: str = ""

    @property
    def seconds(self) -> float:
        """Predicted, summed over processes, of all groups."""
        return self.groups * self.seconds_per_group

    def __str__(self) -> str:
        probes = f"{self.probes} probe{'s' if self.probes > 1 else ''}"
        return f"{self.way}, {self.groups} groups of {probes} (give or take {100 * self.uncertainty:.0f} %)"


def make_plan(
    way: Way, figure: Estimate, target: Target, *, probe_variance: float, seconds_per_group: float, note: str = ""
) -> Plan:
    """What the first groups say about all.

    Args:
        way: by which they were measured.
        figure: that is wanted, of these groups.
        target: its wanted error.
        probe_variance: σ_w², of one probe on a group, in the figure.
        seconds_per_group: that they took.
        note: see `Plan`.
    """
    variance = figure.n * figure.sem**2
    error = figure.sem / abs(figure.value) if target.relative and figure.value else 0.0
    return Plan(
        way=way,
        probes=1,
        groups=groups_for(figure, target),
        start=figure.n,
        probe_deviation=probe_variance**0.5,
        data_deviation=max(variance - probe_variance, 0.0) ** 0.5,
        seconds_per_group=seconds_per_group,
        uncertainty=math.sqrt(2 / (figure.n - 1) + 4 * error**2),  # of a variance, and of a squared figure
        note=note,
    )


def groups_for(estimate: Estimate, target: Target) -> int:
    """How many groups bring the standard error down to the target, as far as these can tell; no fewer than these.

    Raises:
        InputError: a relative error of 0.
    """
    allowed = target.allowed(estimate.value)
    if estimate.sem <= allowed:
        return estimate.n
    if allowed == 0:
        raise InputError(f"{target.quantity} is 0: a relative error of it cannot be reached; give an absolute one")
    return max(estimate.n + 1, math.ceil(MARGIN * estimate.n * (estimate.sem / allowed) ** 2))


def more_groups(estimate: Estimate, target: Target) -> int:
    """How many groups to have when it is looked at next; as many as there are when the error is small enough."""
    return min(groups_for(estimate, target), GROWTH * estimate.n)


def repeated(groups: int) -> int:
    """How many of so many planned groups are sampled twice."""
    return min(max(int(SHARE * groups), LEAST), MOST)
