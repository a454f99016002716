"""Measure until a figure is known as well as is wanted."""

import math
from collections.abc import Callable
from functools import partial

from villani.curvature.trace import default_way
from villani.curvature.ways import Way
from villani.errors import InputError
from villani.measurement.design import SHARES
from villani.measurement.measure import measure
from villani.measurement.measurement import Measurement
from villani.measurement.pilot import probe_variance
from villani.measurement.plan import START, Plan, groups_for, make_plan, more_groups, repeated
from villani.measurement.target import Target
from villani.objective.objective import Objective, at_one_theta
from villani.work.progress import duration
from villani.work.work import Work

PILOTING, MEASURING = "pilot", "measuring"  # stages


@at_one_theta
def measure_to(
    objective: Objective, target: Target, *, seed: int = 0, least: int = 16, shares: int = SHARES,
    on_plan: Callable[[Plan], None] | None = None, work: Work | None = None,
) -> tuple[Measurement, Plan]:  # fmt: skip
    """Measure until the standard error of the figure is at most what is wanted.

    The first groups, `least` of them, say how many it takes; they count. All that is used are the first groups of the
    objective, by the way that `measure` chooses and with one probe each: `measure` on as many gives the same figures.

    Args:
        objective: its groups are the supply, of which as many are used as it takes.
        target: the wanted error.
        seed: of everything random.
        least: groups to measure at least; 12 whatever is asked.
        shares: see `measure`.
        on_plan: called with the plan when the first groups are measured.
        work: as of `measure`; a resumed run has the same plan.

    Raises:
        InputError: `objective.finite`, a supply that is too small for a plan or for the wanted error, or what
            `measure` raises.
    """
    if objective.finite:
        raise InputError("a target error needs groups that are a sample of the text: with finite=True, set probes")
    supply, count = len(objective.groups), max(least, START)
    if supply < count:
        raise InputError(f"{supply} groups: a target error needs {count} or more to choose from")
    work = work or Work()
    work.stage("measuring the first groups, which say how many it takes", PILOTING)
    trace, reason = default_way(objective, range(supply))

    def measured(groups: int, part: Work) -> Measurement:
        return measure(objective, 1, seed, trace=trace, groups=range(groups), shares=shares, work=part)

    measurement = measured(count, work.part(0, 2))
    figure = target.estimate(measurement)
    seconds, _, units = work.spent("group/")
    again = repeated(groups_for(figure, target))
    plan = make_plan(
        Way(trace), figure, target, seconds_per_group=seconds / units, note="" if trace == "adjoint" else reason,
        probe_variance=probe_variance(objective, Way(trace), min(again, count), seed, work.part(1, 2)),
    )  # fmt: skip
    refuse = partial(_refuse_beyond, supply, target, plan)
    refuse(plan.groups)
    if on_plan:
        on_plan(plan)
    work.stage(f"measuring: {plan}, about {duration(plan.seconds / work.team.size)}", MEASURING)
    wanted = plan.groups
    while wanted > count:
        count = wanted
        refuse(count)
        measurement = measured(count, work)
        wanted = more_groups(target.estimate(measurement), target)
    return measurement, plan


def _refuse_beyond(supply: int, target: Target, plan: Plan, count: int) -> None:
    if count > supply:
        raise InputError(
            f"target_error={target.error:g} needs {count} groups or more, "
            f"{duration(count * plan.seconds_per_group)} of work, and {supply} are there: "
            f"raise max_groups, or ask for about {target.error * math.sqrt(count / supply):.2g}"
        )
