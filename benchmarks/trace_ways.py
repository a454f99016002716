"""Seconds, probe noise and data noise of every way to tr ∇²L, on the same groups in one alternating run.

python benchmarks/trace_ways.py runs/demo/model builtin builtin 40                        (after `make demo`; a minute)
python benchmarks/trace_ways.py config:gpt-neo-125m ptb gpt2 6 --skip taylor-tensor       (VILLANI_DATA; ten minutes)

Each way samples every group twice, with different probes. `figure` is the variance of one sample on fresh data times
its seconds: lower is better. `gradient` is what any of them adds for ‖∇L‖² where it does not come along. Appends to
docs/results/trace-ways.json under the model's name.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from villani.curvature.blocks import BlockTrace
from villani.curvature.sketch import GradientSketch
from villani.curvature.trace import group_statistics
from villani.landscape.models import load_model
from villani.landscape.objective import Objective
from villani.landscape.text import load_groups
from villani.landscape.tokenizers import load_tokenizer
from villani.studies.measure_model import as_groups, vocabulary

Sampler = Callable[[int, int], float]
PATH = Path(__file__).parents[1] / "docs" / "results" / "trace-ways.json"


def samplers(objective: Objective) -> dict[str, Sampler]:
    """Way → (group, probe) → one sample of the group's trace, per token."""
    sketch = GradientSketch(objective.parameters, 0)
    tokens = [sum(batch.tokens for batch in objective.batches(g)) for g in range(len(objective.groups))]

    def reverse(method: str) -> Sampler:
        return lambda g, k: group_statistics(objective, g, 1, k, method, sketch).traces.sum() / tokens[g]

    def forward(kind: str) -> Sampler:
        sampler = BlockTrace(objective, kind)
        return lambda g, k: (
            sum(sampler.sample(b, k, (g, i)).traces.sum() for i, b in enumerate(objective.batches(g))) / tokens[g]
        )

    def gradient(g: int, _: int) -> float:
        for batch in objective.batches(g):
            torch.autograd.grad(objective.forward(batch).loss, objective.parameters.tensors)
        return 0.0

    ways = {method: reverse(method) for method in ("hutchinson", "gauss-newton")}
    ways |= {f"taylor-{kind}": forward(kind) for kind in ("whole", "layer", "tensor")}
    return ways | {"gradient": gradient}


def main(model: str, text: str, tokenizer: str, groups: str, *skip: str) -> None:
    torch.set_num_threads(2)
    loaded = load_model(model)
    count = int(groups)
    ids, labels, _ = load_groups(
        text, load_tokenizer(tokenizer), block=128, groups=count, sequences=4, seed=0,
        vocabulary=vocabulary(loaded.model), context=loaded.record.context,
    )  # fmt: skip
    objective = Objective(loaded.model, as_groups(ids, labels))
    ways = {name: way for name, way in samplers(objective).items() if name not in skip}
    for way in ways.values():
        way(0, 0)  # traces, warms up
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    values: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for g in range(count):
        for name, way in ways.items():
            start = time.perf_counter()
            values[name].append((way(g, 1), way(g, 2)))
            seconds[name].append((time.perf_counter() - start) / 2)
    rows = {}
    for name in ways:
        pairs = np.array(values[name])
        probe = ((pairs[:, 0] - pairs[:, 1]) ** 2).mean() / 2
        total = probe + max(pairs.mean(axis=1).var(ddof=1) - probe / 2, 0.0)
        median = float(np.median(seconds[name]))
        error = pairs.mean(axis=1).std(ddof=1) / count**0.5
        rows[name] = {"seconds": median, "mean": pairs.mean(), "error": error, "probe_deviation": probe**0.5}
        rows[name] |= {"total_deviation": total**0.5, "figure": total * median}
        print(name, {key: float(f"{value:.3g}") for key, value in rows[name].items()}, flush=True)
    kept = json.loads(PATH.read_text()) if PATH.exists() else {}
    kept[Path(model).parent.name if "/" in model else model] = {
        "groups": count,
        "tokens": 4 * 128,
        "text": text,
        "ways": rows,
    }
    PATH.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main(*(word for word in sys.argv[1:] if word != "--skip"))
