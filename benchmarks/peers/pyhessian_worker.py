"""PyHessian: its `hessian` takes the gradient with a graph when it is made, so each group needs one of its own."""

import sys

import numpy as np
import torch
from common import Logits, following, load, seeded, serve
from pyhessian import hessian


def main(folder: str, groups: str, threads: str, _: str) -> None:
    torch.set_num_threads(int(threads))
    ids = torch.from_numpy(np.load(groups))
    model = Logits(load(folder))
    criterion = torch.nn.CrossEntropyLoss()

    def sample(group: int, probe: int) -> float:
        model.zero_grad()  # the next backward pass would add to what the last one left
        torch.manual_seed(seeded(1, group, probe))
        batch = (ids[group], following(ids[group]))
        return float(hessian(model, criterion, data=batch, cuda=False).trace(maxIter=1, tol=0.0)[0])

    serve(sample, "pyhessian")


if __name__ == "__main__":
    main(*sys.argv[1:])
