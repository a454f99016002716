"""Measure until a figure is known as well as is wanted."""

import math
from collections.abc import Callable

from villani.errors import InputError
from villani.measurement.design import SHARES
from villani.measurement.measure import measure
from villani.measurement.measurement import Measurement
from villani.measurement.pilot import pilot, rehearse, ways_for
from villani.measurement.plan import PILOT, Plan, make_plan, more_groups
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

    Args:
        objective: its groups are the supply, of which as many are used as it takes.
        target: the wanted error.
        seed: of everything random.
        least: groups to measure at least.
        shares: see `measure`.
        on_plan: called with the plan before it is carried out.
        work: as of `measure`; keeps the pilot's groups too, and a resumed run keeps to the plan that was made first.

    Raises:
        InputError: `objective.finite`, a supply that is too small for the pilot or for the wanted error, or what
            `measure` raises.
    """
    if objective.finite:
        raise InputError("a target error needs groups that are a sample of the text: with finite=True, set probes")
    supply = len(objective.groups)
    if supply < PILOT + max(least, 3):
        raise InputError(f"{supply} groups: a target error needs {PILOT + max(least, 3)} or more to choose from")
    work = work or Work()
    work.stage("trying ways on a pilot", PILOTING)
    plan = _planned(objective, target, seed, least, shares, work)
    if on_plan:
        on_plan(plan)
    work.stage(f"measuring: {plan}, about {duration(plan.seconds / work.team.size)}", MEASURING)
    count = plan.groups
    while True:
        if plan.first + count > supply:
            left = supply - plan.first
            raise InputError(
                f"target_error={target.error:g} needs {count} groups or more, "
                f"{duration(count * plan.seconds_per_group)} of work, and {left} are there: "
                f"raise max_groups, or ask for about {target.error * math.sqrt(count / left):.2g}"
            )
        measurement = measure(
            objective, plan.probes, seed, trace=plan.way.trace, blocks=plan.way.blocks,
            groups=range(plan.first, plan.first + count), shares=shares, work=work,
        )  # fmt: skip
        wanted = more_groups(count, target.estimate(measurement), target)
        if wanted == count:
            return measurement, plan
        count = wanted


def _planned(objective: Objective, target: Target, seed: int, least: int, shares: int, work: Work) -> Plan:
    """The best way on `PILOT` groups, then rehearsed on others to know its noise and its cost."""
    ways, note = ways_for(objective)
    if not shares:  # no double backward passes, then
        ways = tuple(way for way in ways if way.trace in ("taylor", "adjoint")) or ways
    plan = make_plan(pilot(objective, ways, seed, target, work.part(0, 2)), target, least=least, note=note)
    return rehearse(objective, plan, seed, target, least, work.part(1, 2))
