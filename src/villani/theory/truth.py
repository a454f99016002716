"""What is known of a Gibbs law, as all solvers tell it, and what they share on the way there.

Units: THEORY.md §1; gaps are those of Δ − ∇U·∇, 1/length², of which the Langevin diffusion has gap/β.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from villani.errors import InputError
from villani.statistics import Status
from villani.theory.expressions import Array, shortened
from villani.theory.potential import Local, Potential
from villani.theory.resolution import Tail

FINEST = 1e-10  # nats: what intervals can show of U in double precision
WIDENINGS = 8  # of a box at most
DEEPEST = 600.0  # nats above the least that a box may reach; a density underflows at 745
ORDERS = (14, 18)
UNSEEN = "intervals ran out of work before they showed that the grid sees all of the potential"
_AGREED = 1e-6  # relative, of gaps after the first, which are shown with six digits
_CLOSED = 5e-7  # relative: with more, fewer than the six digits that are shown would be certified


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
        gaps: lowest eigenvalues of −(Δ − ∇U·∇) above 0 of the factors: the core, and the Gaussian coordinates if there
            are any; their sums are eigenvalues too. Of a radial law the first among functions of the radius and the
            first among those that are linear on spheres. Increasing; up to three, of which those after the first are
            told where two solutions agree on six digits, rounding leaves them, and nothing outside the mesh is below.
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


@dataclass(frozen=True)
class Verified:
    """How far intervals carry a solution: the relative error that they leave, or why they do not close.

    Attributes:
        beyond: what lies outside the mesh has no eigenvalue below this one; 0 where none was shown.
    """

    error: float
    why: str
    beyond: float = 0.0

    def judge(self, difference: float, tolerance: float, asked: bool) -> tuple[float, Status, str]:
        """Error, status and reason of a C_P that two solutions agree on."""
        total = self.error + difference
        if not self.why and total <= (tolerance if asked else _CLOSED):
            return total, "certified", ""
        return difference, "estimated", self.why or f"intervals close to {total:.0e}, not to the digits asked for"


def whole_moments(
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


def gaussian_constant(case: Potential) -> float | None:
    """1/(βλ) if L is shown to be constant."""
    return 1 / (case.beta * case.weight_decay) if case.constant and case.weight_decay else None


def on_line(case: Potential) -> Callable[[Array], Array]:
    """U of one coordinate, (n,) → (n,)."""
    return lambda x: case.energy(x[None])


def beyond_words(tails: list[Tail], wide: list[bool]) -> str:
    """Why intervals do not close: which tails are wide, and how far they were looked along."""
    where = ", ".join(f"{beyond.trouble:.3g}" for beyond, more in zip(tails, wide, strict=True) if more)
    return f"exp(−βF) is not shown to fall fast enough as far as {where}"


def refuse_wells(case: Potential, tails: list[Tail], gap: float) -> None:
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


def relative_difference(value: float, other: float) -> float:
    """Of two solutions."""
    return float(abs(other / value - 1))


def told_gaps(found: Array, other: Array, beyond: float) -> Array:
    """The first of some gaps, and those after it that two solutions agree on and nothing outside the mesh is below.

    Args:
        found, other: increasing, of two solutions, for which the first is `settled`.
        beyond: see `Verified`.
    """
    count = 1
    for gap, again in list(zip(found, other, strict=False))[1:]:
        if gap > beyond or relative_difference(gap, again) > _AGREED:
            break
        count += 1
    return found[:count]


def lowest_of(known: Array, gaussian: float | None) -> tuple[float, ...]:
    """Three gaps at most, of the core and of Gaussian coordinates, if there are any; none above what is not known."""
    lowest = sorted([*map(float, known), *([] if gaussian is None else [gaussian])])[:3]
    return tuple(lowest if len(known) > 2 else [gap for gap in lowest if gap <= known[-1]])


def settled(value: float, other: float, tolerance: float) -> float:
    """Relative difference of two solutions, refused above the tolerance."""
    error = relative_difference(value, other)
    if not (value > 0 and error <= tolerance):
        raise InputError(
            f"C_P changes by {error:.1e} (relative) with the box and grid, more than the {tolerance:.0e} asked for: "
            "tails too heavy for a spectral gap, or a potential that is not smooth; ask for fewer digits"
        )
    return error
