"""Two chains from different starts with the same noise and the same batches, in step with each other."""

import numpy as np
import torch

from villani.commands.converge.settings import ConvergeSettings
from villani.dynamics.kernel import Kernel
from villani.dynamics.langevin import LangevinTarget, advance
from villani.dynamics.network import NetworkTarget
from villani.dynamics.noise import gaussian
from villani.objective.objective import Objective
from villani.statistics import Array
from villani.streams import Purpose
from villani.work.team import Rows
from villani.work.work import Work

_APART = 0.1  # of ‖θ‖: how far apart two chains on a model begin
_DIRECTION = 1 << 20  # a direction that is no linear observable's


def coupled(
    one: LangevinTarget, other: LangevinTarget, kernel: Kernel, work: Work, settings: ConvergeSettings
) -> Rows | None:
    """Chain 0 from two starts; one unit of work, begun again after a kill. It ends where two walkers meet or leave.

    Returns:
        the logged `steps` (n,), and `logs` (n, R), ln‖θ_a − θ_b‖ as means over each replicate's walkers; None with
        momentum, where a distance in θ alone says little.
    """
    if kernel.momentum:
        return None

    def walk() -> dict[str, Array]:
        one.reset(0)
        other.reset(0)
        steps, logs = [], []
        for step in range(kernel.steps):
            if step % settings.sizes[2] == 0:
                apart = _log_distance(one, other)
                if not np.isfinite(apart).all():
                    break
                steps.append(step)
                logs.append(apart.reshape(one.replicates, -1).mean(axis=1))
            for target in (one, other):
                advance(
                    target, kernel, seed=settings.seed, chain=0, start=step, log_every=2 * kernel.steps,
                    ceiling=float("inf"), enough=lambda _: True,
                )  # fmt: skip
            work.advance(step + 1, kernel.steps)
        return {"steps": np.array(steps, dtype=int), "logs": np.array(logs)}

    return work.once("coupled", walk)


class Apart(NetworkTarget):
    """θ of another target's start, each tensor moved by a tenth of its size in a random direction."""

    def __init__(self, objective: Objective, first: NetworkTarget, seed: int) -> None:
        super().__init__(objective, batch=first.batch, seed=seed)
        self._first = first

    def reset(self, chain: int) -> None:
        """Called after the other target's own reset."""
        with torch.no_grad():
            for index, (tensor, theta) in enumerate(zip(self.tensors, self._first.tensors, strict=True)):
                size = _APART * float(theta.double().square().mean()) ** 0.5
                noise = gaussian(tensor, self.seed, Purpose.DIRECTION, _DIRECTION, chain, index)
                tensor.copy_(theta + size * noise)


def _log_distance(one: LangevinTarget, other: LangevinTarget) -> Array:
    """(W,)."""
    total = np.zeros(one.walkers)
    with torch.no_grad(), np.errstate(divide="ignore"):
        for a, b in zip(one.tensors, other.tensors, strict=True):
            total += (a - b).double().square().reshape(one.walkers, -1).sum(dim=1).cpu().numpy()
        logs: Array = np.log(total) / 2
    return logs
