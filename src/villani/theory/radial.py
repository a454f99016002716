"""Spectra of radial laws exp(−U(|θ|)) on R^d, in any dimension d ≥ 2.

Functions f(r)·Y_ℓ with Y_ℓ a spherical harmonic of degree ℓ are left invariant, and on them the generator is
−(ρ f′)′/ρ + ℓ(ℓ + d − 2) f/r², ρ = r^{d−1} exp(−U). The gap is the smaller of the first positive eigenvalue at ℓ = 0
and the lowest one at ℓ = 1 (it grows with ℓ). Both come from polynomial elements with Gauss quadrature against ρ.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.polynomial import legendre
from scipy.linalg import eigh

from villani.errors import InputError
from villani.theory.expressions import Array

_ELEMENTS = 120  # at most


@dataclass(frozen=True)
class Radial:
    """The two lowest gaps of a radial law.

    Attributes:
        gaps: among radial functions (ℓ = 0) and among those that are linear on spheres (ℓ = 1).
        ends: of the elements.
        at_ends: ρf² there, the larger of the two modes f, of variance 1.
    """

    gaps: tuple[float, float]
    ends: tuple[float, float]
    at_ends: tuple[float, float]


def radial_gaps(energy: Callable[[Array], Array], within: Array, dimension: int, order: int, depth: float) -> Radial:
    """The first gap among radial functions (ℓ = 0) and among those that are linear on spheres (ℓ = 1).

    Args:
        energy: U, (n,) → (n,).
        within: edges from 0 to where ρ is negligible, between which U is a polynomial.
        dimension: d ≥ 2.
        order: degree of the polynomials.
        depth: nats below the largest ρ at which elements are left out.
    """
    nodes, weights = legendre.leggauss(order + 12)

    def effective(r: Array) -> Array:
        with np.errstate(divide="ignore"):
            value: Array = energy(r) - (dimension - 1) * np.log(r)
        return value

    middle, half = (within[1:] + within[:-1]) / 2, np.diff(within) / 2
    least = float(np.nanmin(effective((middle[:, None] + half[:, None] * nodes).ravel())))
    edges = _edges(energy, effective, within, dimension, nodes, least + depth)
    inner = _gap(edges, effective, least, order, nodes, weights, 0.0)
    outer = _gap(edges, effective, least, order, nodes, weights, float(dimension - 1))
    left, right = (max(side) for side in zip(inner[1], outer[1], strict=True))
    return Radial((inner[0], outer[0]), (float(edges[0]), float(edges[-1])), (left, right))


def _edges(
    energy: Callable[[Array], Array], effective: Callable[[Array], Array], within: Array, dimension: int,
    nodes: Array, highest: float,
) -> Array:  # fmt: skip
    """Elements from 0 out, halved until U changes by at most 6 nats and the weight r^{d−1} is integrated well."""
    stack, done = list(pairwise(within.tolist()))[::-1], []
    while stack:
        a, b = stack.pop()
        r = (a + b) / 2 + (b - a) / 2 * nodes
        if np.nanmin(effective(r)) > highest:
            continue
        smooth = bool(np.ptp(effective(r)) <= 6) if a > 0 else bool(np.ptp(energy(r)) <= 6) and dimension <= 12
        if smooth:
            done.append((a, b))
        else:
            stack += [((a + b) / 2, b), (a, (a + b) / 2)]
        if len(done) > _ELEMENTS:
            raise InputError("the radial potential varies too fast: it needs too many elements; use a milder one")
    return np.array(sorted({edge for pair in done for edge in pair}))


def _gap(
    edges: Array, effective: Callable[[Array], Array], least: float, order: int, nodes: Array, weights: Array,
    angular: float,
) -> tuple[float, tuple[float, float]]:  # fmt: skip
    """Lowest positive eigenvalue of (stiffness, mass) on Lagrange elements, and ρf² at both ends, f its mode.

    With `angular` > 0, f(0) = 0.
    """
    size = (len(edges) - 1) * order + 1
    stiffness, mass = np.zeros((size, size)), np.zeros((size, size))
    # hat functions and, inside an element, integrated Legendre polynomials: all well conditioned
    values, slopes = _shapes(order, nodes)
    for i, (a, b) in enumerate(pairwise(edges)):
        half = (b - a) / 2
        r = (a + b) / 2 + half * nodes
        measure = weights * half * np.exp(-(effective(r) - least))
        block = slice(i * order, (i + 1) * order + 1)
        mass[block, block] += (values * measure) @ values.T
        stiffness[block, block] += (slopes * measure) @ slopes.T / half**2
        stiffness[block, block] += angular * (values * measure / r**2) @ values.T
    first = 1 if angular > 0 and edges[0] == 0 else 0
    scale = 1 / np.sqrt(np.diag(mass)[first:])
    which = 0 if angular > 0 else 1
    found, modes = eigh(
        scale[:, None] * stiffness[first:, first:] * scale,
        scale[:, None] * mass[first:, first:] * scale,
        subset_by_index=(which, which),
    )
    mode = np.concatenate([np.zeros(first), scale * modes[:, 0]])  # values at the ends are coefficients
    with np.errstate(over="ignore"):
        squares = mode[[0, -1]] ** 2 * np.exp(-(effective(edges[[0, -1]]) - least))
    return float(found[0]), (float(squares[0]), float(squares[1]))


def _shapes(order: int, x: Array) -> tuple[Array, Array]:
    """Shape functions (order + 1, n) on [−1, 1] and their slopes: left hat, bubbles, right hat."""
    van = legendre.legvander(x, order)
    values, slopes = np.empty((order + 1, len(x))), np.empty((order + 1, len(x)))
    values[0], slopes[0] = (1 - x) / 2, -0.5
    values[order], slopes[order] = (1 + x) / 2, 0.5
    for k in range(1, order):
        scale = np.sqrt((2 * k + 1) / 2)
        slopes[k] = scale * van[:, k]
        values[k] = scale * (van[:, k + 1] - van[:, k - 1]) / (2 * k + 1)
    return values, slopes
