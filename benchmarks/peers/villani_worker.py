"""villani: one sample of tr ∇²L in one of the ways that `villani measure` knows, or `taylor-layer`, `taylor-tensor`."""

import sys

import numpy as np
import torch
from common import serve

from villani.curvature.blocks import BlockTrace
from villani.curvature.group import group_statistics
from villani.curvature.sketch import GradientSketch
from villani.curvature.trace import sampler_for
from villani.curvature.ways import Way
from villani.inputs.models import load_model
from villani.objective.objective import Objective


def main(folder: str, groups: str, threads: str, way: str) -> None:
    torch.set_num_threads(int(threads))
    objective = Objective(load_model(folder).model, torch.from_numpy(np.load(groups)))

    def swept(group: int, probe: int) -> float:
        return sum(sweeps.sample(b, probe, (group, i)).traces.sum() for i, b in enumerate(objective.batches(group)))

    def reverse(group: int, probe: int) -> float:
        return float(group_statistics(objective, group, 1, probe, sampler, sketch).traces.sum())

    if way.startswith("taylor"):
        sweeps = BlockTrace(objective, "whole" if way == "taylor" else way.removeprefix("taylor-"))
        sample = swept
    else:
        sketch = GradientSketch(objective.parameters, 0)
        sampler = sampler_for(objective, Way(way))
        sample = reverse
    tokens = [sum(batch.tokens for batch in objective.batches(g)) for g in range(len(objective.groups))]
    serve(lambda group, probe: float(sample(group, probe)) / tokens[group], "villani")


if __name__ == "__main__":
    main(*sys.argv[1:])
