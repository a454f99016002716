"""hessian-eigenthings: its Hutchinson with one product, or its Hutch++ with the three that it needs at least."""

import sys

import numpy as np
import torch
from common import load, seeded, serve
from hessian_eigenthings import HessianOperator, hf_lm_loss, trace

PRODUCTS = {"hutchinson": 1, "hutch++": 3}


def main(folder: str, groups: str, threads: str, way: str) -> None:
    torch.set_num_threads(int(threads))
    ids = torch.from_numpy(np.load(groups))
    model = load(folder)

    def sample(group: int, probe: int) -> float:
        batch = {"input_ids": ids[group], "labels": ids[group]}
        operator = HessianOperator(model, [batch], hf_lm_loss())
        return trace(operator, num_matvecs=PRODUCTS[way], method=way, seed=seeded(2, group, probe)).estimate

    serve(sample, "hessian-eigenthings")


if __name__ == "__main__":
    main(*sys.argv[1:])
