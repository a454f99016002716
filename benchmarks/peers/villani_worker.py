"""villani: any way of benchmarks/trace_ways.py."""

import sys
from pathlib import Path

import numpy as np
import torch
from common import serve

sys.path.insert(0, str(Path(__file__).parents[1]))
from trace_ways import samplers
from villani.landscape.models import load_model
from villani.landscape.objective import Objective


def main(folder: str, groups: str, threads: str, way: str) -> None:
    torch.set_num_threads(int(threads))
    objective = Objective(load_model(folder).model, torch.from_numpy(np.load(groups)))
    sampler = samplers(objective)[way]
    serve(lambda group, probe: float(sampler(group, probe)), "villani")


if __name__ == "__main__":
    main(*sys.argv[1:])
