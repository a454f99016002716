"""How often a bound of s* by the jackknife alone is too small: python benchmarks/coverage_threshold.py

Three minutes on one core; what is printed now is in `coverage_worst_cases.py`.

Synthetic groups: the gradient of the shrinking block B is γ plus noise of so many equal directions, the trace Δ_B L = 1
plus noise, and on an orbit of Theorem D the true s* is ‖γ‖². The bound is the upper end of a two-sided 95 % interval,
so its level would be 0.025. Writes docs/results/coverage-threshold.json.

With `--model FOLDER` it prints instead how many directions the noise of real gradients has, (tr Σ)²/tr Σ² for every
tensor, and how large ‖γ‖² is beside the noise of a mean over six groups: which rows of the table apply (VILLANI_DATA).
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from villani.criteria import orbits
from villani.criteria.orbits import threshold
from villani.criteria.parts import PartStatistics
from villani.inputs.groups import groups_from_text
from villani.inputs.models import load_model
from villani.objective.objective import Objective

PATH = Path(__file__).parents[1] / "docs" / "results" / "coverage-threshold.json"
REPETITIONS = 2000
GROUPS = (4, 6, 8, 12)
RANKS = (1, 2, 5, 20, 100)
SIZES = (0.3, 1.0, 3.0, 10.0)  # ‖γ‖² over the squared noise of a mean over the groups
TRACE_NOISE = (0.1, 0.5)  # of one group, where Δ_B L = 1
ORBIT = np.array([1.0, -2.0])  # Theorem D's exponents of A and B


def statistics(gradients: np.ndarray, traces: np.ndarray) -> PartStatistics:
    """Of two parts, A with unit norm and B, from (G, k) gradients of B and (G,) traces."""
    count = len(traces)
    zeros = np.zeros(count)
    total = gradients.sum(axis=0)
    return PartStatistics(
        tokens=np.ones(count), losses=zeros, norms=np.array([1.0, 0.0]), dots=np.zeros((count, 2)),
        squares=np.stack([zeros, (gradients**2).sum(axis=1)], axis=1),
        products=np.stack([zeros, gradients @ total], axis=1), totals=np.array([0.0, total @ total]),
        traces=np.stack([zeros, traces], axis=1)[:, None], finite=False, exact=False,
        gram=np.stack([np.zeros((count, count)), gradients @ gradients.T], axis=2),
    )  # fmt: skip


def too_small(
    rng: np.random.Generator, groups: int, rank: int, size: float, noise: float, skewed: bool,
    repetitions: int = REPETITIONS,
) -> float:  # fmt: skip
    """Share of bounds below the truth, Theorem D."""
    gradient = np.full(rank, np.sqrt(size / groups / rank))
    truth, misses = float(gradient @ gradient), 0

    def draw(*shape: int) -> np.ndarray:
        return rng.exponential(size=shape) - 1 if skewed else rng.normal(size=shape)

    for _ in range(repetitions):
        found = statistics(gradient + draw(groups, rank) / np.sqrt(rank), 1 + noise * draw(groups))
        misses += threshold(ORBIT, found, 1.0).upper < truth
    return misses / repetitions


def table() -> None:
    """Of the jackknife alone, whatever the number of directions."""
    orbits.ENOUGH = 0.0
    rng = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    for skewed in (False, True):
        for rank in RANKS:
            for groups in GROUPS:
                shares = [too_small(rng, groups, rank, size, noise, skewed) for size in SIZES for noise in TRACE_NOISE]
                rows.append({"skewed": skewed, "directions": rank, "groups": groups, "too_small": shares})
                print(rows[-1], flush=True)
    columns = [{"gradient_over_noise": size, "trace_noise": noise} for size in SIZES for noise in TRACE_NOISE]
    record = {"nominal": 0.025, "repetitions": REPETITIONS, "columns": columns, "rows": rows}
    PATH.write_text(json.dumps(record, indent=1) + "\n")


def directions(folder: str, count: int = 40) -> None:
    """Of the gradients' noise on PTB, groups of 4 × 128 tokens, tensor by tensor."""
    loaded = load_model(folder)
    groups = groups_from_text("ptb", loaded, tokenizer="gpt2", groups=count, sequences=4, block=128)
    objective = Objective(loaded.model, groups)
    kept = [[g.reshape(-1).float().numpy() for g in objective.gradient(group)] for group in range(count)]
    for index, parameter in enumerate(objective.parameters.parameters):
        rows = np.stack([gradient[index] for gradient in kept]).astype(np.float64)
        gram = rows @ rows.T
        pairs = gram - np.diag(np.diag(gram))
        square = pairs.sum() / (count * (count - 1))  # ‖γ‖²
        halves = (rows[::2] - rows[1::2]) / np.sqrt(2)  # noise alone, independent
        noise = halves @ halves.T
        other = noise - np.diag(np.diag(noise))
        trace = np.diag(noise).mean()
        rank = trace**2 / ((other**2).sum() / (len(halves) * (len(halves) - 1)))
        print(f"{parameter.name:45} directions {rank:8.1f}   ‖γ‖²/(noise of six) {square / (trace / 6):8.2f}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model")
    asked = parser.parse_args()
    directions(asked.model) if asked.model else table()


if __name__ == "__main__":
    main()
