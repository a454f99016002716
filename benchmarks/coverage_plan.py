"""How often intervals hold the truth when a plan decided how much to measure: python benchmarks/coverage_plan.py

Synthetic traces of groups: a truth of 1, data noise that is normal, heavy-tailed (t with 5 degrees of freedom) or
skewed (log-normal), and probe noise. The plan on the first groups, which count, and the rule that adds groups are those
of `villani.measurement.plan`.
Prints a table and writes docs/results/coverage-plan.json. About five minutes on one core.

`reached` is the share of runs whose standard error was small enough without more groups; `cost` the mean and the 5th
and 95th percentile of groups measured over groups planned. Runs that would be refused for want of groups are left out.
"""

import json
from pathlib import Path

import numpy as np

from villani.measurement.plan import groups_for, more_groups
from villani.measurement.target import Target
from villani.statistics import Estimate, GroupSums, sampled_statistics

PATH = Path(__file__).parents[1] / "docs" / "results" / "coverage-plan.json"
REPETITIONS = 1000
MAX_GROUPS = 4096
START = 16  # groups that the plan is made on, the default of the command
NOISES = {
    "normal": lambda rng, n: rng.normal(size=n),
    "t5": lambda rng, n: rng.standard_t(5, size=n) / np.sqrt(5 / 3),
    "log-normal": lambda rng, n: (rng.lognormal(0, 0.75, n) - np.exp(0.28125)) / 1.1450,
}


def run(
    rng: np.random.Generator, noise: str, data: float, probe: float, error: float
) -> tuple[bool, bool, float] | None:
    """One planned measurement: whether the interval holds the truth, whether the plan sufficed, groups over planned.

    None where it would be refused for want of groups.
    """

    def groups(count: int) -> np.ndarray:
        return 1 + data * NOISES[noise](rng, count) + probe * rng.normal(size=count)

    target = Target(error)
    traces = groups(START)
    planned = wanted = groups_for(estimated(traces), target)
    while wanted > len(traces):
        if wanted > MAX_GROUPS:
            return None
        traces = np.concatenate([traces, groups(wanted - len(traces))])
        wanted = more_groups(estimated(traces), target)
    estimate, count = estimated(traces), len(traces)
    low, high = estimate.interval(0.95)
    return low <= 1 <= high, count == planned, count / planned


def estimated(traces: np.ndarray) -> Estimate:
    ones, zeros = np.ones(len(traces)), np.zeros(len(traces))
    return sampled_statistics(GroupSums(ones, zeros, zeros[:, None], zeros, traces[:, None])).component(3)


def main() -> None:
    rng = np.random.default_rng(0)
    rows = []
    print("noise       data  probe  error  covers  reached  groups / planned")
    for noise in NOISES:
        for data, probe in ((0.2, 0.1), (0.2, 0.6), (1.0, 0.5)):
            for error in (0.1, 0.05) if data == 1 else (0.05, 0.02):
                tried = [run(rng, noise, data, probe, error) for _ in range(REPETITIONS)]
                found = [result for result in tried if result is not None]
                hits, reached, cost = (np.array(column, dtype=float) for column in zip(*found, strict=True))
                spread = [float(q) for q in (cost.mean(), *np.quantile(cost, (0.05, 0.95)))]
                rows.append({"noise": noise, "data": data, "probe": probe, "error": error, "covers": hits.mean(),
                             "refused": 1 - len(found) / REPETITIONS,
                             "reached": reached.mean(), "cost": spread})  # fmt: skip
                print(f"{noise:10}  {data:4}  {probe:5}  {error:5}  {hits.mean():6.3f}  {reached.mean():7.2f}  "
                      f"{spread[0]:.2f} [{spread[1]:.2f}, {spread[2]:.2f}]", flush=True)  # fmt: skip
    record = {"nominal": 0.95, "repetitions": REPETITIONS, "rows": rows}
    PATH.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
