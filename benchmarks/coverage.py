"""How often 95 % intervals hold the truth, from a large gradient to a stationary point: python benchmarks/coverage.py

Synthetic groups whose gradient noise has a known spectrum i^−decay over 300 directions, so that ‖∇L‖² is known. Prints
a table and writes docs/results/coverage.json. About two minutes on one core.
"""

import json
from pathlib import Path

import numpy as np

from villani.statistics import GroupSums, sampled_statistics

PATH = Path(__file__).parents[1] / "docs" / "results" / "coverage.json"
SIZE, REPETITIONS = 300, 4000
GROUPS = (12, 16, 24)
NORMS = (0.0, 0.2, 0.5, 1.0, 2.0, 5.0)  # ‖∇L‖ in units of one group's noise ‖·‖
DECAYS = (0.0, 0.5, 1.0)


def covered(rng: np.random.Generator, groups: int, norm: float, decay: float) -> dict[str, float]:
    """Shares of intervals that hold ‖∇L‖² and a linear statistic, and of misses that were too low."""
    deviations = np.arange(1, SIZE + 1) ** -decay
    deviations /= np.linalg.norm(deviations)
    hits, low, linear = 0, 0, 0
    for _ in range(REPETITIONS):
        truth = rng.normal(size=SIZE)
        truth *= norm / np.linalg.norm(truth)
        ones = np.ones(groups)
        noise = rng.normal(size=(3, groups))
        gradient = truth + deviations * rng.normal(size=(groups, SIZE))
        joint = sampled_statistics(GroupSums(ones, noise[0], gradient, noise[1], noise[2][:, None]))
        bottom, top = joint.component(1).interval(0.95)
        hits += bottom <= norm**2 <= top
        low += top < norm**2
        bottom, top = joint.component(3).interval(0.95)
        linear += bottom <= 0 <= top
    return {name: count / REPETITIONS for name, count in (("norm", hits), ("too_low", low), ("linear", linear))}


def main() -> None:
    rng = np.random.default_rng(0)
    rows = []
    print("groups  decay  ‖∇L‖/noise  covers ‖∇L‖²  misses below  covers a mean")
    for decay in DECAYS:
        for groups in GROUPS:
            for norm in NORMS:
                found = covered(rng, groups, norm, decay)
                rows.append({"groups": groups, "decay": decay, "gradient_over_noise": norm, **found})
                print(f"{groups:6}  {decay:5}  {norm:10}  {found['norm']:12.3f}  {found['too_low']:12.3f}"
                      f"  {found['linear']:13.3f}", flush=True)  # fmt: skip
    record = {"nominal": 0.95, "repetitions": REPETITIONS, "directions": SIZE, "rows": rows}
    PATH.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
