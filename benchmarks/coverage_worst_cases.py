"""How often limits miss the truth where that is likeliest: python benchmarks/coverage_worst_cases.py [PART …]

Parts: selection, spectra, share, gap, threshold; all by default, about eight minutes on one core. In every row the
truth is known, and a share of misses stands against a level of 0.05. It is over 2,000 repetitions; 8,000 for `spectra`,
400 for `share`, 500 for `threshold`. Prints rows and writes docs/results/coverage-worst-cases.json.

    selection  the set of λ that cannot be told apart, and margins: ties, two or three seeds
    spectra    tr H and ‖H‖_F² from few probes, where few eigenvalues count
    share      the share of negative eigenvalues, by Lanczos, where eigenvalues crowd at 0
    gap        the least of many bounds on a spectral gap, all of which are tight
    threshold  the bound of s*, where gradient noise has few directions
"""

import argparse
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from coverage_threshold import too_small
from villani.choice.selection import GridLosses, indistinguishable, margin
from villani.curvature.spectrum import Density, Quadrature, quadrature
from villani.dynamics.convergence import autocorrelation_ceiling, variance_ceiling
from villani.dynamics.verdicts import MARGIN

PATH = Path(__file__).parents[1] / "docs" / "results" / "coverage-worst-cases.json"
REPETITIONS = {"selection": 2000, "spectra": 8000, "share": 400, "gap": 2000, "threshold": 500}
NOMINAL = 0.05
Row = dict[str, Any]


def selection(rng: np.random.Generator, repetitions: int) -> Iterator[Row]:
    """J equally good λ, K seeds, U units; the error of seeds is `ratio` times that of units."""
    for count, seeds, units in ((7, 2, 200), (7, 3, 200), (8, 2, 40), (8, 3, 40), (2, 2, 40)):
        for ratio in (0.1, 1.0, 2.0, 5.0, 10.0):
            lost, missed = 0, 0
            counts = np.full(units, 10.0)
            for _ in range(repetitions):
                noise = ratio * math.sqrt(seeds / units) * rng.standard_normal((count, seeds, 1))
                losses = (noise + rng.standard_normal((count, 1, units))) * counts
                grid = GridLosses(tuple(map(float, range(count))), losses, counts)
                lost += 0 not in indistinguishable(grid)
                found = margin(grid, losses[0], own=0)
                missed += found.low > 0
            case = f"J = {count}, K = {seeds}, U = {units}, seeds/units = {ratio}"
            yield {"case": case, "misses": {"best lost": lost / repetitions, "margin": missed / repetitions}}


SPECTRA = {
    "1": [1.0], "1, 1": [1.0, 1.0], "1, −1": [1.0, -1.0], "1, 0.7": [1.0, 0.7], "ten of 1": [1.0] * 10,
    "3 and −0.3 × 40": [3.0, *[-0.3] * 40], "1/i": [1 / i for i in range(1, 150)],
}  # fmt: skip


def spectra(rng: np.random.Generator, repetitions: int) -> Iterator[Row]:
    """Eigenvalues that are given, and zeros, 200 in all; the quadrature is exact."""
    for probes in (2, 4, 8):
        for name, values in SPECTRA.items():
            nodes = np.sort(np.concatenate([values, np.zeros(200 - len(values))]))
            truths, missed = (nodes.sum(), (nodes**2).sum()), np.zeros(2)
            for _ in range(repetitions):
                weights = rng.standard_normal((probes, 200)) ** 2
                weights /= weights.sum(axis=1, keepdims=True)
                found = Density(200, [[Quadrature(nodes, w, np.zeros(200)) for w in weights]])
                for i, estimate in enumerate((found.trace, found.frobenius_squared)):
                    low, high = estimate.interval(1 - NOMINAL)
                    missed[i] += not low <= truths[i] <= high
            tr, square = missed / repetitions
            yield {"case": f"{probes} probes; {name}", "misses": {"tr H": tr, "‖H‖_F²": square}}


def share(rng: np.random.Generator, repetitions: int) -> Iterator[Row]:
    """Three large eigenvalues and 197 that are normal of deviation `near`; 4 probes."""
    for steps in (10, 40, 80):
        for near in (0.3, 1e-2, 1e-6):
            missed = 0
            for _ in range(repetitions):
                values = np.concatenate([[5.0, 3.0, -1.0], near * rng.standard_normal(197)])
                h = torch.from_numpy(values)
                probes = [torch.from_numpy(rng.standard_normal(200)) for _ in range(4)]
                samples = [quadrature(lambda v, h=h: h * v, v, steps) for v in probes]
                low, high = Density(200, [samples], 2**-52).negative_share().interval(1 - NOMINAL)
                missed += not low <= (values < 0).mean() <= high
            yield {"case": f"{steps} steps; near 0: {near:g}", "misses": {"share below 0": missed / repetitions}}


def gap(rng: np.random.Generator, repetitions: int) -> Iterator[Row]:
    """Six bounds at once from three observables that all relax at the gap, 1, in steps of η by the noisy step."""
    looked = 6
    for chains, count, rate, every, walkers in (
        (3, 100, 0.05, 4, 1), (4, 200, 0.05, 4, 1), (8, 500, 0.02, 5, 1), (4, 100, 0.1, 2, 64),
    ):  # fmt: skip
        below = {"least limit": 0, f"times {MARGIN:g}": 0, "each at 95 %": 0}
        for _ in range(repetitions):
            limits: dict[float, list[float]] = {1 - NOMINAL / looked: [], 1 - NOMINAL: []}
            for _ in range(looked // 2):
                curve = stepped(rng, chains, count, rate, every) / math.sqrt(walkers)
                for level, kept in limits.items():
                    found = (
                        autocorrelation_ceiling("x", rate * every, curve, level),
                        variance_ceiling("x", 1.0, curve, walkers, level),
                    )
                    kept.extend(ceiling.limit for ceiling in found if ceiling is not None)
            least, each = (min(kept, default=math.inf) for kept in limits.values())
            below["least limit"] += least < 1
            below[f"times {MARGIN:g}"] += MARGIN * least < 1
            below["each at 95 %"] += each < 1
        case = f"{chains} chains of {count}, η = {rate:g}, {walkers} walkers"
        yield {"case": case, "misses": {name: number / repetitions for name, number in below.items()}}


def stepped(rng: np.random.Generator, chains: int, count: int, rate: float, every: int) -> np.ndarray:
    """(C, n) of θ ← θ − ηθ + √(2η) ξ at equilibrium, every so many steps: an exact autoregression of that memory."""
    memory, variance = (1 - rate) ** every, 1 / (1 - rate / 2)
    curve = np.empty((chains, count))
    curve[:, 0] = math.sqrt(variance) * rng.standard_normal(chains)
    noise = math.sqrt(variance * (1 - memory**2)) * rng.standard_normal((chains, count))
    for k in range(1, count):
        curve[:, k] = memory * curve[:, k - 1] + noise[:, k]
    return curve


def threshold(rng: np.random.Generator, repetitions: int) -> Iterator[Row]:
    """The bound of s* of Theorem D on the synthetic groups of `coverage_threshold.py`, over three sizes of ‖γ‖."""
    for skewed in (False, True):
        for rank in (1, 2, 5, 20, 100):
            for groups in (4, 12):
                shares = [too_small(rng, groups, rank, size, 0.1, skewed, repetitions) for size in (1.0, 3.0, 10.0)]
                case = f"{rank} directions, {groups} groups, {'exponential' if skewed else 'normal'}"
                yield {"case": case, "misses": {"bound of s*": max(shares)}}


PARTS = {"selection": selection, "spectra": spectra, "share": share, "gap": gap, "threshold": threshold}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], default=[])
    asked = parser.parse_args().parts or list(PARTS)
    for name in asked:
        rng = np.random.default_rng(0)
        rows = []
        for row in PARTS[name](rng, REPETITIONS[name]):
            rows.append(row)
            print(
                f"{name}: {row['case']}: " + ", ".join(f"{of} {x:.3f}" for of, x in row["misses"].items()), flush=True
            )
        known = json.loads(PATH.read_text()) if PATH.exists() else {"nominal": NOMINAL, "parts": {}}
        known["parts"][name] = rows
        PATH.write_text(json.dumps(known, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
