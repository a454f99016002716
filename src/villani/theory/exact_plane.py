"""Gibbs laws on a plane: to 6 digits and more, on two grids that agree; estimated, with a certified lower bound."""

import numpy as np

from villani.errors import InputError
from villani.theory.expressions import Array, shortened
from villani.theory.plane import Plane, box, grade, solve_plane
from villani.theory.potential import Potential
from villani.theory.quadrature import poincare_floor
from villani.theory.truth import (
    Truth,
    gaussian_constant,
    lowest_of,
    relative_difference,
    settled,
    told_gaps,
    whole_moments,
)
from villani.theory.unseen import search

_FEATURES = 6  # that edges crowd around
_PLANE = "two grids agree; no proof that they see all of a potential on the plane"


def solve_planar(case: Potential, tolerance: float) -> Truth:
    """As `exact.solve`, of a core of two coordinates."""

    def energy(points: Array) -> tuple[Array, Array]:
        local = case.local(points)
        return case.energy(points), case.beta / 2 * local.psi(case.beta)

    corners = box(case.energy, 50.0)
    features, complete = _features(case, corners)
    why = _PLANE if complete else f"{_PLANE}, and the search for what they miss ran out of work"
    for degree in (10, 14):
        edges = grade(case.energy, corners, degree, features)
        coarse, plane = solve_plane(energy, edges, degree - 2, 40.0), solve_plane(energy, edges, degree, 50.0)
        if relative_difference(plane.gaps[0], coarse.gaps[0]) <= tolerance or _lost(plane, tolerance):
            break
    if abs(plane.ground) > 1e-3 * abs(plane.gaps[0]) and abs(plane.ground) > 1e-6 * case.beta:
        raise InputError(
            f"expression {shortened(case.loss.text)}: exp(−βF) is no stationary law of what its derivatives say "
            f"(eigenvalue {plane.ground:.1e} in place of 0): is the potential smooth?"
        )
    if _lost(plane, tolerance):
        raise InputError(
            f"the gap is {plane.gaps[0]:.0e} and rounding {abs(plane.ground):.0e}: too few digits on the plane for "
            "so high a barrier; lower β, or reduce the potential to one coordinate"
        )
    error = settled(plane.gaps[0], coarse.gaps[0], tolerance)
    mean = np.array([plane.expect(x) for x in plane.points])
    centred = plane.points - mean[:, None]
    spread, axes = np.linalg.eigh((centred * plane.masses) @ centred.T)
    moments = whole_moments(case, case.local(plane.points), plane.expect, float(spread[-1]))
    copies, rest = case.parts
    gaussian = case.beta * case.weight_decay
    known = told_gaps(plane.gaps, coarse.gaps, np.inf)
    lowest = lowest_of(known, gaussian if rest else None)
    normaliser = copies * plane.log_normaliser + (rest / 2 * np.log(2 * np.pi / gaussian) if rest else 0.0)
    exact = gaussian_constant(case)
    note = "L = 0: Gaussian" if exact else "no reduction is known on the plane"
    if exact is not None:
        return Truth(
            lowest, exact, 1e-15, exact, "certified", note, float(normaliser), moments, "certified", "",
            exact * (1 - 1e-15),
        )  # fmt: skip
    floor = max(poincare_floor(case, axes[:, -1], corners), 1 / gaussian if rest else 0.0)
    return Truth(lowest, 1 / lowest[0], error, None, None, note, float(normaliser), moments, "estimated", why, floor)


def _features(case: Potential, corners: tuple[Array, Array]) -> tuple[list[tuple[Array, Array]], bool]:
    """Points and sizes of what a grid graded by points alone would miss, and whether the search came to its end.

    Raises:
        InputError: a feature beyond the box, or more of them than edges can crowd around.
    """
    found: list[tuple[Array, Array]] = []
    for _ in range(_FEATURES):
        missed = search(case, grade(case.energy, corners, 10, found), 10)
        if missed.point is None or missed.size is None:
            return found, missed.complete
        found.append((missed.point, missed.size))
        if not ((missed.point > corners[0]) & (missed.point < corners[1])).all():
            break
    x, y = found[-1][0]
    raise InputError(
        f"expression {shortened(case.loss.text)}: it has a feature near ({x:.4g}, {y:.4g}) that the 2-D grid cannot "
        "resolve; use a milder one, or reduce the potential to one coordinate"
    )


def _lost(plane: Plane, tolerance: float) -> bool:
    """Whether the gap drowns in the rounding of H."""
    return bool(abs(plane.ground) > tolerance * plane.gaps[0])
