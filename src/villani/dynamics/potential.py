"""A potential in closed form as a target of Langevin dynamics: many walkers at once, every observable exact."""

import numpy as np
import torch

from villani.dynamics.langevin import Evaluation, Sums
from villani.dynamics.start import far_start
from villani.errors import InputError
from villani.statistics import Array
from villani.theory.potential import Potential


class PotentialTarget:
    """F of `theory/potential.py` on R^d for W walkers at once, in float64; θ is one tensor (W, d).

    Args:
        potential: F; its β is not used here, the temperature is the kernel's.
        walkers: of one replicate.
        replicates: R; W is the product of the two. They take the place of chains.
        spread: replicates of odd number begin at the mirror image of the start.
        start: (d,); by default where U is 4 nats above its least along the diagonal of the core, on the outer side of
            its outermost minimum, and as much in each Gaussian coordinate: far from every symmetry, so that odd modes
            are seen (THEORY.md §4).

    `extra` gives ΔF and Ψ_s (not of potentials with kinks, whose ΔF has atoms) and u·θ along the start.

    Raises:
        InputError: no walkers, or a start of the wrong length.
    """

    def __init__(
        self, potential: Potential, walkers: int = 1, replicates: int = 1, *, spread: bool = False,
        start: Array | None = None,
    ) -> None:  # fmt: skip
        if walkers < 1 or replicates < 1:
            raise InputError(f"walkers={walkers}, replicates={replicates}: expected at least 1 of each")
        self.potential = potential
        self.walkers, self.replicates, self.dimension = walkers * replicates, replicates, potential.dimension
        self.spread = spread
        self.decayed = [True]
        self.start = far_start(potential) if start is None else np.asarray(start, dtype=float)
        if self.start.shape != (self.dimension,):
            raise InputError(f"start of {self.start.size} numbers: expected {self.dimension}, one for each coordinate")
        self.tensors = [torch.zeros(self.walkers, self.dimension, dtype=torch.float64)]
        norm = float(np.linalg.norm(self.start))
        self._direction = self.start / norm if norm else np.eye(self.dimension)[0]
        self.extras: tuple[str, ...] = ("linear_0",) if potential.breaks else ("linear_0", "laplacian", "psi")

    def reset(self, chain: int) -> None:
        """All walkers to the start, or to its mirror image where they are told to."""
        number = chain + np.repeat(np.arange(self.replicates), self.walkers // self.replicates)  # (W,)
        signs = np.where(number % 2, -1.0, 1.0) if self.spread else np.ones(self.walkers)
        self.tensors[0].copy_(torch.from_numpy(signs[:, None] * self.start))

    def evaluate(self, chain: int, step: int) -> Evaluation:  # noqa: ARG002
        """L (W,) and ∇L (W, d), exact."""
        theta = self.tensors[0].numpy()
        case, core = self.potential, self.potential.core
        gradient = np.zeros_like(theta)
        with np.errstate(all="ignore"):
            if case.shape == "radial":
                radius = np.sqrt((theta**2).sum(axis=1))
                jet = case.loss.jet(radius[None])
                loss = jet.value
                gradient = theta * (jet.gradient[0] / radius)[:, None]
            elif case.shape == "copies":
                jet = case.loss.jet(theta.reshape(-1, core).T)
                loss = jet.value.reshape(self.walkers, -1).sum(axis=1)
                gradient = np.ascontiguousarray(jet.gradient.T).reshape(theta.shape)
            else:
                jet = case.loss.jet(theta[:, :core].T)
                loss = np.broadcast_to(jet.value, self.walkers)
                gradient[:, :core] = jet.gradient.T
        return Evaluation(loss, [torch.from_numpy(gradient)])

    def sums(self, gradient: list[torch.Tensor]) -> Sums:
        """See `langevin.Sums`; everything decays."""
        theta, slope = self.tensors[0].numpy(), gradient[0].numpy()
        with np.errstate(all="ignore"):
            squared, force, steep = ((a * b).sum(axis=1) for a, b in ((theta, theta), (theta, slope), (slope, slope)))
        return Sums(squared, squared, force, force, steep)

    def extra(self, weight_decay: float) -> Array:
        """u·θ, ΔF and Ψ_s of each walker, (3, W), or u·θ alone."""
        theta = self.tensors[0].numpy()
        case, core = self.potential, self.potential.core
        with np.errstate(all="ignore"):
            linear = theta @ self._direction
            if case.breaks:
                return linear[None]
            gaussian = 0.0
            if case.shape == "radial":
                points = np.sqrt((theta**2).sum(axis=1))[None]
            elif case.shape == "copies":
                points = theta.reshape(-1, core).T
            else:
                points = theta[:, :core].T
                gaussian = weight_decay**2 * (theta[:, core:] ** 2).sum(axis=1)
            local = case.local(points)
            free = weight_decay * (self.dimension - core) if case.shape == "ridge" else 0.0
            laplacian = local.laplacian.reshape(self.walkers, -1).sum(axis=1) + free
            squared = local.gradient_squared.reshape(self.walkers, -1).sum(axis=1) + gaussian
            return np.stack([linear, laplacian, case.beta / 2 * squared - laplacian])
