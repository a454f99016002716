"""Laws exp(−U) on the plane: quadrature and the lowest spectrum of Δ − ∇U·∇, by sparse spectral elements.

With ψ = √μ f the generator becomes the Schrödinger operator H = −Δ + ¼|∇U|² − ½ΔU, whose spectrum is {0, gap, …}
(THEORY.md §1). Space is a tensor grid of rectangles, graded where exp(−U/2) bends, with Gauss–Lobatto nodes of degree p
on each: H is a sparse symmetric matrix after the diagonal mass is divided out, and converges exponentially in p.
Rectangles on which U exceeds its minimum by `depth` everywhere are left out, ψ being 0 there.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.polynomial import legendre
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.linalg import LinearOperator, eigsh, splu

from villani.errors import InputError
from villani.theory.expressions import Array

Energy = Callable[[Array], tuple[Array, Array]]
Rule = tuple[Array, Array, Array]  # nodes, weights, derivative matrix on [−1, 1]
_UNKNOWNS = 120_000  # at most; memory of the sparse factorisation is the limit
_BENDS = 1e-6  # size of the last Legendre coefficients of exp(−U/2) that counts as resolved


def lobatto(degree: int) -> Rule:
    """Gauss–Lobatto on [−1, 1]: nodes (p + 1,), weights (p + 1,), derivative matrix (p + 1, p + 1)."""
    unit = np.eye(degree + 1)[degree]
    nodes = np.concatenate([[-1.0], np.sort(legendre.legroots(legendre.legder(unit)).real), [1.0]])
    height = legendre.legval(nodes, unit)
    weights = 2 / (degree * (degree + 1) * height**2)
    apart = nodes[:, None] - nodes + np.eye(degree + 1)
    derivative = height[:, None] / height / apart
    np.fill_diagonal(derivative, 0.0)
    np.fill_diagonal(derivative, -derivative.sum(axis=1))
    return nodes, weights, derivative


@dataclass(frozen=True)
class Plane:
    """A law on the plane, discretised.

    Attributes:
        points: (2, n) nodes.
        masses: (n,) probabilities.
        log_normaliser: ln ∫ exp(−U).
        gaps: the lowest eigenvalues of −(Δ − ∇U·∇) above 0, increasing.
        ground: the eigenvalue of H that should be 0: the rounding of all of them.
    """

    points: Array
    masses: Array
    log_normaliser: float
    gaps: Array
    ground: float

    def expect(self, values: Array) -> float:
        """E of a function given at the nodes; values where the mass is 0 do not count."""
        return float(self.masses @ np.where(self.masses > 0, values, 0.0))


def box(value: Callable[[Array], Array], depth: float) -> tuple[Array, Array]:
    """Lower and upper corners of a rectangle outside which U > min U + `depth`, from a graded scan to 1e6.

    Raises:
        InputError: U is not a real number somewhere, or does not confine.
    """
    arm = np.geomspace(1e-4, 1e6, 200)
    line = np.concatenate([-arm[::-1], [0.0], arm])
    grid = np.array(np.meshgrid(line, line, indexing="ij"))
    values = value(grid.reshape(2, -1)).reshape(len(line), len(line))
    if np.isnan(values).any():
        i, j = np.argwhere(np.isnan(values))[0]
        raise InputError(
            f"the potential is not a real number at ({line[i]:.3g}, {line[j]:.3g}): it has to be everywhere"
        )
    low = values <= values.min() + depth
    if np.isneginf(values).any() or low[[0, -1]].any() or low[:, [0, -1]].any():
        raise InputError(
            "the potential does not confine: exp(−βF) has no end within 1e6, so there is no Gibbs law; "
            "raise --weight-decay or add a confining term"
        )
    ends = [np.flatnonzero(low.any(axis=1 - axis))[[0, -1]] for axis in (0, 1)]
    corners = np.array([[line[end[0] - 1], line[end[1] + 1]] for end in ends])
    return corners[:, 0], corners[:, 1]


def grade(
    value: Callable[[Array], Array], corners: tuple[Array, Array], degree: int,
    features: Sequence[tuple[Array, Array]] = (),
) -> list[Array]:  # fmt: skip
    """Edges along each axis such that exp(−U/2) is a polynomial of the given degree on every rectangle.

    Args:
        value: U.
        corners: of the box.
        degree: of the polynomials.
        features: points (2,) and sizes (2,) of what points alone would miss: edges crowd around them.

    Raises:
        InputError: more unknowns than can be solved for.
    """
    edges = [np.unique([low, *np.linspace(low, high, 5), 0.0]) for low, high in zip(*corners, strict=True)]
    for point, size in features:
        for axis, (at, smallest) in enumerate(zip(point, size, strict=True)):
            count = int(np.ceil(np.log2(max((corners[1][axis] - corners[0][axis]) / smallest, 2.0))))
            apart = smallest / 2 * 2.0 ** np.arange(count)
            edges[axis] = np.union1d(edges[axis], np.concatenate([at - apart, [at], at + apart]))
    edges = [edge[(edge >= low) & (edge <= high)] for edge, low, high in zip(edges, *corners, strict=True)]
    nodes, _, _ = lobatto(degree)
    transform = np.linalg.inv(legendre.legvander(nodes, degree))[-2:]
    for _ in range(40):
        if np.prod([len(edge) * degree for edge in edges]) > 4 * _UNKNOWNS:
            raise InputError("the potential varies too fast for a 2-D solution: too many elements; use a milder one")
        x, y = ((e[:-1, None] + e[1:, None] + np.diff(e)[:, None] * nodes) / 2 for e in edges)
        grid = np.array(np.broadcast_arrays(x[:, None, :, None], y[None, :, None, :]))
        values = value(grid.reshape(2, -1)).reshape(grid.shape[1:])
        root = np.exp(-(values - np.nanmin(values)) / 2)
        tails = [
            np.abs(np.einsum("tp,ijpq->ijtq", transform, root)).max(axis=(1, 2, 3)),
            np.abs(np.einsum("tq,ijpq->ijpt", transform, root)).max(axis=(0, 2, 3)),
        ]
        split = [tail > _BENDS for tail in tails]
        if not any(part.any() for part in split):
            return edges
        edges = [
            np.sort(np.concatenate([edge, (edge[:-1] + edge[1:])[part] / 2]))
            for edge, part in zip(edges, split, strict=True)
        ]
    raise InputError("the potential is not resolved after 40 halvings: is it smooth?")


def solve_plane(energy: Energy, edges: list[Array], degree: int, depth: float, count: int = 3) -> Plane:
    """The law exp(−U) and its `count` lowest gaps on a graded tensor grid.

    Args:
        energy: points (2, n) → U (n,) and the Schrödinger potential ¼|∇U|² − ½ΔU (n,).
        edges: from `grade`.
        degree: of the polynomials, at least the one that the grid was graded for.
        depth: nats above the minimum beyond which rectangles are left out.
        count: gaps wanted.
    """
    nodes, weights, derivative = lobatto(degree)
    axes = [_axis(edge, nodes, weights, derivative) for edge in edges]
    (x, wx, kx), (y, wy, ky) = axes
    points = np.array(np.meshgrid(x, y, indexing="ij")).reshape(2, -1)
    area = np.multiply.outer(wx, wy).ravel()
    values, schroedinger = energy(points)
    if np.isnan(schroedinger).any():
        x0, y0 = points[:, np.isnan(schroedinger)][:, 0]
        raise InputError(f"the potential has no derivatives at ({x0:.3g}, {y0:.3g}): give a smooth one")
    least = np.nanmin(values)
    near = (values < least + depth).reshape(len(x), len(y))
    keep = np.flatnonzero(_elements(near, degree).ravel())
    if len(keep) > _UNKNOWNS:
        raise InputError(f"the potential needs {len(keep)} unknowns, more than {_UNKNOWNS}: use a milder one")
    root = sparse.diags_array(1 / np.sqrt(wx)), sparse.diags_array(1 / np.sqrt(wy))
    kinetic = sparse.kron(root[0] @ kx @ root[0], sparse.eye_array(len(y))) + sparse.kron(
        sparse.eye_array(len(x)), root[1] @ ky @ root[1]
    )
    operator = kinetic.tocsr()[keep][:, keep] + sparse.diags_array(schroedinger[keep])
    start = np.sqrt(area[keep]) * np.exp(-(values[keep] - least) / 2)
    tilt = 1 + 0.5 * np.sin(points[0, keep] + 2 * points[1, keep]) + 0.1 * points[:, keep].sum(axis=0)
    shift = -0.1 * max(float(np.median(np.abs(schroedinger[keep]))), 1e-3) ** 0.5
    shifted = (operator - shift * sparse.eye_array(len(keep))).tocsc()
    factors = splu(shifted, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True})
    inverse = LinearOperator(shifted.shape, factors.solve, dtype=np.float64)
    found = 1 / eigsh(inverse, k=count + 1, which="LA", v0=start * tilt, return_eigenvectors=False, tol=1e-13) + shift
    spectrum = np.sort(found)
    masses = area[keep] * np.exp(-(values[keep] - least))
    total = float(masses.sum())
    return Plane(points[:, keep], masses / total, float(np.log(total) - least), spectrum[1:], float(spectrum[0]))


def _axis(edges: Array, nodes: Array, weights: Array, derivative: Array) -> tuple[Array, Array, "sparse.csr_array"]:
    """Points (n,), assembled weights (n,) and stiffness matrix (n, n) of one axis."""
    degree, count = len(nodes) - 1, len(edges) - 1
    size = count * degree + 1
    points, mass = np.empty(size), np.zeros(size)
    stiffness = sparse.lil_array((size, size))
    unit = derivative.T @ (weights[:, None] * derivative)
    for i, (a, b) in enumerate(pairwise(edges)):
        block = slice(i * degree, (i + 1) * degree + 1)
        points[block] = (a + b) / 2 + (b - a) / 2 * nodes
        mass[block] += (b - a) / 2 * weights
        stiffness[block, block] += 2 / (b - a) * unit
    return points, mass, stiffness.tocsr()


def _elements(near: NDArray[np.bool_], degree: int) -> NDArray[np.bool_]:
    """Nodes of all rectangles that hold a near node; outer nodes are left out, as ψ = 0 there."""
    keep = np.zeros_like(near)
    for i in range(0, near.shape[0] - 1, degree):
        for j in range(0, near.shape[1] - 1, degree):
            block = np.s_[i : i + degree + 1, j : j + degree + 1]
            if near[block].any():
                keep[block] = True
    return keep
