"""After a chain has diverged: the step that it could have taken."""

import math

import numpy as np
import torch

from villani.dynamics.kernel import Kernel
from villani.dynamics.langevin import LangevinTarget

_ROUNDS = 6


def largest_curvature(target: LangevinTarget, kernel: Kernel, chain: int) -> float | None:
    """The largest |eigenvalue| of ∇²F where a chain begins, from a few power iterations; estimated, from below.

    Each is a difference of gradients on the same batch, over a step of 1 % of ‖θ‖. Holds three more copies of θ, for a
    chain that is over. None if gradients there are not finite.
    """
    target.reset(chain)
    with torch.no_grad():
        scale = max(_norm(target.tensors), 1e-6)
    base = [g.clone() for g in target.evaluate(chain, 0).gradient]
    direction = [g.clone() for g in base]
    size = 0.0
    for _ in range(_ROUNDS):
        norm = _norm(direction)
        if not 0 < norm < np.inf:
            return None
        step = 0.01 * scale / norm
        with torch.no_grad():
            for t, u in zip(target.tensors, direction, strict=True):
                t.add_(u, alpha=step)
        there = target.evaluate(chain, 0).gradient
        with torch.no_grad():
            for t, u, g, g0 in zip(target.tensors, direction, there, base, strict=True):
                t.sub_(u, alpha=step)
                u.copy_((g - g0) / (0.01 * scale))
        size = _norm(direction)
    return size + kernel.weight_decay if np.isfinite(size) else None


def smaller_step(kernel: Kernel, curvature: float | None) -> float:
    """1/Λ, half of what a quadratic of curvature Λ allows, and no more than a quarter of what was tried."""
    return min(kernel.learning_rate / 4, 1 / curvature if curvature else np.inf)


def _norm(tensors: list[torch.Tensor]) -> float:
    return math.sqrt(sum(float(t.double().square().sum()) for t in tensors))
