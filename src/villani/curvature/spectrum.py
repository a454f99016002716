"""The density of a spectrum by stochastic Lanczos quadrature, with errors over probes and over data.

For a probe v of independent signs, ‖v‖² = d and E vᵀf(H)v = tr f(H). Lanczos from v gives nodes t_j, weights w_j with
Σ_j w_j f(t_j) = vᵀf(H)v/d, exactly for polynomials f of degree up to 2k − 1 after k steps (Golub & Meurant 1994; Ubaru,
Chen & Saad, SIAM J. Matrix Anal. Appl. 38, 2017). Nothing is reorthogonalised: what rounding does to Lanczos moves
weight between copies of a node, and leaves the quadrature accurate (Greenbaum 1989). Two vectors are all it holds.

Where the matrix is that of all data, only probes are noise. With several shares, each an independent part of the data
with probes of its own, the errors cover data too; the density is then that of the matrix of *one share*, averaged. It
is wider than that of the population's matrix, since a spectrum is not linear in its matrix. The trace is linear, and
has no such bias.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from villani.curvature.basis import dot, norm
from villani.curvature.operators import Product
from villani.curvature.probes import rademacher
from villani.errors import InputError
from villani.landscape.evaluation import plain_arithmetic
from villani.landscape.parameters import Parameter
from villani.statistics import Array, Estimate
from villani.streams import Purpose, stream

BROADENING = 0.01  # standard deviation of the Gaussian that a node is drawn as, over the width of the spectrum
_POINTS = 401


@dataclass(frozen=True, eq=False)
class Quadrature:
    """What one probe says about a spectrum.

    Attributes:
        nodes: (k,) ascending.
        weights: (k,) of sum 1.
        residuals: (k,) the distance within which an eigenvalue lies of each node.
    """

    nodes: Array
    weights: Array
    residuals: Array

    def moment(self, power: int) -> float:
        """Σ_j w_j t_j^power: of 1 it is one Hutchinson sample of tr H/d, of 2 one of ‖H‖_F²/d."""
        return float(self.weights @ self.nodes**power)


def sign_probe(parameters: list[Parameter], seed: int, *indices: int) -> torch.Tensor:
    """A flat probe of independent signs over some tensors."""
    pieces = [
        rademacher(p.tensor.numel(), stream(seed, Purpose.SPECTRUM, *indices, i), p.tensor.dtype)
        for i, p in enumerate(parameters)
    ]
    return torch.cat(pieces).to(parameters[0].tensor.device)


@plain_arithmetic()
def quadrature(product: Product, probe: torch.Tensor, steps: int) -> Quadrature:
    """Nodes and weights after `steps` products, or fewer where the probe's Krylov space ends.

    Raises:
        InputError: fewer than one step, or a product that is not finite.
    """
    if steps < 1:
        raise InputError(f"density_steps={steps}: expected at least 1")
    q = probe / norm(probe)
    before = torch.zeros_like(q)
    alphas: list[float] = []
    betas: list[float] = []
    for _ in range(min(steps, len(probe))):
        w = product(q)
        if not np.isfinite(norm(w)):
            raise InputError("a product with the curvature is not finite: try float64")
        if betas:
            w.sub_(before, alpha=betas[-1])
        alphas.append(dot(q, w))
        w.sub_(q, alpha=alphas[-1])
        betas.append(norm(w))
        scale = max(np.abs(alphas).max(), max(betas))
        if betas[-1] <= 32 * torch.finfo(q.dtype).eps * scale:
            betas[-1] = 0.0
            break
        before, q = q, w.div_(betas[-1])
    values, vectors = np.linalg.eigh(np.diag(alphas) + np.diag(betas[:-1], 1) + np.diag(betas[:-1], -1))
    return Quadrature(values, vectors[0] ** 2, betas[-1] * np.abs(vectors[-1]))


@dataclass(frozen=True, eq=False)
class Density:
    """Quadratures of S shares of the data with m probes each.

    Attributes:
        size: d.
        samples: S lists of m.
    """

    size: int
    samples: list[list[Quadrature]]

    def estimate(self, function: Callable[[Quadrature], float]) -> Estimate:
        """The mean of a function of quadratures over probes and shares; its error is over shares, or probes of one."""
        values = np.array([[function(q) for q in share] for share in self.samples])  # (S, m)
        return _mean(values)

    @property
    def trace(self) -> Estimate:
        """Tr H."""
        return self.estimate(lambda q: self.size * q.moment(1))

    @property
    def frobenius_squared(self) -> Estimate:
        """‖H‖_F²; of several shares, the mean of theirs, which exceeds the population's by what data noise adds."""
        return self.estimate(lambda q: self.size * q.moment(2))

    @property
    def effective_rank(self) -> Estimate:
        """(Σ|λ_i|)²/Σλ_i², the participation ratio of |λ|: how many eigenvalues of equal size would do as much.

        A ratio of means, by the delete-one jackknife; between 1 and d.
        """
        pairs = np.array(
            [[(float(q.weights @ np.abs(q.nodes)), q.moment(2)) for q in share] for share in self.samples]
        )  # (S, m, 2)
        units = pairs.mean(axis=1) if len(pairs) > 1 else pairs[0]  # (n, 2)
        n = len(units)

        def ratio(mean: Array) -> float:
            return float(self.size * mean[0] ** 2 / mean[1]) if mean[1] > 0 else 0.0

        full = ratio(units.mean(axis=0))
        if n < 2:
            return Estimate(full, 0.0, n, "estimated")
        left_out = np.array([ratio(np.delete(units, i, axis=0).mean(axis=0)) for i in range(n)])
        sem = float(np.sqrt((n - 1) / n * ((left_out - left_out.mean()) ** 2).sum()))
        return Estimate(n * full - (n - 1) * float(left_out.mean()), sem, n, "estimated")

    def negative_share(self) -> Estimate:
        """Share of the eigenvalues below 0, as far as the quadrature tells them from 0."""
        return self.estimate(lambda q: float(q.weights[q.nodes < 0].sum()))

    def curve(self, broadening: float = BROADENING, points: int = _POINTS) -> tuple[Array, Array, Array, float]:
        """The density on a grid, its standard error at each point, and the width of the Gaussians it is made of.

        Gaussians of standard deviation `broadening` times the width of the spectrum stand for nodes: what is finer
        than that is not resolved.

        Returns:
            grid (n,), density (n,) of integral 1, standard error (n,), standard deviation.
        """
        nodes = np.concatenate([q.nodes for share in self.samples for q in share])
        width = float(nodes.max() - nodes.min()) or max(abs(float(nodes.max())), 1.0)
        sigma = broadening * width
        grid = np.linspace(nodes.min() - 4 * sigma, nodes.max() + 4 * sigma, points)
        values = np.array([[_smooth(q, grid, sigma) for q in share] for share in self.samples])  # (S, m, n)
        units = values.mean(axis=1) if len(values) > 1 else values[0]
        n = len(units)
        sem = units.std(axis=0, ddof=1) / n**0.5 if n > 1 else np.zeros(points)
        return grid, units.mean(axis=0), sem, sigma


def _mean(values: Array) -> Estimate:
    """Of (S, m) samples: over shares where there are several, else over probes."""
    units = values.mean(axis=1) if len(values) > 1 else values[0]
    n = len(units)
    sem = float(units.std(ddof=1) / n**0.5) if n > 1 else 0.0
    return Estimate(float(units.mean()), sem, n, "statistical" if n > 1 else "estimated")


def _smooth(q: Quadrature, grid: Array, sigma: float) -> Array:
    z = (grid[:, None] - q.nodes) / sigma
    result: Array = np.exp(-(z**2) / 2) @ q.weights / (sigma * np.sqrt(2 * np.pi))
    return result
