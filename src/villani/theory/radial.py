"""Spectra of radial laws exp(−U(|θ|)) on R^d, in any dimension d ≥ 2.

Functions f(r)·Y_ℓ with Y_ℓ a spherical harmonic of degree ℓ are left invariant, and on them the generator is
−(ρ f′)′/ρ + ℓ(ℓ + d − 2) f/r², ρ = r^{d−1} exp(−U). The gap is the smaller of the first positive eigenvalue at ℓ = 0
and the lowest one at ℓ = 1 (it grows with ℓ). Both come from polynomial elements with Gauss quadrature against ρ.
"""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
from numpy.polynomial import legendre
from scipy.linalg import eigh

from villani.errors import InputError
from villani.theory.expressions import Array

_ELEMENTS = 60  # at most


def radial_gaps(
    energy: Callable[[Array], Array], radius: float, dimension: int, order: int, depth: float
) -> tuple[float, float]:
    """The first gap among radial functions (ℓ = 0) and among those that are linear on spheres (ℓ = 1).

    Args:
        energy: U, (n,) → (n,).
        radius: beyond which ρ is negligible.
        dimension: d ≥ 2.
        order: degree of the polynomials.
        depth: nats below the largest ρ at which elements are left out.
    """
    nodes, weights = legendre.leggauss(order + 12)

    def effective(r: Array) -> Array:
        with np.errstate(divide="ignore"):
            value: Array = energy(r) - (dimension - 1) * np.log(r)
        return value

    scan = np.geomspace(radius * 1e-6, radius, 4000)
    least = float(np.nanmin(effective(scan)))
    edges = _edges(energy, effective, radius, dimension, nodes, least + depth)
    inner = _gap(edges, effective, least, order, nodes, weights, 0.0)
    outer = _gap(edges, effective, least, order, nodes, weights, float(dimension - 1))
    return inner, outer


def _edges(
    energy: Callable[[Array], Array], effective: Callable[[Array], Array], radius: float, dimension: int,
    nodes: Array, highest: float,
) -> Array:  # fmt: skip
    """Elements from 0 out, halved until U changes by at most 6 nats and the weight r^{d−1} is integrated well."""
    stack, done = [(0.0, radius)], []
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
        if len(done) + len(stack) > _ELEMENTS:
            raise InputError("the radial potential varies too fast: it needs too many elements; use a milder one")
    return np.array(sorted({edge for pair in done for edge in pair}))


def _gap(
    edges: Array, effective: Callable[[Array], Array], least: float, order: int, nodes: Array, weights: Array,
    angular: float,
) -> float:  # fmt: skip
    """Lowest positive eigenvalue of (stiffness, mass) on Lagrange elements; with `angular` > 0, f(0) = 0."""
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
    found = eigh(
        scale[:, None] * stiffness[first:, first:] * scale,
        scale[:, None] * mass[first:, first:] * scale,
        eigvals_only=True,
        subset_by_index=(0, 1),
    )
    return float(found[0] if angular > 0 else found[1])


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
