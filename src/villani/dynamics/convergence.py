"""What curves of a chain say: rates with intervals, equilibrium, identities, contraction. No torch, no theory.

A rate that is fitted to a transient is the rate of an observable from a start. The gap is the slowest rate of all, and
nearly every observable ends at it, but a window that is too early shows a faster one, and a signed mixture of
exponentials may even show a slower one for a while (THEORY.md §4). So a fit is an estimate of *a* rate. At equilibrium
a reversible chain gives more: the autocorrelation of any observable is a positive mixture of exponentials none of which
is slower than the gap, so that −ln ρ(t)/t ≥ gap at every t.

Chains are the unit of noise: every interval is over independent chains, which takes autocorrelation into account.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import stdtrit

from villani.statistics import Array, Estimate, jackknife_deviations

LEVEL = 0.95
_GRID = 60
_RESOLVED = 4.0  # standard errors that a curve has to move by
_VAGUE = 0.35  # standard error of ln r above which a window tells nothing
_AGREE = 0.2  # of ln r: windows that differ by less count as agreeing, however small their errors
_MIXED, _ENOUGH = 1.05, 100.0  # R̂ and effective sample size that equilibrium asks for


@dataclass(frozen=True)
class Window:
    """A fit of c + A·e^{−rt} from `start` to the end of the run.

    Attributes:
        start: time at which it begins.
        rate: r; its interval is exp of a t-interval for ln r over chains.
        interval: that.
        amplitude, level: A (at `start`) and c.
        problem: why the rate cannot be used, or "".
    """

    start: float
    rate: float
    interval: tuple[float, float]
    sem: float
    amplitude: float
    level: float
    problem: str


@dataclass(frozen=True)
class Fit:
    """Fits of one observable over several windows.

    Attributes:
        windows: from the earliest.
        rate: of the last usable window, with a standard error over chains; None if there is none.
        interval: the hull of the usable windows' intervals: sampling error and choice of window together.
        verdict: identified | not identifiable.
        why: one sentence.
    """

    windows: tuple[Window, ...]
    rate: Estimate | None
    interval: tuple[float, float] | None
    verdict: str
    why: str


def fit_exponential(times: Array, curves: Array, level: float = LEVEL) -> Fit:
    """Fit y(t) = c + A·e^{−rt} to the mean of independent chains, over several windows.

    Least squares with equal weights, c and A projected out; windows begin at 0, ½/r and 1/r of the first fit. The
    error of ln r is that of the delete-one-chain jackknife, so it holds whatever the noise within a chain is.

    Args:
        times: (n,), increasing.
        curves: (C, n), one row a chain.
        level: of intervals.

    Returns:
        a fit that says "not identifiable" where there are fewer than 3 chains, the curve has not moved by 4 standard
        errors, has not levelled off, is faster than the logging, or the windows disagree by more than 20 % and their
        errors.
    """
    chains, count = curves.shape
    if chains < 3 or count < 8:
        return Fit((), None, None, "not identifiable", f"{chains} chains of {count} points: 3 of 8 are needed")
    if not np.ptp(curves):
        return Fit((), None, None, "not identifiable", "the observable does not change")
    first, logs = _window(times, curves, 0, level)
    found, replicates = [first], [logs]
    for memory in (0.5, 1.0):
        begin = int(np.searchsorted(times, times[0] + memory / first.rate))
        if first.problem or count - begin < 8:
            break
        window, logs = _window(times, curves, begin, level)
        found.append(window)
        replicates.append(logs)
    usable = [i for i, window in enumerate(found) if not window.problem]
    if not usable:
        return Fit(tuple(found), None, None, "not identifiable", found[0].problem)
    last = found[usable[-1]]
    hull = (min(found[i].interval[0] for i in usable), max(found[i].interval[1] for i in usable))
    rate = Estimate(last.rate, last.sem, chains, "estimated")
    if len(usable) < 2:
        return Fit(tuple(found), rate, hull, "not identifiable", "only one window resolves it, so that none checks it")
    for i in usable[1:]:
        shift = math.log(found[i].rate / found[0].rate) if 0 in usable else 0.0
        error = _jackknife_error(replicates[i] - replicates[0])
        if abs(shift) > _AGREE + _quantile(chains, level) * error:
            return Fit(
                tuple(found), rate, hull, "not identifiable",
                f"windows disagree, from {found[0].rate:.3g} to {found[i].rate:.3g}: more than one exponential",
            )  # fmt: skip
    return Fit(tuple(found), rate, hull, "identified", f"{len(usable)} windows agree")


def _window(times: Array, curves: Array, begin: int, level: float) -> tuple[Window, Array]:
    """The fit from one point on, and ln r with each chain left out (C,)."""
    t, part = times[begin:] - times[begin], curves[:, begin:]
    chains, span = len(part), float(t[-1])
    total = part.sum(axis=0)
    full = _least_squares(t, total / chains)
    left_out = np.array([_least_squares(t, (total - row) / (chains - 1), full[0]) for row in part])
    rate, amplitude, level_ = math.exp(full[0]), full[1], full[2]
    sem = _jackknife_error(left_out[:, 0])
    drops = left_out[:, 1] * -np.expm1(-np.exp(left_out[:, 0]) * span)
    drop = amplitude * -math.expm1(-rate * span)
    half = _quantile(chains, level) * sem
    problem = ""
    if not abs(drop) > _RESOLVED * _jackknife_error(drops):
        problem = "the curve has not moved by more than its noise"
    elif rate * span < 1:
        problem = "the curve has not levelled off within the run"
    elif rate * float(t[1]) > 1:
        problem = "the decay is faster than the logging interval"
    elif sem > _VAGUE:
        problem = "the rate is not resolved"
    interval = (rate * math.exp(-min(half, 300)), rate * math.exp(min(half, 300)))
    return Window(float(times[begin]), rate, interval, rate * sem, amplitude, level_, problem), left_out[:, 0]


def _least_squares(t: Array, y: Array, near: float | None = None) -> tuple[float, float, float]:
    """(ln r, A, c) of the best c + A·e^{−rt}; looked for near a known ln r if there is one."""
    least, most = math.log(0.05 / t[-1]), math.log(3 / float(np.diff(t).min()))

    def linear(log_rate: float) -> tuple[float, float, float]:
        basis = np.exp(-math.exp(log_rate) * t)
        centred, values = basis - basis.mean(), y - y.mean()
        amplitude = float(centred @ values) / max(float(centred @ centred), 1e-300)
        rest = values - amplitude * centred
        return float(rest @ rest), amplitude, float(y.mean() - amplitude * basis.mean())

    if near is None:
        grid = np.linspace(least, most, _GRID)
        best = int(np.argmin([linear(x)[0] for x in grid]))
        bounds = (grid[max(best - 1, 0)], grid[min(best + 1, _GRID - 1)])
    else:
        bounds = (max(near - 1.5, least), min(near + 1.5, most))
    found = minimize_scalar(lambda x: linear(x)[0], bounds=bounds, method="bounded", options={"xatol": 1e-7})
    _, amplitude, level = linear(float(found.x))
    return float(found.x), amplitude, level


def _jackknife_error(replicates: Array) -> float:
    deviations = jackknife_deviations(replicates[:, None])
    return float(np.sqrt((deviations**2).sum()))


def _quantile(chains: int, level: float, sides: int = 2) -> float:
    return float(stdtrit(chains - 1, 1 - (1 - level) / sides))


@dataclass(frozen=True)
class Ceiling:
    """An upper bound on the gap that a run found at equilibrium.

    Attributes:
        name: of what was looked at.
        value: the bound's estimate.
        limit: its upper confidence limit, at the level that was asked for. The least of several holds at a level that
            allows for their number, not at theirs.
        sem: standard error of the value.
        n: chains.
    """

    name: str
    value: float
    limit: float
    sem: float
    n: int


def autocorrelation_ceiling(name: str, spacing: float, curves: Array, level: float = LEVEL) -> Ceiling | None:
    """gap ≤ −ln ρ(t)/t at the first logged t with ρ(t) ≤ ½, for a reversible chain at equilibrium.

    Every lag gives a bound; this one is where ρ is still well known. The mean is taken over all chains, which makes ρ
    too small by about the inverse of the effective sample size: the bound errs on the safe side, upwards.

    Args:
        name: of the observable.
        spacing: time between columns.
        curves: (C, n) at equilibrium.
        level: one-sided.

    Returns:
        None with fewer than 3 chains, where ρ never falls to ½ within a quarter of the run, or where ρ is not known to
        be positive there.
    """
    chains, count = curves.shape
    centred = curves - curves.mean()
    if chains < 3 or count < 16 or not np.ptp(curves):
        return None
    spectrum = np.abs(np.fft.rfft(centred, 2 * count, axis=1)) ** 2
    products = np.fft.irfft(spectrum, axis=1)[:, : count // 4] / (count - np.arange(count // 4))  # (C, lags)
    whole = products.sum(axis=0)
    low = np.flatnonzero(whole <= whole[0] / 2)
    if not low.size:
        return None
    lag = int(low[0])
    left_out = whole - products
    correlation = float(whole[lag] / whole[0])
    error = _jackknife_error(left_out[:, lag] / left_out[:, 0])
    least = correlation - _quantile(chains, level, 1) * error
    if least <= 0:
        return None
    time = lag * spacing
    return Ceiling(
        f"autocorrelation of {name}", -math.log(correlation) / time, -math.log(least) / time,
        error / correlation / time, chains,
    )  # fmt: skip


def variance_ceiling(name: str, beta: float, curves: Array, walkers: int, level: float = LEVEL) -> Ceiling | None:
    """gap ≤ 1/(β Var(u·θ)) from C_P ≥ Var(u·θ) (C9 of THEORY.md §3), for a unit u at equilibrium.

    Args:
        name: of u·θ.
        beta: β.
        curves: (C, n) means over `walkers` independent walkers, whose variance is that much smaller.
        walkers: how many.
        level: one-sided.
    """
    chains = len(curves)
    if chains < 3:
        return None
    squares = walkers * (curves - curves.mean()) ** 2
    each = squares.mean(axis=1)
    value, error = float(each.mean()), float(each.std(ddof=1) / math.sqrt(chains))
    least = value - _quantile(chains, level, 1) * error
    if least <= 0:
        return None
    return Ceiling(f"variance of {name}", 1 / (beta * value), 1 / (beta * least), error / (beta * value**2), chains)


@dataclass(frozen=True)
class Mixing:
    """R̂ and effective sample size of the second half of the chains, by observable; None where they do not exist."""

    rhat: dict[str, float | None]
    ess: dict[str, float | None]

    @property
    def settled(self) -> bool:
        """Whether no observable says that the chains have not mixed: R̂ ≤ 1.05, and at least 100 effective samples."""
        known = [value for value in self.rhat.values() if value is not None]
        sizes = [value for value in self.ess.values() if value is not None]
        return bool(known) and max(known) <= _MIXED and min(sizes) >= _ENOUGH


def mixing(curves: dict[str, Array]) -> Mixing:
    """Rank-normalised R̂ and bulk effective sample size (Vehtari et al. 2021) of the second halves of (C, n) curves.

    Chains that begin alike agree alike: R̂ near 1 then only says that each forgot its own noise, and a mode that none
    of them has visited stays unseen.
    """
    from arviz_stats.base import array_stats  # slow to import

    rhat: dict[str, float | None] = {}
    ess: dict[str, float | None] = {}
    for name, curve in curves.items():
        half = second_half(curve)
        usable = half.shape[0] >= 2 and half.shape[1] >= 8 and np.ptp(half, axis=1).min() > 0
        rhat[name] = _finite(array_stats.rhat(half)) if usable else None
        ess[name] = _finite(array_stats.ess(half)) if usable else None
    return Mixing(rhat, ess)


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def second_half(curve: Array) -> Array:
    """(C, n) to its last ⌈n/2⌉ columns, where a chain is taken to be at equilibrium if it ever is."""
    return curve[:, curve.shape[1] // 2 :]


def ratio_of_means(left: Array, right: Array) -> Estimate | None:
    """E left/E right over the second half of (C, n) curves, with an error that knows of autocorrelation.

    The error is the larger of the Monte-Carlo standard error (by effective sample size) and that between chains; with
    short series only the latter is had. None with one chain, or where the denominator vanishes.
    """
    left, right = second_half(left), second_half(right)
    chains = len(left)
    if chains < 2 or not right.any():
        return None
    below = float(right.mean())
    value = float(left.mean()) / below
    linear = (left - value * right) / below
    error = float(linear.mean(axis=1).std(ddof=1)) / math.sqrt(chains)
    if linear.shape[1] >= 8 and np.ptp(linear, axis=1).min() > 0:
        from arviz_stats.base import array_stats

        within = float(array_stats.mcse(linear))
        error = max(error, within) if math.isfinite(within) else error
    return Estimate(value, error, chains, "estimated")


def contraction(times: Array, distances: Array) -> Estimate | None:
    """The rate −d ln‖θ_a − θ_b‖/dt of chains that share their noise.

    Args:
        times: (n,).
        distances: (P, n) of P pairs; cut where the first pair has met to 10⁻⁶ of where it began.

    Returns:
        mean and error over pairs; of fewer than 3, over four consecutive quarters of the run. None if it is too short.
        A positive rate on one path is an estimate: it proves no contraction elsewhere.
    """
    least = distances.min(axis=0)
    met = np.flatnonzero(least <= 1e-6 * distances[:, 0].max())
    end = int(met[0]) if met.size else len(times)
    if end < 8:
        return None
    t, logs = times[:end], np.log(distances[:, :end])
    if len(distances) >= 3:
        rates = -_slopes(t, logs)
    else:
        parts = np.array_split(np.arange(end), 4)
        rates = np.array([-float(_slopes(t[part], logs[:, part]).mean()) for part in parts if len(part) > 1])
    return Estimate(float(rates.mean()), float(rates.std(ddof=1)) / math.sqrt(len(rates)), len(rates), "estimated")


def _slopes(x: Array, y: Array) -> Array:
    """Least-squares slope of each row of y (P, n) on x (n,)."""
    centred = x - x.mean()
    slopes: Array = y @ centred / (centred @ centred)
    return slopes
