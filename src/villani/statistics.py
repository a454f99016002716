"""Estimates with standard errors: U-statistics, the delete-one-group jackknife, intervals. No torch.

A *group* is the unit of data noise (DESIGN.md "Words"). What a group contributes is a sum over its predicted tokens, so
groups of unequal size enter with the weight that they have in the loss.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from villani.estimate import Array as Array
from villani.estimate import Estimate as Estimate
from villani.estimate import Limits as Limits
from villani.estimate import Status as Status
from villani.estimate import exact as exact
from villani.results import Content


def over_seeds(values: Sequence[float] | Array) -> Estimate:
    """The mean of independent repetitions, such as training seeds, with the usual standard error.

    Raises:
        ValueError: fewer than two.
    """
    found = np.asarray(values, dtype=float)
    if len(found) < 2:
        raise ValueError(f"{len(found)} values: expected at least 2")
    return Estimate(float(found.mean()), float(found.std(ddof=1)) / len(found) ** 0.5, len(found), "statistical")


def resolvable(sem: float, freedom: float, comparisons: int = 1, level: float = 0.95) -> float:
    """What a t-interval reaches to either side, so that those of all `comparisons` hold at once; ∞ without freedom."""
    if freedom <= 0:
        return float("inf")
    return float(stdtrit(freedom, 1 - (1 - level) / (2 * comparisons))) * sem


def resolved_sign(value: float, sem: float, freedom: float, comparisons: int = 1, level: float = 0.95) -> int:
    """The sign of an estimate where its t-interval excludes 0, else 0; intervals of all `comparisons` hold at once."""
    half = resolvable(sem, freedom, comparisons, level)
    return 0 if abs(value) <= half else 1 if value > 0 else -1


@dataclass(frozen=True, eq=False, repr=False)
class GroupSums(Content):
    """What G groups contribute; every entry is a sum over the group's predicted tokens.

    Attributes:
        tokens: (G,) predicted tokens.
        loss: (G,) nats.
        gradient: (G, k) gradients of the loss sums, whole (k = d) or sketched (k < d).
        gradient_dot_parameters: (G,) ⟨∇loss sum, m⊙θ⟩.
        hessian_trace: (G, m) one column a probe: unbiased for tr ∇²(loss sum).
        sketched: whether `gradient` went through a random sketch, whose own error is then added.
    """

    tokens: Array
    loss: Array
    gradient: Array
    gradient_dot_parameters: Array
    hessian_trace: Array
    sketched: bool = False


@dataclass(frozen=True, eq=False, repr=False)
class JointEstimate(Content):
    """Loss, ‖∇L‖², ⟨∇L, mθ⟩ and tr ∇²L at one θ, with their joint covariance.

    Attributes:
        values: (4,).
        covariance: (4, 4), of `values`; covers data, probes and sketch together.
        n: groups.
        degrees_of_freedom: of t-intervals.
        deviations: (4, K) D, what each of K draws of groups or probes adds: D Dᵀ is `covariance`, less the sketch's
            part. Of measurements that share groups and probes, D₁D₂ᵀ is the covariance between them.
    """

    values: Array
    covariance: Array
    n: int
    degrees_of_freedom: float
    deviations: Array

    def component(self, index: int) -> Estimate:
        """One of the four, with its own standard error."""
        weights = np.zeros(4)
        weights[index] = 1.0
        return self.linear(weights)

    def linear(self, weights: Array, offset: float = 0.0) -> Estimate:
        """`weights`·values + `offset`; the standard error is exact for a linear function."""
        sem = max(float(weights @ self.covariance @ weights), 0.0) ** 0.5
        value = float(weights @ self.values) + offset
        return Estimate(value, sem, self.n, "statistical" if sem else "certified", self.degrees_of_freedom)

    def propagate(self, function: Callable[[Array], float]) -> Estimate:
        """A smooth function of the four values, by the delta method.

        The gradient is a central difference over one standard error either side: the scale on which the values are
        known. Where `function` bends on that scale the interval is approximate, hence the status "estimated".
        """
        steps = np.sqrt(np.diag(self.covariance))
        slopes = np.zeros(4)
        for i in np.flatnonzero(steps):
            shift = np.zeros(4)
            shift[i] = steps[i]
            slopes[i] = (function(self.values + shift) - function(self.values - shift)) / (2 * steps[i])
        sem = self.linear(slopes).sem
        return Estimate(
            function(self.values), sem, self.n, "estimated" if sem else "certified", self.degrees_of_freedom
        )


def jackknife_deviations(replicates: Array) -> Array:
    """D (k, G) = √((G−1)/G) · (x₋g − x̄) from delete-one-group replicates (G, k); D Dᵀ is the jackknife covariance."""
    count = len(replicates)
    deviations: Array = ((count - 1) / count) ** 0.5 * (replicates - replicates.mean(axis=0)).T
    return deviations


def bias_corrected(full: Array, replicates: Array) -> Array:
    """Quenouille's correction G·x − (G−1)·x̄₋: removes the O(1/G) bias of a ratio, leaves a U-statistic as it is."""
    count = len(replicates)
    corrected: Array = count * full - (count - 1) * replicates.mean(axis=0)
    return corrected


def ratio_replicates(sums: Array, tokens: Array) -> tuple[Array, Array]:
    """Σ sums / Σ tokens over all groups (k,), and with each group left out (G, k); sums is (G, k)."""
    rest = tokens.sum() - tokens
    return sums.sum(axis=0) / tokens.sum(), (sums.sum(axis=0) - sums) / rest[:, None]


def ratio_estimates(sums: Array, tokens: Array) -> tuple[Array, Array]:
    """Per-token means (k,) of group sums (G, k) and their jackknife standard errors (k,)."""
    full, replicates = ratio_replicates(sums, tokens)
    centred = replicates - replicates.mean(axis=0)
    count = len(tokens)
    return bias_corrected(full, replicates), np.sqrt((count - 1) / count * (centred**2).sum(axis=0))


def mean_per_token(sums: Array, tokens: Array) -> Estimate:
    """The mean of group sums (G,) per token with the jackknife's error; of one group, an error that is not known."""
    if len(tokens) < 2:
        return Estimate(float(sums.sum() / tokens.sum()), float("nan"), 1, "estimated")
    value, sem = ratio_estimates(sums[:, None], tokens)
    return Estimate(float(value[0]), float(sem[0]), len(tokens), "statistical")


def serial_correlation(values: Array) -> Estimate:
    """Rank correlation of neighbours in a sequence of at least 3, about 0 ± sem where any order was as likely.

    Ranks make it blind to how the values are spread; equal values share theirs. Of n ranks in random order
    Σ(r_i − r̄)(r_{i+1} − r̄)/Σ(r_i − r̄)² has mean −1/n, which is taken off, and a variance of nearly 1/n; where all are
    equal it is 0.
    """
    ordered = np.sort(values)
    ranks = (np.searchsorted(ordered, values) + np.searchsorted(ordered, values, "right") - len(values)) / 2  # centred
    spread = float(ranks @ ranks)
    correlation = float(ranks[:-1] @ ranks[1:]) / spread + 1 / len(values) if spread else 0.0
    return Estimate(correlation, len(values) ** -0.5, len(values), "statistical")


def squared_norm_replicates(gram: Array, tokens: Array) -> tuple[Array, Array]:
    """The U-statistic Σ_{i≠j}⟨s_i, s_j⟩ / Σ_{i≠j} n_i n_j for ‖∇L‖² (THEORY.md §6), and with each group left out.

    Args:
        gram: (G, G) inner products of the groups' gradient sums; the diagonal is never used.
        tokens: (G,) n_i.

    Returns:
        the statistic as (1,), and its delete-one replicates (G, 1).
    """
    off = gram - np.diag(np.diag(gram))
    rows = off.sum(axis=1)
    rest = tokens.sum() - tokens
    pairs = tokens.sum() ** 2 - (tokens**2).sum()
    full = np.array([rows.sum() / pairs])
    return full, ((rows.sum() - 2 * rows) / (pairs - 2 * tokens * rest))[:, None]


def sketch_variance(gradient: Array, tokens: Array) -> float:
    """Variance that the sketch of `curvature/sketch.py` adds to ‖∇L‖²: at most ⅔ Σ_b (S∇L)_b⁴ over its buckets b.

    The fourth power is estimated without bias from products over four different groups (elementary symmetric
    polynomials), or by the plug-in value where there are fewer than four.
    """
    if len(tokens) < 4:
        return float(2 / 3 * ((gradient.sum(axis=0) / tokens.sum()) ** 4).sum())
    return float(max(0.0, 2 / 3 * _fourth_symmetric(gradient).sum() / _fourth_symmetric(tokens[:, None])[0]))


def _fourth_symmetric(x: Array) -> Array:
    """24 times the fourth elementary symmetric polynomial of the rows of x, by Newton's identities; (G, k) to (k,)."""
    p1, p2, p3, p4 = (np.sum(x**power, axis=0) for power in (1, 2, 3, 4))
    result: Array = p1**4 - 6 * p1**2 * p2 + 3 * p2**2 + 8 * p1 * p3 - 6 * p4
    return result


def sampled_statistics(sums: GroupSums) -> JointEstimate:
    """The four statistics when the groups are a sample of the text: data and probe noise together.

    The interval of ‖∇L‖² is the least exact. Near a stationary point the U-statistic is degenerate, where its jackknife
    variance is up to twice the true one (Efron & Stein 1981): it then covers up to 99 % at a nominal 95 %. Where the
    gradient is about as large as its own noise and that noise has few directions, it covers as little as 90 %, nearly
    all of the misses being on the low side (docs/measuring.md has the table). Taking the degenerate part off, and
    intervals whose width follows the estimate, were tried: both cover less in some other regime.

    Raises:
        ValueError: fewer than three groups (a U-statistic without one of its groups still needs two).
    """
    count = len(sums.tokens)
    if count < 3:
        raise ValueError(f"groups={count}: expected at least 3, for an unbiased ‖∇L‖² with a jackknife interval")
    gram = sums.gradient @ sums.gradient.T
    means = np.column_stack([sums.loss, sums.gradient_dot_parameters, sums.hessian_trace.mean(axis=1)])
    mean_full, mean_replicates = ratio_replicates(means, sums.tokens)
    norm_full, norm_replicates = squared_norm_replicates(gram, sums.tokens)
    order = [0, 3, 1, 2]  # the norm goes second
    full = np.concatenate([mean_full, norm_full])[order]
    replicates = np.concatenate([mean_replicates, norm_replicates], axis=1)[:, order]
    deviations = jackknife_deviations(replicates)
    covariance = deviations @ deviations.T
    if sums.sketched:
        covariance[1, 1] += sketch_variance(sums.gradient, sums.tokens)
    return JointEstimate(bias_corrected(full, replicates), covariance, count, count - 1, deviations)


def finite_statistics(sums: GroupSums, gradient_norm_squared: float) -> JointEstimate:
    """The four statistics when the groups are the whole data set: only the probes are noise.

    Args:
        sums: `gradient` is not used.
        gradient_norm_squared: ‖∇L‖² of the whole data set.

    Raises:
        ValueError: fewer than two probes in a group.
    """
    count, probes = sums.hessian_trace.shape
    if probes < 2:
        raise ValueError(f"probes={probes}: expected at least 2 with finite=True, where only probes tell the error")
    total = sums.tokens.sum()
    share = sums.hessian_trace / total
    variances = share.var(axis=1, ddof=1) / probes
    variance = variances.sum()
    values = np.array(
        [
            sums.loss.sum() / total,
            gradient_norm_squared,
            sums.gradient_dot_parameters.sum() / total,
            sums.hessian_trace.mean(axis=1).sum() / total,
        ]
    )
    # Welch–Satterthwaite: the groups' probe variances differ
    freedom = variance**2 / ((variances**2).sum() / (probes - 1)) if variance > 0 else float(count * (probes - 1))
    deviations = np.zeros((4, count * probes))
    deviations[3] = ((share - share.mean(axis=1, keepdims=True)) / (probes * (probes - 1)) ** 0.5).ravel()
    return JointEstimate(values, np.diag([0.0, 0.0, 0.0, variance]), count, float(freedom), deviations)
