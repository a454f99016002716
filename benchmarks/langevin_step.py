"""What noise and observables cost: a noisy step against a plain SGD step, and with observables, alternated in one run.

python benchmarks/langevin_step.py 'config:gpt-neo-125m?layers=4&width=128&heads=4&context=128'     (a minute)
python benchmarks/langevin_step.py config:gpt-neo-125m --repeats 7                                  (minutes)

The plain step is torch.optim.SGD with weight decay after the same forward and backward passes of 4 blocks of random
tokens. Seconds are medians; each round does all four steps in turn, and a ratio is the median of the rounds' ratios.
Memory is the peak of a process of its own for each way, three steps long. Prints one line of JSON, and with --output
writes it.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

from villani.commands.converge.settings import ConvergeSettings
from villani.dynamics.kernel import Kernel
from villani.dynamics.langevin import advance
from villani.dynamics.network import NetworkTarget
from villani.inputs.models import load_model
from villani.objective.objective import Objective
from villani.work.memory import peak_memory

BLOCKS = 16
KERNEL = {"weight_decay": 0.1, "temperature": 1e-6, "learning_rate": 1e-4}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--sequences", type=int, default=4)
    parser.add_argument("--block", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--peak", help="only this way, for its peak memory")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    model = load_model(asked.model).model
    vocabulary = model.get_input_embeddings().num_embeddings
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, vocabulary, (BLOCKS, 1, asked.block), generator=generator)
    objective = Objective(model, ids, finite=True, micro_tokens=asked.sequences * asked.block)
    target = NetworkTarget(objective, batch=asked.sequences, seed=0)
    optimizer = torch.optim.SGD(target.tensors, lr=KERNEL["learning_rate"], weight_decay=KERNEL["weight_decay"])
    kernel, heavy = Kernel(**KERNEL, steps=1000), Kernel(**KERNEL, steps=1000, momentum=0.9)
    velocity = [torch.zeros_like(t) for t in target.tensors] if asked.peak in (None, "noisy_momentum") else []

    def plain(step: int) -> None:
        target.evaluate(0, step)
        optimizer.step()

    def walk(step: int, which: Kernel, speeds: list[torch.Tensor] | None, log_every: int) -> None:
        advance(
            target, which, seed=0, chain=0, start=step, velocity=speeds, log_every=log_every, ceiling=float("inf"),
            enough=lambda _: True,
        )  # fmt: skip

    never = 10**9
    ways = {
        "plain": plain,
        "noisy": lambda step: walk(step, kernel, None, never),
        "noisy_momentum": lambda step: walk(step, heavy, velocity, never),
        "observed": lambda step: walk(step, kernel, None, 1),
    }
    if asked.peak:
        with target.running():
            for step in range(1, 4):
                ways[asked.peak](step)
        print(peak_memory(objective.device))
        return
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    with target.running():
        for repeat in range(1, asked.repeats + 2):  # step 0 is always logged
            for name, way in ways.items():
                start = time.perf_counter()
                way(repeat)
                seconds[name].append(time.perf_counter() - start)
    medians = {name: float(np.median(values[1:])) for name, values in seconds.items()}
    ratios = {
        name: float(np.median(np.array(values[1:]) / np.array(seconds["plain"][1:])))
        for name, values in seconds.items()
    }
    observing = np.median((np.array(seconds["observed"]) - np.array(seconds["noisy"]))[1:]) / medians["noisy"]
    peaks = {}
    for name in ways:
        child = [sys.executable, __file__, *sys.argv[1:], "--peak", name]
        peaks[name] = int(subprocess.run(child, check=True, capture_output=True, text=True).stdout)
    every = ConvergeSettings(model=asked.model).filled().log_every
    size = sum(t.numel() for t in target.tensors)
    print(
        line := json.dumps(
            {
                "model": asked.model, "parameters": size, "sequences": asked.sequences, "block": asked.block,
                "threads": asked.threads, "repeats": asked.repeats, "seconds": medians, "ratio_to_plain_sgd": ratios,
                "observables_every_step": float(observing), "default_interval": every,
                "observables_at_default_interval": float(observing) / every,
                "bytes_of_theta": sum(t.numel() * t.element_size() for t in target.tensors), "peak_bytes": peaks,
            }
        )
    )  # fmt: skip
    if asked.output:
        asked.output.write_text(line + "\n")


if __name__ == "__main__":
    main()
