"""Criterion (iv) along orbits: curves θ_R = (θ_i·R^{e_i}) of constant L, where Ψ_s can fall to −∞; THEORY.md §2.2.

On an orbit, part by part, ∇_e L scales as R^{−e} and Δ_e L as R^{−2e}, so that exactly

    Ψ_s(θ_R) = Σ_e [ R^{2e}·λ²‖mθ_e‖²/s + R^{−2e}·(‖∇_e L‖²/s − Δ_e L) ] + 2λ⟨∇L, mθ⟩/s − λ·d_m,

the sum over exponents e, the right side at θ. The leading power of R decides: with A the entries of the largest
exponent and B those of the smallest, it is negative for every s above

    s* = ([λ²‖mA‖²] + ‖∇_B L‖²)/Δ_B L        if Δ_B L > 0,

where λ²‖mA‖² counts only if A's exponent is as large as B's is small (Theorem C; in Theorem D it is smaller, and no λ
helps). At one θ with s* < s, Ψ_s → −∞ along the orbit: (iv) fails at s.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from scipy.special import stdtrit

from villani.criteria.parts import Exponents, Parts, PartStatistics, parts_of
from villani.criteria.symmetries import Generator
from villani.objective.objective import Objective
from villani.objective.parameters import ParameterSpace
from villani.results import Content
from villani.statistics import Array, Estimate

LEVEL = 0.95
ENOUGH = 20.0  # directions of noise from which on the jackknife holds its level (docs/coverage.md)
_EXACT = 1e-9  # rounding of combinations of small whole numbers
_LAYERED = 3  # parts of a name, as in model.layers.0, that are worth naming once


@dataclass(frozen=True, eq=False, repr=False)
class Orbit(Content):
    """One rescaling symmetry.

    Attributes:
        name: the tensors that grow fastest, and those that shrink fastest.
        exponents: index of a tensor in θ → integers e that broadcast to its shape.
        up: the largest exponent, that of A; at least 1.
        down: minus the smallest, that of B; at least `up`, so that B decides how Ψ_s ends.
    """

    name: str
    exponents: Exponents
    up: int
    down: int

    @property
    def theorem(self) -> str:
        """C, where λ²‖A‖² counts, or D, where it does not."""
        return "C" if self.up == self.down else "D"


def orbits_of(basis: Sequence[Generator], space: ParameterSpace) -> list[Orbit]:
    """Orbits along a basis of symmetries, both ways, and those combinations of two in which B shrinks as R^−2."""
    found = [_orbit([(sign, g)], space, (1, 2)) for g in basis for sign in (1, -1)]
    movers: dict[int, list[int]] = {}  # tensor → the symmetries that move it: of all pairs only few share one
    for k, g in enumerate(basis):
        for index in g.exponents:
            movers.setdefault(index, []).append(k)
    for k, a in enumerate(basis):
        for other in sorted({j for index in a.exponents for j in movers[index]} - {k}):
            found += [_orbit([(i, a), (j, basis[other])], space, (2,)) for i in (1, -1) for j in (1, -1, 2, -2)]
    unique: dict[str, Orbit] = {}
    for orbit in found:
        if orbit is not None:
            unique.setdefault(orbit.name, orbit)
    return list(unique.values())


def orbit_of(exponents: Exponents, basis: Sequence[Generator], space: ParameterSpace) -> Orbit | str:
    """The orbit that somebody states by its exponents; if it is none, why, as a sentence goes on after "it".

    An orbit is a combination of symmetries that the graph shows, of the kinds that `orbits_of` makes.
    """
    if not any(bool(e.any()) for e in exponents.values()):
        return "moves nothing: all exponents are zero"
    if not all(bool((e == e.round()).all()) for e in exponents.values()):
        return "has exponents that are no whole numbers"
    if not _spanned(exponents, basis, space):
        return "is no rescaling symmetry that the traced loss shows"
    orbit = _orbit([(1, Generator(dict(exponents)))], space, (1, 2))
    return orbit or "does not grow as R while something shrinks as R⁻¹ or R⁻²"


def _spanned(exponents: Exponents, basis: Sequence[Generator], space: ParameterSpace) -> bool:
    """Whether exponents are a linear combination of the symmetries'."""
    for index, e in exponents.items():
        shapes = [g.exponents[index].shape for g in basis if index in g.exponents]
        varies = torch.broadcast_shapes(*shapes)[::-1] if shapes else ()
        for dim in range(e.dim()):  # from the last; a symmetry is the same along where all symmetries are
            along = e.movedim(-1 - dim, 0)
            if (varies[dim] if dim < len(varies) else 1) == 1 and not bool((along == along[:1]).all()):
                return False
    narrow = {index: e[tuple(_first_where_same(e))] for index, e in exponents.items()}
    *known, wanted = parts_of(space, [*(g.exponents for g in basis), narrow]).exponents
    if not known:
        return False
    matrix = np.stack(known, axis=1)  # (parts, symmetries)
    weights = np.linalg.lstsq(matrix, wanted, rcond=None)[0]
    return bool(np.abs(matrix @ weights - wanted).max() <= _EXACT)


def _first_where_same(e: torch.Tensor) -> list[slice]:
    """Of each dimension all entries, or the first where they are all the same."""
    same = [bool((e == e.narrow(dim, 0, 1)).all()) for dim in range(e.dim())]
    return [slice(0, 1) if alike else slice(None) for alike in same]


def pooled(orbits: Sequence[Orbit], space: ParameterSpace) -> Orbit | None:
    """Several orbits walked together; None where together they are no longer orbits of the same kind."""
    together = _orbit([(1, orbit) for orbit in orbits], space, (orbits[0].down,))
    if together is None or together.up != orbits[0].up:
        return None
    return replace(together, name=f"{orbits[0].name} and {len(orbits) - 1} more at once")


def _orbit(
    terms: Sequence[tuple[int, "Generator | Orbit"]], space: ParameterSpace, down: Sequence[int]
) -> Orbit | None:
    exponents: dict[int, torch.Tensor] = {}
    for factor, generator in terms:
        for index, e in generator.exponents.items():
            exponents[index] = exponents.get(index, torch.zeros(())) + factor * e
    exponents = {index: e for index, e in sorted(exponents.items()) if e.any()}
    if not exponents:
        return None
    up = max(int(e.max()) for e in exponents.values())
    low = -min(int(e.min()) for e in exponents.values())
    if up != 1 or low not in down:
        return None
    return Orbit(_name(exponents, space, up, low), exponents, up, low)


def _name(exponents: Exponents, space: ParameterSpace, up: int, down: int) -> str:
    """What grows fastest and what shrinks fastest, with what their names begin with in front."""
    rising, falling = _names(exponents, space, up), _names(exponents, space, -down)
    words = [name.split(".") for name in (*rising, *falling)]
    common = 0
    while all(len(w) > common + 1 for w in words) and len({w[common] for w in words}) == 1:
        common += 1
    if common < _LAYERED:
        return f"{', '.join(rising)} ↑ {', '.join(falling)} ↓"
    front = ".".join(words[0][:common])
    up_names, down_names = (", ".join(name[len(front) + 1 :] for name in names) for names in (rising, falling))
    return f"{front}: {up_names} ↑ {down_names} ↓"


def _names(exponents: Exponents, space: ParameterSpace, value: int) -> list[str]:
    """The tensors, or parts of tensors, of one exponent."""
    names = []
    for index, e in exponents.items():
        share = float((e == value).double().mean())
        if share:
            names.append(space.parameters[index].name + ("" if share == 1 else f"[{_span(e, value)}]"))
    return names


def _span(e: torch.Tensor, value: int) -> str:
    """Which entries along the first dimension that e varies in have this value: a:b, or the number of them."""
    dim = next(d for d in range(e.dim()) if e.shape[d] > 1)
    flat = e.movedim(dim, 0).reshape(e.shape[dim], -1)[:, 0]
    places = (flat == value).nonzero()[:, 0]
    first, last = int(places[0]), int(places[-1]) + 1
    comma = ":, " * dim
    return f"{comma}{first}:{last}" if last - first == len(places) else f"{comma}{len(places)} of {len(flat)}"


@contextmanager
def rescaled(objective: Objective, exponents: Mapping[int, torch.Tensor], scale: float) -> Iterator[None]:
    """θ_R for a while; θ comes back bit for bit. With R a power of two every product is exact."""
    space = objective.parameters
    if space.weights is not None:
        changes = {space.parameters[i].name: partial(_rescaled, e=e, scale=scale) for i, e in exponents.items()}
        with space.weights.changing(changes):
            yield
        return
    there = {i: _rescaled(space.tensors[i].detach(), e, scale) for i, e in exponents.items()}
    with replaced(objective, there):
        yield


def _rescaled(tensor: torch.Tensor, e: torch.Tensor, scale: float) -> torch.Tensor:
    return tensor * (scale ** e.double()).to(tensor)


@contextmanager
def replaced(objective: Objective, values: Mapping[int, torch.Tensor]) -> Iterator[None]:
    """θ with other values of some tensors, by index, for a while; θ comes back bit for bit."""
    space = objective.parameters
    if space.weights is not None:
        with space.weights.changing({space.parameters[i].name: partial(_instead, value=v) for i, v in values.items()}):
            yield
        return
    tensors = space.tensors
    saved = {index: tensors[index].detach().clone() for index in values}
    try:
        with torch.no_grad():
            for index, value in values.items():
                tensors[index].copy_(value)
        yield
    finally:
        with torch.no_grad():
            for index, original in saved.items():
                tensors[index].copy_(original)


def _instead(tensor: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return value.to(tensor, copy=True)


@dataclass(frozen=True)
class Threshold:
    """The temperature above which Ψ_s → −∞ along one orbit through one θ.

    Attributes:
        value: s*; ∞ where Δ_B L ≤ 0 and nothing is seen at this θ.
        upper: Ψ_s → −∞ for every s above, with one-sided confidence `level`; ∞ where the data do not show Δ_B L > 0.
        level: 1 where nothing was sampled, and rounding alone stands between `value` and the truth.
        norm_squared: λ²‖mA‖² if it counts, else 0.
        gradient_norm_squared: ‖∇_B L‖².
        laplacian: Δ_B L.
        rounding: what of Δ_B L rounding may be; where that is all of it, nothing is seen at this θ.
        directions: how many directions the noise of ∇_B L has, (tr Σ)²/tr Σ²; None where it is not known.
    """

    value: float
    upper: float
    level: float
    norm_squared: float
    gradient_norm_squared: Estimate
    laplacian: Estimate
    rounding: float = 0.0
    directions: float | None = None


def threshold(
    orbit_exponents: Array, statistics: PartStatistics, weight_decay: float, *, comparisons: int = 1
) -> Threshold:
    """s* of an orbit whose exponents of every part are given (A,).

    With several `comparisons` the level of each is raised, so that all hold together (Bonferroni). The jackknife of
    the leading coefficient holds its level where the noise of ∇_B L has `ENOUGH` directions; with fewer, or where their
    number is not known, the two limits are taken apart (`_apart`), which holds for any, and is wider.
    """
    up, low = orbit_exponents.max(), orbit_exponents.min()
    b = orbit_exponents == low
    norm = weight_decay**2 * float(statistics.norms[orbit_exponents == up].sum()) if up == -low else 0.0
    count = len(statistics.tokens)
    gradient, gradient_error, gradient_replicates = _jackknife(
        lambda j: float(statistics.gradient_norms(j)[b].sum()), count, statistics.finite
    )
    trace, trace_error, trace_replicates = _jackknife(
        lambda j: float(statistics.mean_traces(j)[b].sum()), count, statistics.finite
    )
    if statistics.finite and not statistics.exact:  # only probes are noise
        share = statistics.traces[:, :, b].sum(axis=2) / statistics.tokens.sum()
        trace_error = float(np.sqrt((share.var(axis=1, ddof=1) / share.shape[1]).sum()))
    whole = statistics.finite and statistics.exact
    estimates = (  # rounding is estimated, so that nothing that was computed in floating point is certified
        Estimate(gradient, gradient_error, count, "estimated" if statistics.finite else "statistical"),
        Estimate(trace, trace_error, count, "estimated" if whole else "statistical"),
    )
    floor = 0.0 if statistics.rounding is None else float(statistics.rounding[b].sum())
    value = (norm + max(gradient, 0.0)) / trace if trace > floor else math.inf
    if whole:
        upper = (norm + max(gradient, 0.0)) / (trace - floor) if trace > floor else math.inf
        return Threshold(value, upper, 1.0, norm, *estimates, floor)
    freedom = count * (statistics.traces.shape[1] - 1) if statistics.finite else count - 1
    quantile = float(stdtrit(freedom, 1 - (1 - LEVEL) / (2 * comparisons)))  # as of a two-sided interval

    directions = statistics.directions(b)
    if not statistics.finite and (directions is None or directions < ENOUGH):
        upper = _apart(norm, statistics.mean_gradient(b), (trace - floor, trace_error), freedom, comparisons)
        return Threshold(value, upper, LEVEL, norm, *estimates, floor, directions)

    def ends_below(s: float) -> bool:
        """Whether the leading coefficient at s is negative beyond its error."""
        coefficient = (norm + gradient) / s - trace
        if statistics.finite:
            error = trace_error
        else:
            replicates = gradient_replicates / s - trace_replicates
            error = math.sqrt((count - 1) / count * float(((replicates - replicates.mean()) ** 2).sum()))
        return coefficient + quantile * error + floor < 0

    return Threshold(value, _smallest(ends_below), LEVEL, norm, *estimates, floor, directions)


def _apart(
    norm: float, gradient: tuple[float, float], trace: tuple[float, float], freedom: int, comparisons: int
) -> float:  # fmt: skip
    """An upper limit of s* from one of ‖γ‖ and a lower one of Δ_B L, half of what may be missed each.

    ‖γ‖ ≤ ‖ḡ‖ + ‖ḡ − γ‖, and of normal noise ‖ḡ − γ‖² over its unbiased estimate is at most t² with the probability
    that it has in one direction: in r equal ones it is F of r and r(G − 1) degrees of freedom, with smaller quantiles.
    """
    missed = (1 - LEVEL) / (2 * comparisons) / 2
    square, variance = gradient
    most = math.sqrt(square) + float(stdtrit(freedom, 1 - missed / 2)) * math.sqrt(variance)
    least = trace[0] - float(stdtrit(freedom, 1 - missed)) * trace[1]
    return (norm + most**2) / least if least > 0 else math.inf


def _jackknife(statistic: Callable[[int | None], float], count: int, finite: bool) -> tuple[float, float, Array]:
    """A statistic, its standard error and its delete-one replicates; no error where the groups are all there is."""
    full = statistic(None)
    if finite:
        return full, 0.0, np.full(count, full)
    replicates = np.array([statistic(j) for j in range(count)])
    error = math.sqrt((count - 1) / count * float(((replicates - replicates.mean()) ** 2).sum()))
    return full, error, replicates


def _smallest(check: Callable[[float], bool]) -> float:
    """The smallest s, to one in a thousand, from which on a condition holds; ∞ if it does not at 10⁹."""
    low, high = -40.0, 9 * math.log(10)
    if not check(math.exp(high)):
        return math.inf
    while high - low > 1e-3:
        middle = (low + high) / 2
        low, high = (low, middle) if check(math.exp(middle)) else (middle, high)
    return math.exp(high)


def predicted_psi(
    orbit_exponents: Array,
    statistics: PartStatistics,
    parameters: ParameterSpace,
    weight_decay: float,
    temperature: float,
    scale: float,
) -> Estimate:
    """Ψ_s(θ_R) from what was measured at θ (the formula above)."""
    grow = scale ** (2 * orbit_exponents)
    exact = weight_decay**2 / temperature * float((grow * statistics.norms).sum())
    exact -= weight_decay * parameters.decayed_size

    def total(left_out: int | None) -> float:
        sampled = statistics.gradient_norms(left_out) / temperature - statistics.mean_traces(left_out)
        cross = 2 * weight_decay / temperature * float(statistics.mean_dots(left_out).sum())
        return float((sampled / grow).sum()) + cross

    value, error, _ = _jackknife(total, len(statistics.tokens), statistics.finite)
    if statistics.finite and not statistics.exact:
        share = (statistics.traces / grow).sum(axis=2) / statistics.tokens.sum()
        error = float(np.sqrt((share.var(axis=1, ddof=1) / share.shape[1]).sum()))
    whole = statistics.finite and statistics.exact
    return Estimate(exact + value, error, len(statistics.tokens), "estimated" if whole else "statistical")


def exponents_of(orbit: Orbit, parts: Parts) -> Array:
    """(A,) the orbit's exponent of every part; parts must not mix exponents."""
    found = np.zeros(parts.count)
    for index, e in orbit.exponents.items():
        labels = parts.labels[index]
        shape = torch.broadcast_shapes(labels.shape, e.shape)
        found[labels.expand(shape).reshape(-1).numpy()] = e.expand(shape).reshape(-1).numpy()
    return found
