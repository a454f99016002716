"""Second samples of some groups, which tell the noise of probes from that of the text."""

from functools import partial

import numpy as np

from villani.curvature.group import group_statistics
from villani.curvature.sketch import GradientSketch
from villani.curvature.trace import sampler_for
from villani.curvature.ways import Way
from villani.measurement.rows import group_row
from villani.objective.objective import Objective
from villani.work.team import Rows
from villani.work.work import Work


def probe_variance(objective: Objective, way: Way, groups: int, seed: int, work: Work) -> float:
    """σ_w² of one probe on a group, per token: half the mean square of what two samples of a group differ by.

    Args:
        objective: whose first groups are sampled again.
        way: to the trace.
        groups: how many of them.
        seed: of their first samples; the second ones have the next.
        work: has the rows of the first samples.
    """
    nothing = GradientSketch(objective.parameters, seed, 1)
    sampler = sampler_for(objective, way)

    def again(group: int) -> Rows:
        return group_row(group_statistics(objective, group, 1, seed + 1, sampler, nothing))

    second = work.map({f"pilot/{group}": partial(again, group) for group in range(groups)})
    first = work.map({f"group/{group}": _measured for group in range(groups)})
    traces = np.array([[row["traces"].sum() / row["tokens"].sum() for row in rows] for rows in (first, second)])
    return float(np.mean((traces[0] - traces[1]) ** 2) / 2)


def _measured() -> Rows:
    raise AssertionError("a group is sampled again before it was measured")
