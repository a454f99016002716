"""Ways tried on a few groups, and the chosen one rehearsed on others: their noise and their seconds."""

import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from villani.curvature.group import group_statistics
from villani.curvature.sketch import GradientSketch, buckets_for
from villani.curvature.trace import refusal, sampler_for
from villani.curvature.ways import Way
from villani.measurement.plan import PILOT, Plan, Trial, rehearsal_size, settle
from villani.measurement.rows import group_row, group_sums
from villani.measurement.target import Target
from villani.objective.objective import Objective
from villani.statistics import Array, GroupSums, sampled_statistics
from villani.work.team import Rows
from villani.work.work import Work

FORWARD = (Way("taylor"), Way("taylor", "layer"), Way("adjoint"))
STREAMED = (*FORWARD[:2], Way("gauss-newton"))
REVERSE = (Way("gauss-newton"), Way("hutchinson"))
MORE = 2  # further probes by which their cost is told


def ways_for(objective: Objective) -> tuple[tuple[Way, ...], str]:
    """The ways that the model allows, and why Taylor sweeps are not among them if so."""
    if objective.loss_fn is not None:
        return (Way("hutchinson"),), "a custom loss_fn has neither logits nor a traced graph"
    note = refusal(objective, Way("taylor"))
    return (REVERSE, note) if note else (STREAMED if objective.streamed else FORWARD, "")


def pilot(
    objective: Objective, ways: Sequence[Way], seed: int, target: Target, work: Work | None = None
) -> dict[Way, Trial]:
    """Try every way on the first `PILOT` groups, twice each with probes of their own, and time it."""
    units: dict[str, Callable[[], Rows]] = {}
    for index, way in enumerate(ways):
        unit = _timed(objective, way, seed)
        units |= {
            f"pilot/{way.key}/{copy}/{group}": partial(unit, group, 1, seed + 1 + 2 * index + copy)
            for group in range(PILOT)
            for copy in (0, 1)
        }
        units[f"pilot/{way.key}/more"] = partial(unit, 0, 1 + MORE, seed)
    rows_of = dict(zip(units, (work or Work()).map(units), strict=True))
    trials = {}
    for way in ways:
        copies = [[rows_of[f"pilot/{way.key}/{copy}/{group}"] for group in range(PILOT)] for copy in (0, 1)]
        sums = [group_sums(objective.parameters.decayed, rows, sketched=False) for rows in copies]
        seconds = float(np.median([row["seconds"][0] for rows in copies for row in rows]))
        more = (float(rows_of[f"pilot/{way.key}/more"]["seconds"][0]) - seconds) / MORE
        trials[way] = Trial(
            values=np.stack([_weighted(s) for s in sums]),
            figure=float(np.mean([target.figure(objective, s).value for s in sums])),
            other=float(np.mean([_other_variance(objective, s, target) for s in sums])),
            seconds=seconds,
            more_seconds=max(more, 0.1 * seconds),
        )
    return trials


def rehearse(objective: Objective, plan: Plan, seed: int, target: Target, least: int, work: Work | None = None) -> Plan:
    """Carry the design out on groups of its own: its variance and seconds, without the luck of having been chosen."""
    size = min(rehearsal_size(plan.groups), len(objective.groups) - plan.first - least)
    if size < 3:
        return plan
    unit = _timed(objective, plan.way, seed)
    units = {
        f"pilot/rehearsal/{group}": partial(unit, group, plan.probes, seed)
        for group in range(plan.first, plan.first + size)
    }
    rows = (work or Work()).map(units)
    figure = target.figure(objective, group_sums(objective.parameters.decayed, rows, sketched=False))
    return settle(plan, target, figure, float(np.mean([row["seconds"][0] for row in rows])), least)


def _timed(objective: Objective, way: Way, seed: int) -> Callable[[int, int, int], Rows]:
    """Measures a group with so many probes of a seed, and keeps the seconds in its row."""
    sketch = GradientSketch(objective.parameters, seed, buckets_for(len(objective.groups)))
    sampler = sampler_for(objective, way)

    def unit(group: int, probes: int, own_seed: int) -> Rows:
        start = time.perf_counter()
        row = group_row(group_statistics(objective, group, probes, own_seed, sampler, sketch))
        return {**row, "seconds": np.array([time.perf_counter() - start])}

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
