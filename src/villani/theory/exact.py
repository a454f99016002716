"""What is true of a Gibbs law, to stated digits: gaps, Poincaré and log-Sobolev constants, moments, relative entropy.

Lines and products of lines to 8 digits and more (`line.py`), planes to 6 and more (`plane.py`), radial laws in any
dimension (`radial.py`). Every case is solved twice, on different grids and boxes; what differs is the error reported,
and digits that were asked for and are not there are refused. Units: THEORY.md §1; gaps are those of Δ − ∇U·∇,
1/length², of which the Langevin diffusion has gap/β.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import gammaln

from villani.errors import InputError
from villani.statistics import Status
from villani.theory import complexity
from villani.theory.expressions import Array, shortened
from villani.theory.line import Law, first_gap, gaps, law, log_sobolev, panels, spectrum, support
from villani.theory.plane import Plane, box, grade, solve_plane
from villani.theory.potential import Local, Potential, potential
from villani.theory.radial import radial_gaps

_DEPTHS = (60.0, 80.0)  # nats of U that the boxes of the two solutions on a line reach
_ORDERS = (14, 18)
_IDENTITY = 1e-6  # relative failure of an identity of §1 that tells a singular part of ΔF


@dataclass(frozen=True)
class Moments:
    """Expectations under the Gibbs law of the whole θ ∈ R^d."""

    loss: float  # E L
    loss_gradient_squared: float  # E‖∇L‖²
    loss_laplacian: float  # E ΔL
    gradient_squared: float  # E‖∇F‖²
    laplacian: float  # E ΔF
    radial_force: float  # E⟨θ, ∇F⟩
    norm_squared: float  # E‖θ‖²
    psi: float  # E Ψ_s
    top_variance: float  # largest eigenvalue of Cov θ

    def identity_errors(self, beta: float, dimension: int) -> dict[str, float]:
        """Relative failure of the identities of THEORY.md §1; rounding if all is well."""
        return {
            "E‖∇F‖² = E ΔF/β": abs(self.gradient_squared * beta / self.laplacian - 1),
            "E⟨θ,∇F⟩ = d/β": abs(self.radial_force * beta / dimension - 1),
            "E Ψ_s = −½ E ΔF": abs(-2 * self.psi / self.laplacian - 1),
        }


@dataclass(frozen=True)
class Truth:
    """What is known of a Gibbs law.

    Attributes:
        gaps: lowest eigenvalues of −(Δ − ∇U·∇) above 0, increasing, with repetitions within the core only.
        poincare: C_P = 1/gaps[0].
        error: relative, of `poincare`: the difference between two solutions.
        log_sobolev: C_LS, or None where no way to it is known.
        log_sobolev_status: certified (a theorem gives the value) or estimated (a converged variational lower bound).
        log_sobolev_note: which.
        log_normaliser: ln ∫_{R^d} exp(−βF).
        moments: expectations.
    """

    gaps: tuple[float, ...]
    poincare: float
    error: float
    log_sobolev: float | None
    log_sobolev_status: Status | None
    log_sobolev_note: str
    log_normaliser: float
    moments: Moments


def solve(case: Potential, digits: int | None = None, sobolev: bool = True) -> Truth:
    """The truth about a potential.

    Args:
        case: F and β.
        digits: wanted of C_P; 8 on lines and radial laws, 6 on planes unless given.
        sobolev: also look for C_LS (seconds on a line).

    Raises:
        InputError: no Gibbs law, not smooth, or fewer digits than wanted.
    """
    wanted = digits if digits is not None else (6 if case.core == 2 else 8)
    if not 1 <= wanted <= 12:
        raise InputError(f"digits={wanted}: expected 1 to 12")
    tolerance = 10.0**-wanted
    if case.core == 2:
        truth = _plane(case, tolerance)
    elif case.shape == "radial":
        truth = _radial(case, tolerance)
    else:
        truth = _line(case, tolerance, sobolev)
    failed = truth.moments.identity_errors(case.beta, case.dimension)
    name = max(failed, key=lambda key: failed[key])
    if not failed[name] < _IDENTITY:
        raise InputError(
            f"expression {shortened(case.loss.text)}: {name} fails by {failed[name]:.1e}, so ΔF misses a singular "
            "part or the law is not resolved: is the potential smooth?"
        )
    return truth


def _line(case: Potential, tolerance: float, sobolev: bool) -> Truth:
    def energy(x: Array) -> Array:
        return case.energy(x[None])

    coarse, line = (
        law(energy, panels(energy, support(energy, depth), order, case.breaks))
        for depth, order in zip(_DEPTHS, _ORDERS, strict=True)
    )
    known = gaps(line)
    error = _settled(float(known[0]), first_gap(coarse), tolerance)
    mean = line.expect(line.mesh.points)
    moments = _moments(
        case, case.local(line.mesh.points[None]), line.expect, line.expect((line.mesh.points - mean) ** 2),
        _jumps(case, line),
    )  # fmt: skip
    copies, rest = case.parts
    gaussian = case.beta * case.weight_decay
    constant, status, note = _line_log_sobolev(case, line) if sobolev else (None, None, "not asked for")
    if rest and constant is not None:
        constant = max(constant, 1 / gaussian)
    lowest = sorted([*(float(g) for g in known[:3]), *([gaussian] if rest else [])])[:3]
    normaliser = copies * line.log_normaliser + (rest / 2 * np.log(2 * np.pi / gaussian) if rest else 0.0)
    return Truth(tuple(lowest), 1 / lowest[0], error, constant, status, note, float(normaliser), moments)


def _line_log_sobolev(case: Potential, line: Law) -> tuple[float | None, Status | None, str]:
    """C_LS of a line: the supremum over local shapes, or its limit at infinity where U″ settles (or grows) there."""
    limit = _limit_at_infinity(case, max(1e3, 1e3 * float(np.abs(line.mesh.points).max())))
    if limit == np.inf:
        return None, None, "U″ tends to no positive number at infinity, where tests can be carried: it may be infinite"
    least = float(case.loss.jet(line.mesh.points[None]).hessian[0, 0].min()) + case.weight_decay
    if limit is not None and case.beta * least * limit >= 1 - 1e-12 and not case.breaks:
        return limit, "estimated", "1/inf U″: an upper bound (C2), reached by tests carried to infinity"
    local = log_sobolev(line, spectrum(line))
    if limit is None:
        return local, "estimated", "variational, converged from below; U″ oscillates at infinity, where none was tried"
    if limit > local:
        return limit, "estimated", "the limit of tests carried to infinity, 1/inf U″(±∞), above all local ones"
    return local, "estimated", "variational, converged from below"


def _limit_at_infinity(case: Potential, far: float) -> float | None:
    """1/inf U″(±∞); inf where that is not positive, None where U″ neither settles nor grows steadily."""
    away = far * np.array([1.0, 1.13, 1.37, 1.71, 2.0, 4.0])
    bends = [case.loss.jet(side * away[None]).hessian[0, 0] + case.weight_decay for side in (-1, 1)]
    settled = all(np.all(np.diff(b) >= -1e-6 * np.abs(b[1:])) and np.isfinite(b).all() for b in bends)
    fading = all(np.all(np.diff(np.abs(b)) <= 0) for b in bends)
    least = min(float(b.min()) for b in bends)
    if not (settled or fading):
        return None
    return 1 / (case.beta * least) if settled and least > 0 else np.inf


def _radial(case: Potential, tolerance: float) -> Truth:
    d = case.dimension

    def energy(r: Array) -> Array:
        return case.energy(r[None])

    def effective(r: Array) -> Array:
        with np.errstate(divide="ignore"):
            value: Array = energy(r) - (d - 1) * np.log(r)
        return value

    boxes = [support(effective, depth, half_line=True) for depth in (36.0, 42.0)]
    found = [
        radial_gaps(energy, ends[1], d, order, depth)
        for ends, order, depth in zip(boxes, (12, 15), (36.0, 42.0), strict=True)
    ]
    error = _settled(min(found[1]), min(found[0]), tolerance)
    # near 0, where d is small, r^{d−1} is a polynomial that the nodes integrate; far from 0 it is part of the energy
    low, high = support(effective, 60.0, half_line=True)
    mesh = panels(effective, (low, high), 20) if low > 0.02 * high else panels(energy, (0.0, high), 20)
    line = law(effective, mesh)
    r = line.mesh.points
    moments = _moments(case, case.local(r[None]), line.expect, line.expect(r**2) / d)
    sphere = np.log(2) + d / 2 * np.log(np.pi) - gammaln(d / 2)
    lowest = tuple(sorted(found[1]))
    exact = _gaussian(case)
    note = "L = 0: Gaussian" if exact else "no reduction is known for radial laws"
    status: Status | None = "certified" if exact else None
    return Truth(lowest, 1 / lowest[0], error, exact, status, note, line.log_normaliser + float(sphere), moments)


def _plane(case: Potential, tolerance: float) -> Truth:
    def energy(points: Array) -> tuple[Array, Array]:
        local = case.local(points)
        return case.energy(points), case.beta / 2 * local.psi(case.beta)

    corners = box(case.energy, 50.0)
    for degree in (10, 14):
        edges = grade(case.energy, corners, degree)
        coarse, plane = solve_plane(energy, edges, degree - 2, 40.0, 1), solve_plane(energy, edges, degree, 50.0)
        if _difference(plane.gaps[0], coarse.gaps[0]) <= tolerance or _lost(plane, tolerance):
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
    error = _settled(plane.gaps[0], coarse.gaps[0], tolerance)
    mean = np.array([plane.expect(x) for x in plane.points])
    centred = plane.points - mean[:, None]
    top = float(np.linalg.eigvalsh((centred * plane.masses) @ centred.T)[-1])
    moments = _moments(case, case.local(plane.points), plane.expect, top)
    copies, rest = case.parts
    gaussian = case.beta * case.weight_decay
    lowest = tuple(sorted([*(float(g) for g in plane.gaps), *([gaussian] if rest else [])])[:3])
    normaliser = copies * plane.log_normaliser + (rest / 2 * np.log(2 * np.pi / gaussian) if rest else 0.0)
    exact = _gaussian(case)
    note = "L = 0: Gaussian" if exact else "no reduction is known on the plane"
    return Truth(
        lowest, 1 / lowest[0], error, exact, "certified" if exact else None, note, float(normaliser), moments
    )  # fmt: skip


def _lost(plane: Plane, tolerance: float) -> bool:
    """Whether the gap drowns in the rounding of H."""
    return bool(abs(plane.ground) > tolerance * plane.gaps[0])


def _gaussian(case: Potential) -> float | None:
    """1/(βλ) if L is a constant."""
    points = np.linspace(0.1, 3.0, 7) * np.ones((case.core, 1))
    flat = not np.any(case.loss.jet(points).gradient)
    return 1 / (case.beta * case.weight_decay) if flat and case.weight_decay else None


def _moments(
    case: Potential, at: Local, expect: Callable[[Array], float], variance: float, jump: float = 0.0
) -> Moments:  # fmt: skip
    """Moments on R^d from the core's; `jump` is the part of E ΔL on kinks."""
    copies, rest = case.parts
    decay, beta = case.weight_decay, case.beta
    free = decay * rest  # E ΔF, and β E‖∇F‖², of the Gaussian coordinates
    squared = copies * expect(at.gradient_squared) + free / beta
    laplacian = copies * (expect(at.laplacian) + jump) + free
    return Moments(
        loss=copies * expect(at.loss),
        loss_gradient_squared=copies * expect(at.loss_gradient_squared),
        loss_laplacian=copies * (expect(at.loss_laplacian) + jump),
        gradient_squared=squared,
        laplacian=laplacian,
        radial_force=copies * expect(at.radial_force) + rest / beta,
        norm_squared=copies * expect(at.norm_squared) + (rest / (beta * decay) if rest else 0.0),
        psi=beta / 2 * squared - laplacian,
        top_variance=max(variance, 1 / (beta * decay) if rest else 0.0),
    )


def _jumps(case: Potential, line: Law) -> float:
    """E of the atoms of ΔF: the jump of F′ at each kink times the density there."""
    total = 0.0
    for at in case.breaks:
        sides = np.array([[np.nextafter(at, -np.inf), np.nextafter(at, np.inf)]])
        slopes = case.loss.jet(sides).gradient[0]
        density = np.exp(-case.energy(np.array([[at]]))[0] - line.log_normaliser)
        total += float((slopes[1] - slopes[0]) * density)
    return total


def _difference(value: float, other: float) -> float:
    return float(abs(other / value - 1))


def _settled(value: float, other: float, tolerance: float) -> float:
    """Relative difference of two solutions, refused above the tolerance."""
    error = _difference(value, other)
    if not (value > 0 and error <= tolerance):
        raise InputError(
            f"C_P changes by {error:.1e} (relative) with the box and grid, more than the {tolerance:.0e} asked for: "
            "tails too heavy for a spectral gap, or a potential that is not smooth; ask for fewer digits"
        )
    return error


@dataclass(frozen=True)
class RelativeEntropy:
    """KL(ρ‖π) of the Gibbs law ρ to its prior π = N(0, I/(βλ)), with the upper bounds of THEORY.md §5(c)."""

    value: float
    log_sobolev: float  # (β/2λ) E_ρ‖∇L‖²
    stam: float  # (βλ/2) E_ρ‖θ‖² − d/2 + (d/2) ln(1 + E_ρ ΔL/(λd))
    jeffreys: float  # β (E_π L − E_ρ L)


def relative_entropy(case: Potential, truth: Truth) -> RelativeEntropy:
    """KL(ρ‖π) = −β E_ρ L − ln(Z_ρ/Z_π), with λ > 0.

    Raises:
        InputError: λ = 0, where there is no prior; or a core of two coordinates.
    """
    if case.weight_decay == 0 or case.core > 1 or case.shape == "radial":
        raise InputError("relative entropy to the prior: expected λ > 0 and a potential on a line")
    beta, decay, d, at = case.beta, case.weight_decay, case.dimension, truth.moments
    prior = potential("0*w", weight_decay=decay, beta=beta)

    def energy(x: Array) -> Array:
        return prior.energy(x[None])

    mesh = panels(
        energy, support(energy, _DEPTHS[1]), _ORDERS[1], case.breaks, also=lambda x: case.loss(x[None])
    )  # fmt: skip
    line = law(energy, mesh)
    copies, _ = case.parts
    prior_loss = copies * line.expect(case.loss(mesh.points[None]))
    log_prior = d / 2 * np.log(2 * np.pi / (beta * decay))
    return RelativeEntropy(
        value=float(-beta * at.loss - truth.log_normaliser + log_prior),
        log_sobolev=complexity.log_sobolev(decay, beta, at.loss_gradient_squared, "certified").value,
        stam=complexity.stam(
            decay, beta, at.norm_squared, dimension=d, laplacian=at.loss_laplacian, status="certified"
        ).value,
        jeffreys=complexity.jeffreys(beta, prior_loss, at.loss, "certified").value,
    )
