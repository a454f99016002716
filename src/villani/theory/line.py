"""Laws exp(−U) on a line, to machine precision: quadrature, the spectrum of Δ − U′∂, the log-Sobolev constant.

Space is cut into panels on each of which exp(±U/2) is a polynomial to rounding; each carries Gauss–Legendre nodes.

The spectrum comes from the *inverse* of the generator. With f = ∫g, M the distribution function and ρ the density,
f(x) − E f = ∫ [M(y) 1{y<x} − (1 − M(y)) 1{y>x}] g(y) dy, so that C_P = sup Var f / E g² is the largest squared singular
value of S(x, y) = √ρ(x) [M(y) 1{y<x} − (1 − M(y)) 1{y>x}] / √ρ(y), and the others are the rest of the spectrum, 1/σ².
All terms have one sign in each tail: a first gap of 1e-30 comes with the same relative accuracy as one of 1. Of the
others σ is exact up to rounding of the largest, so that beside such a gap they are lost.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np
from numpy.polynomial import legendre
from numpy.typing import NDArray
from scipy.linalg import eigh, svd
from scipy.optimize import minimize
from scipy.sparse.linalg import LinearOperator, eigsh

from villani.errors import InputError
from villani.theory.expressions import Array

Function = Callable[[Array], Array]
_OSCILLATION = 8.0  # nats of U across a panel at most
_BETWEEN = np.linspace(-1, 1, 200)  # where a panel is looked at once more
_PANELS = 150  # at most: the spectrum costs (panels × order)³
_FAR = 1e9  # how far out a law may reach
_RESOLVED = 1e-7  # relative error of a gap that is told


@dataclass(frozen=True)
class Reference:
    """Gauss–Legendre on [−1, 1].

    Attributes:
        nodes: (p,).
        weights: (p,).
        running: (p, p) integrates values at the nodes from −1 to each node.
        transform: (p, p) turns values at the nodes into Legendre coefficients.
    """

    nodes: Array
    weights: Array
    running: Array
    transform: Array

    @staticmethod
    def make(order: int) -> "Reference":
        """The rule with `order` nodes, exact to degree 2·order − 1."""
        nodes, weights = legendre.leggauss(order)
        degrees = np.arange(order)
        values = legendre.legvander(nodes, order)  # (p, p + 1)
        transform = (degrees[:, None] + 0.5) * values[:, :order].T * weights
        integrals = np.empty((order, order))  # ∫₋₁^{x_i} P_k
        integrals[:, 0] = nodes + 1
        integrals[:, 1:] = (values[:, 2:] - values[:, : order - 1]) / (2 * degrees[1:] + 1)
        return Reference(nodes, weights, integrals @ transform, transform)


@dataclass(frozen=True)
class Mesh:
    """Panels [a_i, b_i] with the same rule on each; `points` and `weights` are flat, (panels × order,)."""

    edges: Array
    reference: Reference

    @property
    def points(self) -> Array:
        """Nodes, increasing."""
        middle, half = (self.edges[1:] + self.edges[:-1]) / 2, np.diff(self.edges) / 2
        return (middle[:, None] + half[:, None] * self.reference.nodes).ravel()

    @property
    def weights(self) -> Array:
        """Quadrature weights of the nodes."""
        return (np.diff(self.edges)[:, None] / 2 * self.reference.weights).ravel()

    def running(self) -> Array:
        """The matrix (n, n) of ∫_{a}^{x_i}: whole panels to the left, and the panel of x_i up to x_i."""
        order, count = len(self.reference.nodes), len(self.edges) - 1
        matrix = np.tril(np.ones((count, count)), -1).repeat(order, 0).repeat(order, 1) * self.weights
        for i, half in enumerate(np.diff(self.edges) / 2):
            block = slice(i * order, (i + 1) * order)
            matrix[block, block] = half * self.reference.running
        return matrix


def support(energy: Function, depth: float, half_line: bool = False) -> tuple[float, float]:
    """The interval outside which U > min U + `depth`, found by scanning |x| from 1e-9 to 1e9.

    Raises:
        InputError: U is not a real number somewhere, or stays low (or falls) as far as it was looked at.
    """
    positive = np.geomspace(1 / _FAR, _FAR, 2400)
    grid = positive if half_line else np.concatenate([-positive[::-1], [0.0], positive])
    values = energy(grid)
    if np.isnan(values).any():
        where = grid[np.isnan(values)]
        where = where[np.argmin(np.abs(where))]
        raise InputError(f"the potential is not a real number at {where:.3g}: give one that is real everywhere")
    if not np.isfinite(values).any() or np.isneginf(values).any():
        raise InputError("the potential is infinite: give one that is finite")
    low = np.flatnonzero(values <= values.min() + depth)
    if low[-1] == len(grid) - 1 or (low[0] == 0 and not half_line):
        raise InputError(
            "the potential does not confine: exp(−βF) has no end within 1e9, so there is no Gibbs law; "
            "raise --weight-decay or add a confining term"
        )
    left = 0.0 if half_line and low[0] == 0 else float(grid[low[0] - 1])
    right = float(grid[low[-1] + 1])
    least = values.min()
    for _ in range(8):  # the scan is coarse far from 0: look again, closer
        grid = np.linspace(left, right, 2001)
        values = energy(grid)
        least = min(least, np.nanmin(values))
        low = np.flatnonzero(values <= least + depth)
        if low.size == 0 or grid[low[-1]] - grid[low[0]] > 0.9 * (right - left):
            break
        left = left if low[0] == 0 else float(grid[low[0] - 1])
        right = right if low[-1] == len(grid) - 1 else float(grid[low[-1] + 1])
    return left, right


class Watch(Protocol):
    """Looks for what points miss: `resolution.Proof`."""

    def sees(self, panels: Array, coefficients: Array) -> NDArray[np.bool_]:
        """Which panels (m, 2) hold nothing that the Legendre series (m, p) of U misses."""


def panels(
    energy: Function, box: tuple[float, float], order: int, breaks: Sequence[float] = (), also: Function | None = None,
    watch: Watch | None = None, most: int = _PANELS,
) -> Mesh:  # fmt: skip
    """Split `box` until U is a polynomial on each panel and changes by at most 8 there.

    Args:
        energy: U, in nats, (n,) → (n,).
        box: ends.
        order: nodes on a panel.
        breaks: points that have to be edges (kinks, and edges of a mesh to refine).
        watch: asked about every panel that points find fine.
        most: panels; the whole spectrum costs their cube, the first gap their square.
        also: a function that has to be a polynomial on each panel too, whatever its changes.

    Raises:
        InputError: more panels than the spectrum can be computed on.
    """
    reference = Reference.make(order)
    starts = sorted({*np.linspace(*box, 9), *[b for b in (0.0, *breaks) if box[0] < b < box[1]]})
    pending = np.array(list(pairwise(starts)))
    done: list[Array] = []
    while len(pending):
        if len(pending) + sum(map(len, done)) > most:
            raise InputError(
                f"the potential needs more than {most} panels: it varies too fast, or is not smooth; "
                "a milder potential can be solved"
            )
        middle, half = pending.mean(axis=1), np.diff(pending)[:, 0] / 2
        points = middle[:, None] + half[:, None] * reference.nodes
        values = energy(points.ravel()).reshape(points.shape)
        with np.errstate(invalid="ignore"):
            slope = np.abs(np.diff(values, axis=1) / np.diff(points, axis=1)).max(axis=1)
            rounding = 4 * np.spacing(np.abs(pending).max(axis=1)) * slope  # of U, from that of the points
            fine = _resolved(values, reference, rounding) & (np.ptp(values, axis=1) <= _OSCILLATION)
        if also is not None:
            fine &= _resolved(also(points.ravel()).reshape(points.shape), reference, 0.0)
        # a spike may hide between the nodes
        looked = middle[fine, None] + half[fine, None] * _BETWEEN
        seen = energy(looked.ravel()).reshape(looked.shape)
        predicted = values[fine] @ reference.transform.T @ legendre.legvander(_BETWEEN, order - 1).T
        allowed = 1e-9 * (1 + np.abs(values[fine]).max(axis=1)) + 10 * rounding[fine]
        fine[fine] = np.abs(seen - predicted).max(axis=1) <= allowed
        if watch is not None and fine.any():
            fine[fine] = watch.sees(pending[fine], values[fine] @ reference.transform.T)
        done.append(pending[fine])
        left, right = pending[~fine].T
        middle = middle[~fine]
        pending = np.concatenate([np.stack([left, middle], axis=1), np.stack([middle, right], axis=1)])
    return Mesh(np.unique(np.concatenate(done)), reference)


def _resolved(values: Array, reference: Reference, rounding: Array | float) -> NDArray[np.bool_]:
    """Which rows are polynomials of less than full degree, to rounding; (m, p) → (m,)."""
    with np.errstate(invalid="ignore"):
        tail = np.abs(values @ reference.transform[-2:].T).max(axis=1)
        small: NDArray[np.bool_] = tail <= 1e-12 + 1e-14 * np.abs(values).max(axis=1) + rounding
    return small & np.isfinite(values).all(axis=1)


@dataclass(frozen=True)
class Law:
    """A law on a line, discretised: `density` (n,) of total mass 1 at the nodes of `mesh`, and ln ∫ exp(−U)."""

    mesh: Mesh
    density: Array
    log_normaliser: float

    @property
    def masses(self) -> Array:
        """Probability at each node, (n,)."""
        return self.mesh.weights * self.density

    def expect(self, values: Array) -> float:
        """E of a function given at the nodes; values where the mass is 0 do not count."""
        return float(self.masses @ np.where(self.masses > 0, values, 0.0))


def law(energy: Function, mesh: Mesh) -> Law:
    """The law exp(−U) on a mesh that resolves it."""
    values = energy(mesh.points)
    least = values.min()
    density = np.exp(-(values - least))
    mass = float(mesh.weights @ density)
    return Law(mesh, density / mass, float(np.log(mass) - least))


@dataclass(frozen=True)
class Spectrum:
    """Of −(Δ − U′∂), without the eigenvalue 0.

    Attributes:
        gaps: (m,) increasing; the relative error of the k-th is about 1e-15·√(gaps[k]/gaps[0]) while it is resolved.
        modes: (n, m) column k the eigenfunction of gaps[k] at the nodes, of mean 0 and variance 1.
    """

    gaps: Array
    modes: Array


def first_gap(of: Law) -> float:
    """The first gap alone, by Lanczos: a tenth of the time of the whole spectrum."""
    return slowest(of)[0]


def slowest(of: Law) -> tuple[float, tuple[float, float]]:
    """The first gap, and ρf² at the first and at the last node, f its mode of variance 1."""
    matrix, scale = _inverse(of)
    square = LinearOperator(matrix.shape, lambda f: matrix.T @ (matrix @ f), dtype=np.float64)
    start = scale * (1 + of.mesh.points / np.abs(of.mesh.points).max())
    value, vector = eigsh(square, k=1, v0=start, tol=1e-14)
    mode = matrix @ vector[:, 0] / np.sqrt(value[0])  # √masses·f
    ends = (float(mode[i] ** 2 / of.mesh.weights[i]) for i in (0, -1))
    return float(1 / value[0]), (next(ends), next(ends))


def gaps(of: Law, count: int = 3) -> Array:
    """The first gaps, increasing, in a quarter of the time of all; fewer than `count` where rounding hides them.

    By Lanczos with [[0, S], [Sᵀ, 0]], whose eigenvalues are ±σ: of SᵀS what is below the root of rounding is lost.
    """
    matrix, scale = _inverse(of)
    n = len(matrix)
    both = LinearOperator(
        (2 * n, 2 * n), lambda f: np.concatenate([matrix @ f[n:], matrix.T @ f[:n]]), dtype=np.float64
    )
    start = scale * (1 + of.mesh.points / np.abs(of.mesh.points).max())
    start = np.concatenate([matrix @ start, start])
    singular = np.sort(eigsh(both, count, which="LA", v0=start, tol=1e-14, return_eigenvectors=False))[::-1]
    resolved = singular * _RESOLVED > np.finfo(float).eps * singular[0]
    found: Array = 1 / singular[resolved] ** 2
    return found


def spectrum(of: Law) -> Spectrum:
    """All gaps and modes, by a singular value decomposition (see the module's text)."""
    matrix, scale = _inverse(of)
    left, singular, _ = svd(matrix)
    with np.errstate(divide="ignore"):
        return Spectrum(1 / singular**2, left / scale[:, None])


def _inverse(of: Law) -> tuple[Array, Array]:
    """S between the nodes, made an isometry of L² by √weights; and √masses."""
    mesh, density = of.mesh, of.density
    running = mesh.running()
    below = running @ density
    above = (mesh.weights - running) @ density  # not 1 − below: relative accuracy in the right tail
    kernel = running * below - (mesh.weights - running) * above
    scale = np.sqrt(of.masses)
    return scale[:, None] * kernel / scale, scale


def log_sobolev(of: Law, known: Spectrum, count: int = 40, rounds: int = 30) -> tuple[float, bool]:
    """sup Ent(f²) / (2 E f′²) over combinations of the slowest `count` modes: a lower bound that converges from below.

    Ent(f²) = max {E f²φ : E e^φ = 1}, attained at φ = ln(f²/E f²). Alternating the best φ for f and the best f for φ
    (a symmetric eigenproblem once the constant mode is eliminated) never lowers the quotient, but may come to it ever
    more slowly: where `rounds` run out, the quotient itself is climbed. Several starts, small and large, guard against
    local maxima; one that escapes to infinity is not seen (`exact_line.py` adds that limit).

    Returns:
        the largest quotient found, at least C_P up to its convergence, and whether that came to rest.
    """
    count = min(count, len(known.gaps))
    modes, gaps, masses = known.modes[:, :count], known.gaps[:count], of.masses
    best, converged = 1 / float(gaps[0]), True
    for start in (0.5, -0.5, 2.0, -2.0):
        shape = np.clip(1 + start * modes[:, 0], 0.05, None)
        quotient, rests = 0.0, False
        for _ in range(rounds):
            square = shape**2 / (masses @ shape**2)
            potential = np.log(np.maximum(square, 1e-290))
            weighted = masses * potential
            constant, cross = weighted.sum(), modes.T @ weighted
            if constant > -1e-12:
                rests = True  # at a constant, where the quotient tends to C_P
                break
            inner = modes.T @ (weighted[:, None] * modes) - np.outer(cross, cross) / constant
            scaled = inner / np.sqrt(np.outer(gaps, gaps)) / 2
            values, vectors = eigh(scaled, subset_by_index=(count - 1, count - 1))
            weights = vectors[:, 0]
            level = -float(cross @ (weights / np.sqrt(gaps))) / constant
            shape = modes @ (weights / np.sqrt(gaps)) + level
            rests = bool(abs(values[0] - quotient) <= 1e-10 * values[0])
            quotient = float(values[0])
            if rests:
                break
        if not rests:
            quotient, rests = _climbed(masses, modes / np.sqrt(gaps), np.append(weights, level))
        if quotient > best:
            best, converged = quotient, rests
    return best, converged


def _climbed(masses: Array, modes: Array, start: Array) -> tuple[float, bool]:
    """A local maximum of Ent(f²)/(2 E f′²) near f = modes·w + c of `start` = (w, c), and whether it came to rest there.

    `modes` (n, m) are scaled to E f′² = ‖w‖².
    """
    basis = np.column_stack([modes, np.ones(len(modes))])

    def fallen(at: Array) -> tuple[float, Array]:
        shape, energy = basis @ at, float(at[:-1] @ at[:-1])
        mean = float(masses @ shape**2)
        excess = np.log(np.maximum(shape**2 / mean, 1e-290))
        quotient = float(masses @ (shape**2 * excess)) / (2 * energy)
        slope = basis.T @ (masses * shape * excess) / energy
        slope[:-1] -= 2 * quotient * at[:-1] / energy
        return -quotient, -slope

    top = minimize(fallen, start / np.linalg.norm(start[:-1]), jac=True, method="BFGS", options={"gtol": 1e-9})
    return -float(top.fun), bool(top.success) or float(np.abs(top.jac).max()) < 1e-6
