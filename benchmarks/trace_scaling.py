"""How the cost of a Taylor probe grows with tokens, block length, width, depth and probes.

python benchmarks/trace_scaling.py                                                  (a few minutes on an idle machine)

From a base of 4 layers, width 256, 4 blocks of 128 tokens, a vocabulary of 2,000 and one probe, one thing is varied at
a time. Seconds are medians of several samples, forward passes of the same batch alternating with them; memory is the
peak of the process above what it held before the first sample. Fits log seconds against log size. Writes
docs/results/trace-scaling.json.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

from villani.curvature.blocks import BlockTrace
from villani.curvature.trace import SWEPT
from villani.inputs.models import load_model
from villani.objective.objective import Objective
from villani.work.memory import peak_memory

PATH = Path(__file__).parents[1] / "docs" / "results" / "trace-scaling.json"
BASE = {"layers": 4, "width": 256, "sequences": 4, "block": 128, "probes": 1}
VARIED = {
    "sequences": (2, 4, 8, 16, 32),
    "block": (64, 128, 256, 512, 1024),
    "width": (128, 256, 512, 1024),
    "layers": (2, 4, 8, 16),
    "probes": (1, 2, 4, 8, 16),
}
REPEATS = 5


def one(layers: int, width: int, sequences: int, block: int, probes: int) -> dict[str, float]:
    torch.set_num_threads(2)
    model = load_model(f"config:gpt-neo-125m?layers={layers}&width={width}&vocab=2000").model
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 2000, (1, sequences, block), generator=generator)
    objective = Objective(model, ids, micro_tokens=sequences * block)
    batch = next(objective.batches(0))
    sampler = BlockTrace(objective)
    sampler.check(batch)
    with torch.no_grad(), objective.evaluating():
        objective.forward(batch)
    before = peak_memory(objective.device)
    forward, sample = [], []
    for repeat in range(REPEATS + 1):
        start = time.perf_counter()
        with torch.no_grad(), objective.evaluating():
            objective.forward(batch)
        middle = time.perf_counter()
        for first in range(0, probes, SWEPT):
            sampler.sample(batch, 0, *[(repeat, k) for k in range(first, min(first + SWEPT, probes))])
        forward.append(middle - start)
        sample.append(time.perf_counter() - middle)
    after = peak_memory(objective.device)
    return {
        "forward_seconds": float(np.median(forward[1:])),
        "seconds": float(np.median(sample[1:])),
        "forwards_per_probe": float(np.median(np.array(sample[1:]) / np.array(forward[1:]))) / probes,
        "peak_bytes_above": after - before,
    }


def main() -> None:
    result = {}
    for name, values in VARIED.items():
        rows = []
        for value in values:
            asked = BASE | {name: value}
            worker = [sys.executable, __file__, json.dumps(asked)]
            rows.append({name: value, **json.loads(subprocess.run(worker, check=True, capture_output=True).stdout)})
            print(name, {k: float(f"{v:.3g}") for k, v in rows[-1].items()}, flush=True)
        sizes, seconds = (np.log([row[key] for row in rows]) for key in (name, "seconds"))
        exponent, _ = np.polyfit(sizes, seconds, 1)
        last = (seconds[-1] - seconds[-2]) / (sizes[-1] - sizes[-2])
        result[name] = {"exponent": float(exponent), "exponent_of_last_step": float(last), "rows": rows}
        print(f"{name}: seconds grow with the power {exponent:.2f}, between the last two {last:.2f}", flush=True)
    PATH.write_text(json.dumps({"base": BASE, "varied": result}, indent=1) + "\n")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(one(**json.loads(sys.argv[1]))))
    else:
        main()
