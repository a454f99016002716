"""Eigenpairs at both ends of a spectrum by thick-restart Lanczos (Wu & Simon, SIAM J. Matrix Anal. Appl. 22, 2000).

Only products are asked of the matrix. Columns are held orthogonal to ε^¾, and when the basis is as long as it may be it
shrinks to the Ritz vectors at both ends and goes on from there. What is proved of a Ritz pair (u, ρ) with
‖u‖ = 1 and r = ‖Hu − ρu‖, products being exact and H symmetric:

- some eigenvalue lies within r of ρ;
- the i-th largest eigenvalue is at least the i-th largest Ritz value of one basis, the i-th smallest at most the i-th
  smallest (Cauchy interlacing).

That none lies beyond is not proved: a vector that the basis never met stays unseen. The start has a random part, which
makes that improbable; of an eigenvalue of multiplicity two, one copy may be missed until rounding brings it in. So a
residual says that *an* eigenvalue is near, not which: where eigenvalues lie closer together than it, the i-th Ritz
value may stand for one further in. What is proved of the rank is one-sided, the second statement above.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from villani.curvature.basis import Basis, dot, norm
from villani.curvature.operators import Product
from villani.errors import InputError
from villani.objective.evaluation import plain_arithmetic
from villani.statistics import Array
from villani.streams import Purpose, stream
from villani.work.work import Work

_BREAKDOWN = 32  # times the rounding unit and the largest entry of T: a residual that is nothing but rounding
_LEAST = 8  # products beyond one a pair, before convergence is believed
_SURVIVING = 0.4  # share of the room beside the wanted Ritz vectors that survives a restart


@dataclass(frozen=True)
class Ends:
    """Which eigenpairs are wanted, and how well.

    Attributes:
        top: the so many largest.
        bottom: the so many smallest (most negative).
        tolerance: residual norm, at most, over the largest |Ritz value| of the pair's own end; rounding is allowed for.
            An end with nothing on its own side of 0, as the lower one of a Gauss–Newton matrix, and nothing on the
            other side beyond `tolerance` of the other end, is 0 beside it, and held to `tolerance` of the other.
        most: products at most.
        length: columns of the basis before it restarts; by default twice the wanted pairs and 20.
    """

    top: int = 5
    bottom: int = 2
    tolerance: float = 1e-2
    most: int = 1000
    length: int | None = None

    def check(self) -> None:
        """Refuse what cannot be worked out.

        Raises:
            InputError: a number out of range.
        """
        for name, low in (("top", 0), ("bottom", 0), ("most", 1)):
            if getattr(self, name) < low:
                raise InputError(f"{name}={getattr(self, name)}: expected at least {low}")
        if self.top + self.bottom < 1:
            raise InputError("top=0, bottom=0: expected at least one eigenpair")
        if not 0 < self.tolerance < 1:
            raise InputError(f"tolerance={self.tolerance}: expected a number between 0 and 1")
        if self.length is not None and self.length < self.top + self.bottom + 3:
            least = self.top + self.bottom + 3
            raise InputError(f"basis={self.length}: expected at least {least}, three more than the eigenpairs wanted")


@dataclass(frozen=True, eq=False)
class Ritz:
    """The wanted Ritz pairs of a basis: first the top ones from the largest, then the bottom ones from the smallest.

    Attributes:
        values: (k,).
        weights: (m, k) their vectors in the basis.
        residuals: (k,) as the recurrence has them; `pairs.examine` measures them.
        allowed: (k,) what residuals were asked to be at most.
        top: how many of them are top ones.
        products: spent so far.
        converged: whether every residual is as small as was asked.
    """

    values: Array
    weights: Array
    residuals: Array
    allowed: Array
    top: int
    products: int
    converged: bool


@dataclass
class _State:
    """T = QᵀHQ on `done` multiplied columns, with the couplings of the next one as its row `done`.

    Attributes:
        noise: what a column has of the others right after it was made orthogonal to them; the rounding unit at first.
        level: what the last one is thought to have of them by now.
        turns: two columns in a row are compared with all others, of which so many are still to come.
        last: a copy of the last column, if at hand.
    """

    projected: Array
    done: int = 0
    products: int = 0
    noise: float = 0.0
    level: float = 0.0
    turns: int = 2
    last: torch.Tensor | None = None

    def rows(self, basis: Basis) -> dict[str, Array]:
        """All that, with the columns of a basis, the recurrence goes on from."""
        counts = [self.done, self.products, self.noise, self.level, self.turns]
        columns = [basis.generation, len(basis)]
        return {
            "projected": self.projected.copy(), "columns": np.array(columns, float), "counts": np.array(counts, float),
        }  # fmt: skip

    @classmethod
    def of(cls, rows: Mapping[str, Array]) -> "_State":
        """From `rows`."""
        done, products, noise, level, turns = rows["counts"]
        return cls(rows["projected"].copy(), int(done), int(products), float(noise), float(level), int(turns))


@plain_arithmetic()
def krylov(
    product: Product,
    basis: Basis,
    ends: Ends,
    seed: int = 0,
    start: torch.Tensor | None = None,
    work: Work | None = None,
) -> Ritz:
    """Grow and restart `basis` until the wanted pairs have converged, or `ends.most` products are spent.

    α, β and norms are float64; columns are of θ's dtype. Every product is a unit of work: where units are kept, and the
    basis has a directory, a killed run goes on where it was, to the same bits.

    Args:
        product: v ↦ Hv, symmetric.
        basis: empty, or with a directory in which an interrupted run left its columns.
        ends: what is wanted.
        seed: of the random vectors.
        start: a vector to begin with, to which a random one of the same length is added; random alone by default.
        work: keeps T after every product where the basis has a directory; told the products, and how many there will be
            in all as far as one can tell.

    Raises:
        InputError: `ends` out of range, or a product that is not finite.
    """
    ends.check()
    top = min(ends.top, basis.size)
    bottom = min(ends.bottom, basis.size - top)
    length = min(ends.length or 2 * (top + bottom) + 20, basis.size)
    units = work if basis.directory else None
    state = _resumed(basis, units, length) or _begin(basis, length, seed, start)
    trail: list[float] = []  # the worst residual after each product, over what is wanted

    def multiply() -> dict[str, Array]:
        """One product; the state that it leads to."""
        _step(product, basis, state, seed)
        ritz = _ritz(state, basis, top, bottom, ends.tolerance)
        if ritz is not None:
            trail.append(float((ritz.residuals / np.maximum(ritz.allowed, 1e-300)).max()))
        if state.done == length and len(basis) > length and not (ritz is not None and ritz.converged):
            _restart(state, basis, top, bottom)
        return state.rows(basis)

    while True:
        ritz = _ritz(state, basis, top, bottom, ends.tolerance)
        if ritz is not None and (ritz.converged or state.products >= ends.most):
            return ritz
        if state.products >= ends.most:
            raise InputError(f"most={ends.most}: expected at least as many products as eigenpairs ({top + bottom})")
        if units is None:
            multiply()
        else:
            units.once(f"product/{state.products}", multiply)
        basis.settle()
        if work:
            work.advance(state.products, min(ends.most, state.products + _left(trail, length)))


def _left(trail: list[float], length: int) -> int:
    """Products to come if the worst residual falls on as over the second half of the way; a basis full if unknown."""
    half = np.log(np.maximum(trail[len(trail) // 2 :], 1e-300))
    slope = float(np.polyfit(np.arange(len(half)), half, 1)[0]) if len(half) > 3 else 0.0
    return max(1, math.ceil(half[-1] / -slope)) if slope < 0 else length


def _begin(basis: Basis, length: int, seed: int, start: torch.Tensor | None) -> _State:
    first = _random(basis, seed, 0)
    if start is not None and norm(start) > 0:
        first = first.add_(start.to(first), alpha=1 / norm(start))
    basis.append(first.div_(norm(first)))
    return _State(np.zeros((length + 1, length + 1)))


def _random(basis: Basis, seed: int, index: int) -> torch.Tensor:
    """A random vector of length 1."""
    draws = torch.from_numpy(stream(seed, Purpose.KRYLOV, index).standard_normal(basis.size, dtype=np.float32))
    draws = draws.to(basis.device, basis.dtype)
    return draws.div_(norm(draws))


def _step(product: Product, basis: Basis, state: _State, seed: int) -> None:
    """Multiply the last column, and make the next one of what is new in the product, if there can be one."""
    m, projected = state.done, state.projected
    q = basis.column(m) if state.last is None else state.last
    state.last = None
    w = product(q)
    alpha = dot(q, w)
    if not math.isfinite(alpha):
        raise InputError("a product with the curvature is not finite: try float64")
    known = projected[m, :m]  # couplings to earlier columns, from when this one was made
    first = int(np.flatnonzero(known)[0]) if known.any() else m
    w.sub_(q, alpha=alpha)
    basis.subtract(w, known[first:], first)
    projected[m, m] = alpha
    beta = norm(w)
    eps = torch.finfo(basis.dtype).eps
    state.level *= _growth(projected[: m + 1, : m + 1], beta)
    if state.turns or not state.level < eps**0.75:
        late, overlap = _orthogonalise(basis, w)
        projected[m, m] += late[m]
        _compared(state, overlap / beta if beta else 1.0, eps)
        beta = norm(w)
    state.done, state.products = m + 1, state.products + 1
    if state.done == basis.size:
        return
    small = _BREAKDOWN * eps * float(np.abs(projected[: m + 1, : m + 1]).max())
    if beta <= small:  # an invariant subspace: nothing couples to what comes next
        beta, w = 0.0, _random(basis, seed, state.products)
        _orthogonalise(basis, w)
        state.turns = 2
    w.div_(beta or norm(w))
    basis.append(w)
    projected[m + 1, m] = projected[m, m + 1] = beta
    state.last = w


def _growth(projected: Array, beta: float) -> float:
    """How many times as much of the columns the next one has as the last, about.

    The part along a Ritz vector with the value θ follows βx₊ = (θ − α)x − β₋x₋, which grows where |θ − α| > 2β: at the
    ends of the spectrum, by the larger root of x² − tx + 1 with t = |θ − α|/β a step.
    """
    ends = np.linalg.eigvalsh(projected)[[0, -1]]
    distance = float(np.abs(ends - projected[-1, -1]).max())
    t = distance / beta if beta else math.inf
    return (t + math.sqrt(t * t - 4)) / 2 if t > 2 else 1.0


def _compared(state: _State, overlap: float, eps: float) -> None:
    """A column had `overlap` of the others, where `state.level` was expected, and now has none: so will the next.

    That is the partial reorthogonalisation of Simon (Math. Comp. 42, 1984). Columns orthogonal to √ε have a T that is
    right to ε; ε^¾ leaves vectors a margin. What rounding leaves is not known beforehand, since products round by more
    than ε: it is what would have grown to what was found.
    """
    if not state.turns:
        state.noise = min(max(eps, state.noise * overlap / state.level), eps**0.75)
        state.turns = 2
    state.noise = max(state.noise, eps)
    state.turns -= 1
    state.level = state.noise


def _orthogonalise(basis: Basis, w: torch.Tensor) -> tuple[Array, float]:
    """Take off w what it has of the columns, again where little is left of it.

    Returns:
        The coefficients, added up, and their length at first.
    """
    total = np.zeros(len(basis))
    level = 0.0
    for turn in range(4):  # twice is enough; of a w that is nothing but rounding, nothing is
        overlaps, length = basis.dots(w), norm(w)
        size = float(np.linalg.norm(overlaps))
        basis.subtract(w, overlaps)
        total += overlaps
        level = level if turn else size
        if size <= 0.1 * length:  # the rounding that remains is that of w itself
            break
    return total, level


def _ritz(state: _State, basis: Basis, top: int, bottom: int, tolerance: float) -> Ritz | None:
    """The wanted pairs, or None while there are fewer columns than pairs."""
    m = state.done
    if m < top + bottom:
        return None
    values, vectors = np.linalg.eigh(state.projected[:m, :m])
    order = [*range(m - 1, m - 1 - top, -1), *range(bottom)]
    weights = vectors[:, order]
    coupling = state.projected[m, :m] if len(basis) > m else np.zeros(m)
    residuals = np.abs(coupling @ weights)
    # A random start is nearly a null vector, since most eigenvalues are tiny: a Ritz value about 0 of small residual
    # comes with the first steps, and must not be taken for an end of the spectrum that the basis has not met yet.
    believed = len(basis) == m or state.products >= top + bottom + _LEAST
    rounding = _BREAKDOWN * torch.finfo(basis.dtype).eps * float(np.abs(values).max())
    sizes = [_size(values[-1], values[0], tolerance, rounding)] * top
    sizes += [_size(-values[0], -values[-1], tolerance, rounding)] * bottom
    allowed = np.maximum(tolerance * np.array(sizes), rounding)
    converged = believed and bool((residuals <= allowed).all())
    return Ritz(values[order], weights, residuals, allowed, top, state.products, converged)


def _size(outermost: float, other: float, tolerance: float, rounding: float) -> float:
    """What residuals of an end are relative to; its outermost value is positive if it is on its own side of 0."""
    nothing = outermost <= rounding and abs(outermost) <= tolerance * abs(other)
    return abs(other) if nothing else abs(outermost)


def _restart(state: _State, basis: Basis, top: int, bottom: int) -> None:
    """Go on from the Ritz vectors at both ends and the next column, to which all of them couple."""
    m = state.done
    values, vectors = np.linalg.eigh(state.projected[:m, :m])
    room = int(_SURVIVING * (m - top - bottom))
    more = room * top // (top + bottom)
    high, low = top + more, bottom + (room - more if bottom else 0)
    surviving = [*range(low), *range(m - high, m)]
    weights = np.zeros((m + 1, len(surviving) + 1))
    weights[:m, :-1] = vectors[:, surviving]
    weights[m, -1] = 1.0
    couplings = state.projected[m, :m] @ vectors[:, surviving]
    state.projected[:] = 0.0
    j = len(surviving)
    state.projected[:j, :j] = np.diag(values[surviving])
    state.projected[j, :j] = state.projected[:j, j] = couplings
    state.done, state.turns, state.last = j, 2, None
    basis.turn(weights)


def _resumed(basis: Basis, units: Work | None, length: int) -> _State | None:
    """The last state that was kept, with its columns."""
    rows, product = None, 0
    while units is not None and (next_rows := units.get(f"product/{product}")) is not None:
        rows, product = next_rows, product + 1
    if rows is None:
        return None
    if "columns" not in rows:
        raise InputError(f"{basis.directory} was begun by an older villani: choose another --run")
    generation, count = (int(x) for x in rows["columns"])
    if rows["projected"].shape != (length + 1, length + 1):
        raise InputError(f"basis of {len(rows['projected']) - 1} columns was begun, now {length}: choose another --run")
    try:
        basis.restore(generation, count)
    except OSError:
        raise InputError(
            f"{basis.directory} has lost the vectors of an unfinished run: delete the run directory, or choose another"
        ) from None
    return _State.of(rows)
