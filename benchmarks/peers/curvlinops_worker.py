"""curvlinops: one product with a Rademacher vector, its best case; its own estimators want several columns at once.

Its check for determinism, two more passes over the data, is off. On torch 2.13 the rows of LayerNorm gains in its
product are wrong (tests/curvature/test_trace.py), so that its mean need not be tr ∇²L.
"""

import sys

import numpy as np
import torch
from common import Logits, following, load, seeded, serve
from curvlinops import HessianLinearOperator


def main(folder: str, groups: str, threads: str, _: str) -> None:
    torch.set_num_threads(int(threads))
    ids = torch.from_numpy(np.load(groups))
    model = Logits(load(folder))
    parameters = list(model.parameters())
    criterion = torch.nn.CrossEntropyLoss()

    def sample(group: int, probe: int) -> float:
        batch = (ids[group], following(ids[group]))
        operator = HessianLinearOperator(model, criterion, parameters, [batch], check_deterministic=False)
        generator = torch.Generator().manual_seed(seeded(3, group, probe))
        vector = torch.randint(2, (operator.shape[1],), generator=generator).float().mul_(2).sub_(1)
        return float(torch.dot(vector, (operator @ vector).detach()))

    serve(sample, "curvlinops-for-pytorch")


if __name__ == "__main__":
    main(*sys.argv[1:])
