"""The density of a spectrum by stochastic Lanczos quadrature, with errors over probes and over data.

For a probe v uniform on the sphere ‖v‖² = d, E vᵀf(H)v = tr f(H). Lanczos from v gives nodes t_j and weights w_j with
Σ_j w_j f(t_j) = vᵀf(H)v/d, exactly for polynomials f of degree up to 2k − 1 after k steps (Golub & Meurant 1994; Ubaru,
Chen & Saad, SIAM J. Matrix Anal. Appl. 38, 2017). Nothing is reorthogonalised: what rounding does to Lanczos moves
weight between copies of a node, and leaves the quadrature accurate (Greenbaum 1989). Two vectors are all it holds.

tr H and ‖H‖_F² are moments of degree 1 and 2: the quadrature has no error in them, and their intervals are over probes
(`probe_limits`). The share of negative eigenvalues and Σ|λ| are those of a step function and of one with a kink, which
no quadrature integrates: they are bounded (`Quadrature.below`, `Quadrature.absolute`). The curve carries the
quadrature's error beside that of probes, and is `estimated`.

Where the matrix is that of all data, only probes are noise. With several shares, each an independent part of the data
with probes of its own, the errors cover data too; the density is then that of the matrix of *one share*, averaged. It
is wider than that of the population's matrix, since a spectrum is not linear in its matrix. The trace is linear, and
has no such bias.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize_scalar

from villani.curvature.basis import dot, norm
from villani.curvature.limits import RankLimits, ShareLimits, SquareLimits, TraceLimits
from villani.curvature.operators import Product
from villani.errors import InputError
from villani.objective.evaluation import plain_arithmetic
from villani.objective.parameters import Parameter
from villani.results import Content
from villani.statistics import Array, Estimate, Status
from villani.streams import Purpose, stream

BROADENING = 0.01  # standard deviation of the Gaussian that a node is drawn as, over the width of the spectrum
_POINTS = 401
_ROUNDING = 64  # times the rounding unit and the largest |node|: a node that near to 0 may be on either side of it


@dataclass(frozen=True, eq=False, repr=False)
class Quadrature(Content):
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
        """Σ_j w_j t_j^power: of 1 it is one sample of tr H/d, of 2 one of ‖H‖_F²/d."""
        return float(self.weights @ self.nodes**power)

    def below(self, rounding: float) -> tuple[float, float]:
        """Bounds on vᵀ1(H < 0)v/d, the probe's weight on negative eigenvalues.

        Between two nodes a Gauss quadrature does not say where weight lies, but each of them has no more than its own
        on either side (Chebyshev, Markov and Stieltjes): with t_k the last node below 0, w_1 + … + w_{k−1} is a lower
        bound and w_1 + … + w_{k+1} an upper one. Where Krylov's space ended there is nothing left in between, and the
        nodes that are nearer to 0 than `rounding` are all the doubt.
        """
        low, high = (int(np.searchsorted(self.nodes, edge)) for edge in (-rounding, rounding))
        if self.residuals.max() > 0:
            low, high = max(low - 1, 0), high + 1
        return float(self.weights[:low].sum()), float(self.weights[:high].sum())

    def absolute(self) -> tuple[float, float]:
        """Bounds on vᵀ|H|v/d: the least and the largest ∫|t|dμ of all measures with the moments that k products fix.

        Those of degree 0 to 2k: Jacobi matrices of k + 1 rows whose last entry a is free. A polynomial p ≤ |t| of
        degree 2k touches at 0 and at k places more, so that the least has a node at 0 (Gauss–Radau). One p ≥ |t|
        touches at k + 1 places at most, so that the largest has no more nodes either: it is sought over a. The Gauss
        quadrature (|a| → ∞) lies between. Where Krylov's space ended all three are one.
        """
        gauss = float(self.weights @ np.abs(self.nodes))
        scale = float(self.residuals.max())
        if scale == 0:
            return gauss, gauss
        k = len(self.nodes)
        arrow = np.diag(np.append(self.nodes, 0.0))
        arrow[-1, :-1] = arrow[:-1, -1] = self.residuals * (-1.0) ** np.arange(k - 1, -1, -1)  # ends differ in sign so

        def integral(last: float) -> float:
            arrow[-1, -1] = last
            nodes, vectors = np.linalg.eigh(arrow)
            return float((np.sqrt(self.weights) @ vectors[:-1]) ** 2 @ np.abs(nodes))

        def at(x: float) -> float:
            return -integral(unit * math.tan(x))

        unit = max(float(np.abs(self.nodes).max()), scale)
        radau = float((self.residuals**2 / np.where(self.nodes == 0, np.finfo(float).tiny, self.nodes)).sum())
        least = integral(radau) if abs(radau) < unit / np.finfo(float).eps else gauss  # else a node is at 0 already
        places = np.linspace(-math.pi / 2, math.pi / 2, 64)[1:-1]
        coarse = [at(x) for x in places]
        best = int(np.argmin(coarse))
        step = float(places[1] - places[0])
        found = minimize_scalar(at, bounds=(places[best] - step, places[best] + step), method="bounded")
        return min(least, gauss), max(-float(found.fun), -coarse[best], gauss)


def sphere_probe(parameters: list[Parameter], seed: int, *indices: int) -> torch.Tensor:
    """A flat probe over some tensors, uniform on the sphere ‖v‖² = d.

    Signs would do for means, but not for intervals: an eigenvector of two equal entries has no part in every other
    vector of signs, and a few probes may miss an eigenvalue altogether.
    """
    pieces = [
        torch.from_numpy(
            stream(seed, Purpose.SPECTRUM, *indices, i).standard_normal(p.tensor.numel(), dtype=np.float32)
        ).to(p.tensor.dtype)
        for i, p in enumerate(parameters)
    ]
    probe = torch.cat(pieces).to(parameters[0].tensor.device)
    return probe.mul_(math.sqrt(len(probe)) / norm(probe))


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


@dataclass(frozen=True, eq=False, repr=False)
class Density(Content):
    """Quadratures of S shares of the data with m probes each.

    Attributes:
        size: d.
        samples: S lists of m.
        epsilon: the rounding unit of products.
    """

    size: int
    samples: list[list[Quadrature]]
    epsilon: float = 2**-23

    @property
    def trace(self) -> Estimate:
        """Tr H."""
        values = self._each(lambda q: self.size * q.moment(1))
        squares = self._each(lambda q: self.size * q.moment(2))
        value, n = float(values.mean()), len(self._units(values))
        spread = max(float(squares.mean()) - value**2 / self.size, 0.0)  # ‖H − (tr H/d)I‖_F²
        of_probes = math.sqrt(2 * spread / values.size)
        sem, of_data = self._errors(values, of_probes)
        limits = TraceLimits(value, values.size, of_probes, n, of_data)
        return Estimate(value, sem, n, "statistical" if values.size > 1 else "estimated", limits=limits)

    @property
    def frobenius_squared(self) -> Estimate:
        """‖H‖_F²; of several shares, the mean of theirs, which exceeds the population's by what data noise adds."""
        values = self._each(lambda q: self.size * q.moment(2))
        fourth = self._each(lambda q: self.size * q.moment(4))
        value, n = float(values.mean()), len(self._units(values))
        largest = self._largest**2
        sem, of_data = self._errors(values, math.sqrt(2 * float(fourth.mean()) / values.size))
        limits = SquareLimits(value, largest, values.size, n, of_data)
        status: Status = "statistical" if values.size > 1 and len(values) == 1 else "estimated"
        return Estimate(value, sem, n, status, limits=limits)

    @property
    def _largest(self) -> float:
        """The largest |eigenvalue|, as far as quadratures saw it."""
        return max(float((np.abs(q.nodes[[0, -1]]) + q.residuals[[0, -1]]).max()) for s in self.samples for q in s)

    def _each(self, function: Callable[[Quadrature], float]) -> Array:
        """(S, m) a function of every quadrature."""
        return np.array([[function(q) for q in share] for share in self.samples])

    @staticmethod
    def _units(values: Array) -> Array:
        """Of (S, m) samples: the means of shares where there are several, else probes."""
        units: Array = values.mean(axis=1) if len(values) > 1 else values[0]
        return units

    def _errors(self, values: Array, of_probes: float) -> tuple[float, float]:
        """The standard error of a mean of (S, m) samples, and what shares scatter by, which is 0 with one of them."""
        if len(values) == 1:
            return of_probes, 0.0
        scatter = float(self._units(values).std(ddof=1)) / math.sqrt(len(values))
        return max(scatter, of_probes), scatter

    @property
    def effective_rank(self) -> Estimate:
        """(Σ|λ_i|)²/Σλ_i², the participation ratio of |λ|: how many eigenvalues of equal size would do as much.

        Between 1 and d. The interval has what quadratures leave open of Σ|λ| (`Quadrature.absolute`) and the errors of
        probes and shares in it and in Σλ²; the standard error has half of what is left open. Of several shares it is
        that of one share's matrix.
        """
        square = self.frobenius_squared
        assert isinstance(square.limits, SquareLimits)
        bounds = np.array([[q.absolute() for q in share] for share in self.samples])  # (S, m, 2)
        middle = self.size * float(self._each(lambda q: float(q.weights @ np.abs(q.nodes))).mean())
        low, high = (self.size * float(x) for x in bounds.mean(axis=(0, 1)))
        count = bounds.shape[0] * bounds.shape[1]
        n = len(self._units(bounds[:, :, 0]))
        if not square.value > 0:
            return Estimate(0.0, 0.0, n, "estimated")
        # vᵀ|H|v scatters as vᵀHv does, by the part of |H| that is no multiple of 1
        of_probes = math.sqrt(2 * max(square.value - low**2 / self.size, 0.0) / count)
        below, above = (self._errors(self.size * bounds[:, :, i], 0.0)[1] for i in (0, 1))
        limits = RankLimits(self.size, low, high, count, of_probes, n, below, above, square.limits)
        value = min(max(middle**2 / square.value, 1.0), float(self.size))
        left_open = (high**2 - low**2) / square.value / 2
        relative = math.hypot(2 * max(of_probes, below, above) / middle, square.sem / square.value)
        status: Status = "statistical" if len(self.samples) == 1 else "estimated"
        return Estimate(value, math.hypot(left_open, value * relative), n, status, limits=limits)

    def negative_share(self) -> Estimate:
        """Share of the eigenvalues below 0: the middle of what quadratures leave open, and as interval all of it.

        The standard error has half of what is left open in it.

        A probe's weight on r of d eigenvectors has the law Beta(r/2, (d − r)/2), sub-Gaussian of variance proxy
        1/(2d + 4) whatever r is (Marchal & Arbel 2017): that is what probes add to the bounds.
        """
        rounding = _ROUNDING * self.epsilon * self._largest
        bounds = np.array([[q.below(rounding) for q in share] for share in self.samples])  # (S, m, 2)
        low, high = (float(x) for x in bounds.mean(axis=(0, 1)))
        count = bounds.shape[0] * bounds.shape[1]
        scatter = [self._errors(bounds[:, :, i], 0.0)[1] for i in (0, 1)]
        n = len(self._units(bounds[:, :, 0]))
        limits = ShareLimits(low, high, count * (self.size + 2), n, scatter[0], scatter[1])
        sem = math.hypot((high - low) / 2, max(math.sqrt(1 / (2 * self.size + 4) / count), *scatter))
        status: Status = "statistical" if len(self.samples) == 1 else "estimated"
        return Estimate((low + high) / 2, sem, n, status, limits=limits)

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


def _smooth(q: Quadrature, grid: Array, sigma: float) -> Array:
    z = (grid[:, None] - q.nodes) / sigma
    result: Array = np.exp(-(z**2) / 2) @ q.weights / (sigma * np.sqrt(2 * np.pi))
    return result
