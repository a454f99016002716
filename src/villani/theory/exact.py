"""What is true of a Gibbs law, to stated digits: gaps, Poincaré and log-Sobolev constants, moments, relative entropy.

Lines and products of lines to 8 digits and more (`line.py`), planes to 6 and more (`plane.py`), radial laws in any
dimension (`radial.py`). Every case is solved twice, on different grids and boxes; digits that were asked for and are
not there are refused. On lines and radial laws intervals prove that the grid sees all of U, and that nothing that
counts lies beyond it (`resolution.py`): then C_P is *certified* within the error reported. Where they do not close,
and on planes, it is *estimated*. Units: THEORY.md §1; gaps are those of Δ − ∇U·∇, 1/length², of which the Langevin
diffusion has gap/β.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from scipy.special import gammaln

from villani.errors import InputError
from villani.statistics import Status
from villani.theory import complexity
from villani.theory.expressions import Array, shortened
from villani.theory.line import Law, Mesh, first_gap, gaps, law, log_sobolev, panels, slowest, spectrum, support
from villani.theory.plane import Plane, box, grade, solve_plane
from villani.theory.potential import Local, Potential, potential
from villani.theory.quadrature import poincare_floor
from villani.theory.radial import Radial, radial_gaps
from villani.theory.resolution import Proof, Tail, tail
from villani.theory.unseen import search

DEPTHS = (60.0, 80.0)  # nats of U that the boxes of the two solutions on a line reach
_ORDERS = (14, 18)
RADIAL_DEPTHS = (36.0, 42.0)
_MOST = 300  # panels of the coarser mesh, which holds the edges of the finer one
_HOLLOW = 0.02  # of the radius: where a law begins no nearer to 0, its volume is part of the energy
_FINEST = 1e-10  # nats: what intervals can show of U in double precision
_CLOSED = 5e-7  # relative: with more, fewer than the six digits that are shown would be certified
_WIDENINGS = 8  # of a box at most
_DEEPEST = 600.0  # nats above the least that a box may reach; a density underflows at 745
_UNSEEN = "intervals ran out of work before they showed that the grid sees all of the potential"
_FEATURES = 6  # on a plane, that edges crowd around
_PLANE = "two grids agree; no proof that they see all of a potential on the plane"
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
        error: relative, of `poincare`: the difference between two solutions, and what intervals leave open.
        status: certified: within `error`, by intervals; estimated: they did not close, and `error` is a difference.
        why: what did not close; "" if certified.
        floor: a certified lower bound on `poincare`; 0 where there is none.
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
    status: Status = "estimated"
    why: str = ""
    floor: float = 0.0
    edges: tuple[float, ...] = field(default=(), repr=False)

    @property
    def digits(self) -> int:
        """Significant digits of C_P that its error leaves: to half a unit of the last."""
        return max(1, min(9, int(-np.log10(max(2 * self.error, 1e-15)))))


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
        truth = _radial(case, tolerance, digits is not None)
    else:
        truth = _line(case, tolerance, sobolev, digits is not None)
    failed = truth.moments.identity_errors(case.beta, case.dimension)
    name = max(failed, key=lambda key: failed[key])
    if not failed[name] < _IDENTITY:
        raise InputError(
            f"expression {shortened(case.loss.text)}: {name} fails by {failed[name]:.1e}, so ΔF misses a singular "
            "part or the law is not resolved: is the potential smooth?"
        )
    return truth


@dataclass(frozen=True)
class Verified:
    """How far intervals carry a solution: the relative error that they leave, or why they do not close."""

    error: float
    why: str

    def judge(self, difference: float, tolerance: float, asked: bool) -> tuple[float, Status, str]:
        """Error, status and reason of a C_P that two solutions agree on."""
        total = self.error + difference
        if not self.why and total <= (tolerance if asked else _CLOSED):
            return total, "certified", ""
        return difference, "estimated", self.why or f"intervals close to {total:.0e}, not to the digits asked for"


def _line(case: Potential, tolerance: float, sobolev: bool, asked: bool) -> Truth:
    line, box, verified = _verified_line(case, tolerance)
    edges = line.mesh.edges
    ends = support(_on_line(case), DEPTHS[0]) if verified.why else box  # what lies beyond a verified box is bounded
    coarse = law(_on_line(case), panels(_on_line(case), ends, _ORDERS[0], (*case.breaks, *edges), most=_MOST))
    known = gaps(line)
    difference = _settled(float(known[0]), first_gap(coarse), tolerance)
    error, status, why = verified.judge(difference, tolerance, asked)
    mean = line.expect(line.mesh.points)
    moments = _moments(
        case, case.local(line.mesh.points[None]), line.expect, line.expect((line.mesh.points - mean) ** 2),
        _jumps(case, line),
    )  # fmt: skip
    copies, rest = case.parts
    gaussian = case.beta * case.weight_decay
    constant, sobolev_status, note = _line_log_sobolev(case, line) if sobolev else (None, None, "not asked for")
    if rest and constant is not None:
        constant = max(constant, 1 / gaussian)
    lowest = sorted([*(float(g) for g in known[:3]), *([gaussian] if rest else [])])[:3]
    normaliser = copies * line.log_normaliser + (rest / 2 * np.log(2 * np.pi / gaussian) if rest else 0.0)
    poincare = 1 / lowest[0]
    floor = poincare * (1 - error)
    if status != "certified":
        corners = np.array([edges[0]]), np.array([edges[-1]])
        floor = max(poincare_floor(case, np.ones(1), corners), 1 / gaussian if rest else 0.0)
    return Truth(
        tuple(lowest), poincare, error, constant, sobolev_status, note, float(normaliser), moments, status, why, floor,
        tuple(edges.tolist()),
    )  # fmt: skip


def _on_line(case: Potential) -> Callable[[Array], Array]:
    """U of one coordinate, (n,) → (n,)."""
    return lambda x: case.energy(x[None])


def _verified_line(case: Potential, tolerance: float) -> tuple[Law, tuple[float, float], Verified]:
    """The law on a mesh that intervals have looked through, widened until its tails are shown not to count."""
    energy = _on_line(case)
    box, before = support(energy, DEPTHS[1]), np.inf
    for _ in range(_WIDENINGS):
        proof = Proof(case, max(tolerance / 5, _FINEST))
        line = law(energy, panels(energy, box, _ORDERS[1], case.breaks, watch=proof))
        gap, edge = slowest(line)
        tails = [tail(case, end, side, (box[1] - box[0]) / 8) for end, side in zip(box, (-1, 1), strict=True)]
        left_out = [2 * beyond.mass * square for beyond, square in zip(tails, edge, strict=True)]
        wide = [8 * t.hardy * gap > 1 or not share <= tolerance / 8 for t, share in zip(tails, left_out, strict=True)]
        if not any(wide) or not np.isfinite(proof.worst):
            why = "" if np.isfinite(proof.worst) else _UNSEEN
            return line, box, Verified(proof.error + 4 * sum(left_out), why)
        step = 0.5 * (box[1] - box[0])
        wider = [
            end if not more else max((beyond.trouble + side * step / 40) * side, (end + side * step) * side) * side
            for end, side, more, beyond in zip(box, (-1, 1), wide, tails, strict=True)
        ]
        heights = energy(np.array(wider)) - energy(line.mesh.points).min()
        excess = max(8 * beyond.hardy * gap for beyond in tails)
        stalled = np.isfinite(excess) and excess > max(1.0, 0.95 * before)  # a tail too heavy, however far out
        if stalled or not (heights <= _DEEPEST).all():
            break
        box, before = (wider[0], wider[1]), excess
    _refuse_wells(case, tails, gap)
    return line, box, Verified(np.inf, _beyond(tails, wide))


def _beyond(tails: list[Tail], wide: list[bool]) -> str:
    where = ", ".join(f"{beyond.trouble:.3g}" for beyond, more in zip(tails, wide, strict=True) if more)
    return f"exp(−βF) is not shown to fall fast enough as far as {where}"


def _refuse_wells(case: Potential, tails: list[Tail], gap: float) -> None:
    """A well beyond the mesh that is known to be there, and deep enough to hold the diffusion longer than the mesh.

    Raises:
        InputError: there is one.
    """
    for beyond in tails:
        if beyond.well > max(3.0, np.log(1 / gap) - 2 * np.log(beyond.width)):
            raise InputError(
                f"expression {shortened(case.loss.text)}: a well near {beyond.trouble:.4g}, {beyond.well:.3g} nats "
                "deep, cannot be resolved together with the rest; raise --weight-decay, or solve a milder one"
            )


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


def _radial(case: Potential, tolerance: float, asked: bool) -> Truth:
    d = case.dimension
    energy = _on_line(case)

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
    difference = _settled(min(found.gaps), min(other.gaps), tolerance)
    error, status, why = verified.judge(difference, tolerance, asked)
    # near 0, where d is small, r^{d−1} is a polynomial that the nodes integrate; far from 0 it is part of the energy
    low, high = support(effective, 60.0, half_line=True)
    high = max(high, float(mesh.edges[-1]))
    edges = tuple(mesh.edges.tolist())
    hollow = low > _HOLLOW * high
    fine = panels(effective, (low, high), 20, edges) if hollow else panels(energy, (0.0, high), 20, edges)
    line = law(effective, fine)
    r = line.mesh.points
    moments = _moments(case, case.local(r[None]), line.expect, line.expect(r**2) / d)
    sphere = np.log(2) + d / 2 * np.log(np.pi) - gammaln(d / 2)
    lowest = tuple(sorted(found.gaps))
    exact = _gaussian(case)
    note = "L = 0: Gaussian" if exact else "no reduction is known for radial laws"
    floor = (1 - error) / lowest[0] if status == "certified" else 0.0
    return Truth(
        lowest, 1 / lowest[0], error, exact, "certified" if exact else None, note,
        line.log_normaliser + float(sphere), moments, status, why, floor, edges,
    )  # fmt: skip


def _verified_radial(
    case: Potential, effective: Callable[[Array], Array], tolerance: float
) -> tuple[Mesh, Radial, Verified]:
    """As `_verified_line`; the tail towards 0, if elements are left out there, needs no widening."""
    energy = _on_line(case)
    low, radius = support(effective, RADIAL_DEPTHS[1], half_line=True)
    hollow = low > _HOLLOW * radius
    for _ in range(_WIDENINGS):
        proof = Proof(case, max(tolerance / 5, _FINEST), volume=hollow)
        box = (low, radius) if hollow else (0.0, radius)
        mesh = panels(effective if hollow else energy, box, _ORDERS[1], watch=proof)
        found = radial_gaps(energy, mesh.edges, case.dimension, 15, RADIAL_DEPTHS[1])
        gap = min(found.gaps)
        tails = [tail(case, found.ends[1], 1, radius / 8)]
        if found.ends[0] > 0:
            tails.append(tail(case, found.ends[0], -1, radius / 8, inwards=True))
        left_out = [2 * beyond.mass * square for beyond, square in zip(tails, found.at_ends[::-1], strict=False)]
        wide = [8 * t.hardy * gap > 1 or not share <= tolerance / 8 for t, share in zip(tails, left_out, strict=True)]
        if not any(wide):
            why = "" if np.isfinite(proof.worst) else _UNSEEN
            return mesh, found, Verified(proof.error + 4 * sum(left_out), why)
        wider = max(tails[0].trouble, radius) * 1.25
        if not wide[0] or float(energy(np.array([wider]))[0] - energy(mesh.points).min()) > _DEEPEST:
            break
        radius = wider
    _refuse_wells(case, tails, gap)
    return mesh, found, Verified(np.inf, _beyond(tails, wide))


def _plane(case: Potential, tolerance: float) -> Truth:
    def energy(points: Array) -> tuple[Array, Array]:
        local = case.local(points)
        return case.energy(points), case.beta / 2 * local.psi(case.beta)

    corners = box(case.energy, 50.0)
    features, complete = _features(case, corners)
    why = _PLANE if complete else f"{_PLANE}, and the search for what they miss ran out of work"
    for degree in (10, 14):
        edges = grade(case.energy, corners, degree, features)
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
    spread, axes = np.linalg.eigh((centred * plane.masses) @ centred.T)
    moments = _moments(case, case.local(plane.points), plane.expect, float(spread[-1]))
    copies, rest = case.parts
    gaussian = case.beta * case.weight_decay
    lowest = tuple(sorted([*(float(g) for g in plane.gaps), *([gaussian] if rest else [])])[:3])
    normaliser = copies * plane.log_normaliser + (rest / 2 * np.log(2 * np.pi / gaussian) if rest else 0.0)
    exact = _gaussian(case)
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


def _gaussian(case: Potential) -> float | None:
    """1/(βλ) if L is shown to be constant."""
    return 1 / (case.beta * case.weight_decay) if case.constant and case.weight_decay else None


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
        energy, support(energy, DEPTHS[1]), _ORDERS[1], (*case.breaks, *truth.edges),
        also=lambda x: case.loss(x[None]),
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
