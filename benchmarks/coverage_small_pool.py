"""The worst coverage that we know of: PYTHONPATH=. .venv/bin/python benchmarks/coverage_small_pool.py  (half a minute)

Groups drawn from only nine distinct ones, on the small GPT-2 of the tests: gradient about as large as its own noise,
and noise of few directions. Prints how often the 95 % interval of ‖∇L‖² holds the truth, and how often it lies below.
"""

import numpy as np
from tests.conftest import dense, make_model, make_pool

from villani.statistics import GroupSums, sampled_statistics

REPETITIONS = 4000


def main() -> None:
    model, pool = make_model("gpt2", scale=0.1), make_pool(9)
    oracles = [dense(model, group) for group in pool]
    tokens = np.array([float(o.tokens) for o in oracles])
    gradients = np.stack([o.gradient for o in oracles])
    truth = float(np.sum((gradients.sum(axis=0) / tokens.sum()) ** 2))
    rng = np.random.default_rng(0)
    for groups in (12, 16, 24):
        zeros, hits, low = np.zeros(groups), 0, 0
        for _ in range(REPETITIONS):
            i = rng.integers(len(pool), size=groups)
            joint = sampled_statistics(GroupSums(tokens[i], zeros, gradients[i], zeros, zeros[:, None]))
            bottom, top = joint.component(1).interval(0.95)
            hits += bottom <= truth <= top
            low += top < truth
        print(f"{groups} groups: covers {hits / REPETITIONS:.3f}, too low {low / REPETITIONS:.3f}")


if __name__ == "__main__":
    main()
