"""Where chains on a potential begin, and the curvature that their steps must be small beside. No torch."""

import math

import numpy as np

from villani.statistics import Array
from villani.theory.potential import Potential

_OUT = 4.0  # nats of U above the least that a start is
_MESH = 4001


def far_start(potential: Potential) -> Array:
    """The default start of `PotentialTarget`, (d,)."""
    reach = 1.0
    while True:
        radii = np.linspace(0, reach, _MESH)[1:]
        energy = potential.energy(radii * np.ones((potential.core, 1)) / math.sqrt(potential.core))
        above = energy - energy.min()
        if above[-1] > 10 * _OUT or reach > 1e8:
            break
        reach *= 2
    outside = np.flatnonzero(above <= _OUT)[-1]  # U grows from here on
    diagonal = np.full(potential.core, radii[outside] / math.sqrt(potential.core))
    copies, rest = potential.parts
    if potential.shape == "radial":
        return np.full(potential.dimension, radii[outside] / math.sqrt(potential.dimension))
    free = np.full(rest, math.sqrt(2 * _OUT / (potential.beta * potential.weight_decay)) if rest else 0.0)
    return np.concatenate([np.tile(diagonal, copies), free])


def largest_curvature(potential: Potential) -> float:
    """The largest |∂²F| of the core where U is within 20 nats of its least, on a mesh; steps stay below 2/that."""
    core, radial = potential.core, potential.shape == "radial"
    start = far_start(potential)
    reach = 3 * float(np.linalg.norm(start if radial else start[:core]))
    line = np.linspace(reach / 400, reach, 400) if radial else np.linspace(-reach, reach, 401)
    points = np.stack(np.meshgrid(*[line[:: 4 if core == 2 else 1]] * core)).reshape(core, -1)
    energy = potential.energy(points)
    points = points[:, energy <= energy.min() + 20]
    hessian = np.moveaxis(potential.loss.jet(points).hessian, 2, 0) + potential.weight_decay * np.eye(core)
    return float(np.abs(np.linalg.eigvalsh(hessian)).max())
