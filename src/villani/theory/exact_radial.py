"""Radial Gibbs laws in any dimension: to 8 digits and more, certified where intervals close."""

from collections.abc import Callable

import numpy as np
from scipy.special import gammaln

from villani.theory.expressions import Array
from villani.theory.line import Mesh, law, panels, support
from villani.theory.potential import Potential
from villani.theory.radial import Radial, radial_gaps
from villani.theory.resolution import Proof, tail
from villani.theory.truth import (
    DEEPEST,
    FINEST,
    ORDERS,
    UNSEEN,
    WIDENINGS,
    Truth,
    Verified,
    beyond_words,
    gaussian_constant,
    on_line,
    refuse_wells,
    settled,
    whole_moments,
)

RADIAL_DEPTHS = (36.0, 42.0)  # nats of U that the boxes of the two solutions reach
_HOLLOW = 0.02  # of the radius: where a law begins no nearer to 0, its volume is part of the energy


def solve_radial(case: Potential, tolerance: float, asked: bool) -> Truth:
    """As `exact.solve`, of a law of ‖θ‖; `asked`: digits were."""
    d = case.dimension
    energy = on_line(case)

    def effective(r: Array) -> Array:
        with np.errstate(divide="ignore"):
            value: Array = energy(r) - (d - 1) * np.log(r)
        return value

    mesh, found, verified = _verified_radial(case, effective, tolerance)
    ends = support(effective, RADIAL_DEPTHS[0], half_line=True)
    within = mesh.edges
    if verified.why:
        first = 0.0 if within[0] == 0 else ends[0]
        within = np.unique([first, *within[(within > first) & (within < ends[1])], ends[1]])
    other = radial_gaps(energy, within, d, 12, RADIAL_DEPTHS[0 if verified.why else 1])
    difference = settled(min(found.gaps), min(other.gaps), tolerance)
    error, status, why = verified.judge(difference, tolerance, asked)
    # near 0, where d is small, r^{d−1} is a polynomial that the nodes integrate; far from 0 it is part of the energy
    low, high = support(effective, 60.0, half_line=True)
    high = max(high, float(mesh.edges[-1]))
    edges = tuple(mesh.edges.tolist())
    hollow = low > _HOLLOW * high
    fine = panels(effective, (low, high), 20, edges) if hollow else panels(energy, (0.0, high), 20, edges)
    line = law(effective, fine)
    r = line.mesh.points
    moments = whole_moments(case, case.local(r[None]), line.expect, line.expect(r**2) / d)
    sphere = np.log(2) + d / 2 * np.log(np.pi) - gammaln(d / 2)
    lowest = tuple(sorted(found.gaps))
    exact = gaussian_constant(case)
    note = "L = 0: Gaussian" if exact else "no reduction is known for radial laws"
    floor = (1 - error) / lowest[0] if status == "certified" else 0.0
    return Truth(
        lowest, 1 / lowest[0], error, exact, "certified" if exact else None, note,
        line.log_normaliser + float(sphere), moments, status, why, floor, edges,
    )  # fmt: skip


def _verified_radial(
    case: Potential, effective: Callable[[Array], Array], tolerance: float
) -> tuple[Mesh, Radial, Verified]:
    """As of a line; the tail towards 0, if elements are left out there, needs no widening."""
    energy = on_line(case)
    low, radius = support(effective, RADIAL_DEPTHS[1], half_line=True)
    hollow = low > _HOLLOW * radius
    for _ in range(WIDENINGS):
        proof = Proof(case, max(tolerance / 5, FINEST), volume=hollow)
        box = (low, radius) if hollow else (0.0, radius)
        mesh = panels(effective if hollow else energy, box, ORDERS[1], watch=proof)
        found = radial_gaps(energy, mesh.edges, case.dimension, 15, RADIAL_DEPTHS[1])
        gap = min(found.gaps)
        tails = [tail(case, found.ends[1], 1, radius / 8)]
        if found.ends[0] > 0:
            tails.append(tail(case, found.ends[0], -1, radius / 8, inwards=True))
        left_out = [2 * beyond.mass * square for beyond, square in zip(tails, found.at_ends[::-1], strict=False)]
        wide = [8 * t.hardy * gap > 1 or not share <= tolerance / 8 for t, share in zip(tails, left_out, strict=True)]
        if not any(wide):
            why = "" if np.isfinite(proof.worst) else UNSEEN
            return mesh, found, Verified(proof.error + 4 * sum(left_out), why)
        wider = max(tails[0].trouble, radius) * 1.25
        if not wide[0] or float(energy(np.array([wider]))[0] - energy(mesh.points).min()) > DEEPEST:
            break
        radius = wider
    refuse_wells(case, tails, gap)
    return mesh, found, Verified(np.inf, beyond_words(tails, wide))
