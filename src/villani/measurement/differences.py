"""The difference of two measurements, and how well it is known. No torch.

Three relations are told apart. *Paired*: both were made on the same groups, so that a group is left out of both at
once and the jackknife sees their covariance. *Independent*: nothing random is shared, and variances add. *Dependent*:
something may be shared, nobody knows how much; standard errors add, which is enough whatever the correlation.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from villani.statistics import Array, Estimate, GroupSums, JointEstimate

Relation = Literal["paired", "independent", "dependent"]
_NOTHING = np.zeros((0, 0))


@dataclass(frozen=True, eq=False)
class Point:
    """What one measurement says, ready to be subtracted.

    Attributes:
        joint: the four statistics.
        tokens: (G,) predicted tokens; empty where only the estimates are known.
        gram: (G, G) inner products of the groups' gradients about their mean, per token; empty as `tokens`, or where
            groups are no noise.
        sketch: (k,) sketch of the mean gradient; empty where gradients were kept whole.
    """

    joint: JointEstimate
    tokens: Array
    gram: Array
    sketch: Array

    @classmethod
    def of(cls, joint: JointEstimate, sums: GroupSums | None = None, *, finite: bool = False) -> "Point":
        """Of the estimates, and the groups' sums where they are known."""
        if sums is None:
            return cls(joint, np.zeros(0), _NOTHING, np.zeros(0))
        if finite:
            return cls(joint, sums.tokens, _NOTHING, np.zeros(0))
        mean = sums.gradient.sum(axis=0) / sums.tokens.sum()
        centred = (sums.gradient - sums.tokens[:, None] * mean) / sums.tokens.mean()
        return cls(joint, sums.tokens, centred @ centred.T, mean if sums.sketched else np.zeros(0))


def psi_weights(weight_decay: float, temperature: float) -> Array:
    """(4,): Ψ_s of loss, ‖∇L‖², ⟨∇L, mθ⟩ and tr ∇²L, without its exact parts λ²‖mθ‖²/s − λ·d_m."""
    return np.array([0.0, 1 / temperature, 2 * weight_decay / temperature, -1.0])


def same_groups(first: Point, second: Point) -> bool:
    """Whether what is known of the groups and draws of two measurements fits together, one for one."""
    draws = first.joint.deviations.shape == second.joint.deviations.shape
    return bool(len(first.tokens)) and draws and np.array_equal(first.tokens, second.tokens)


def difference(
    first: Point, second: Point, weights: tuple[Array, Array], relation: Relation, offset: float = 0.0
) -> Estimate:
    """weights₂·x₂ − weights₁·x₁ + `offset`, for x₁ and x₂ the four statistics of two measurements.

    The variance of ‖∇L‖² gets, beside the jackknife's, twice that of a U-statistic without a gradient: where the
    gradient is about as large as its noise the jackknife alone can be far too small by chance. The interval is
    Student's, with G − 1 degrees of freedom where pairs of groups are the draws, those of Welch and Satterthwaite where
    variances are added that may differ, and the smaller number where standard errors are.

    Args:
        first: subtracted.
        second: what it is subtracted from.
        weights: (4,) of each.
        relation: of the two; `paired` needs `same_groups`.
        offset: exact.
    """
    value = float(weights[1] @ second.joint.values - weights[0] @ first.joint.values) + offset
    if relation == "paired":
        variance, freedom = _paired(first, second, weights)
        count = first.joint.n
    else:
        both = [(first, weights[0]), (second, weights[1])]
        variances = np.array([_variance(point, own) for point, own in both])
        freedoms = np.array([float(point.joint.degrees_of_freedom) for point, _ in both])
        count = first.joint.n + second.joint.n
        if relation == "independent":
            variance, freedom = float(variances.sum()), _satterthwaite(variances, freedoms)
        else:
            sampled = variances > 0
            variance = float(np.sqrt(variances).sum()) ** 2
            freedom = float(freedoms[sampled].min()) if sampled.any() else float(freedoms.sum())
    sem = variance**0.5
    return Estimate(value, sem, count, "statistical" if sem else "certified", freedom)


def _paired(first: Point, second: Point, weights: tuple[Array, Array]) -> tuple[float, float]:
    draws = weights[1] @ second.joint.deviations - weights[0] @ first.joint.deviations  # (K,)
    count = first.joint.n
    own = len(draws) // count  # one draw a group, or its probes where groups are no noise
    parts = (draws.reshape(count, own) ** 2).sum(axis=1)
    variance = float(parts.sum())
    freedom = count - 1.0 if own == 1 else _satterthwaite(parts, np.full(count, own - 1.0))
    norms = (weights[0][1], weights[1][1])
    if any(norms) and first.gram.size and second.gram.size:
        variance += _degenerate(norms[1] * second.gram - norms[0] * first.gram)
    return variance + _sketched(first, second, norms), freedom


def _variance(point: Point, weights: Array) -> float:
    """Of one measurement."""
    joint = point.joint
    variance = max(float(weights @ joint.covariance @ weights), 0.0)
    if weights[1] and point.gram.size:
        variance += _degenerate(weights[1] * point.gram)
    return variance


def _degenerate(kernel: Array) -> float:
    """Twice the variance, 2·E[h²]/(G(G−1)), of a U-statistic over G groups whose kernel h (G, G) has no linear part."""
    count = len(kernel)
    squares = float((kernel**2).sum() - (np.diag(kernel) ** 2).sum())
    return 2 * (2 * squares / (count * (count - 1)) ** 2)


def _sketched(first: Point, second: Point, norms: tuple[float, float]) -> float:
    """A bound on what sketches add: Σ_b (w₂b² − w₁a²)² over buckets, be the two sketches one and the same or not."""
    one, other = norms[0] * first.sketch**2, norms[1] * second.sketch**2
    if len(one) == len(other):
        return float(((other - one) ** 2).sum())
    return float((one**2).sum() + (other**2).sum())


def _satterthwaite(variances: Array, freedoms: Array) -> float:
    """Degrees of freedom of a sum of independent variances."""
    total = float(variances.sum())
    if not total:
        return float(freedoms.sum())
    return 1 / float(((variances / total) ** 2 / freedoms).sum())
