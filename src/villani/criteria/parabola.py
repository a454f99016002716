"""A parabola fitted to points with common noise: coefficients with intervals, and a test of lack of fit. No torch.

Points that were measured on the same groups with the same probes err together. Weights are 1/sem² of each point alone;
intervals and the law of χ² follow from the whole covariance (Satterthwaite 1946; Box 1954), which may be singular.
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import chdtrc, fdtrc

from villani.statistics import Array, Estimate


@dataclass(frozen=True)
class QuadraticFit:
    """Weighted least squares of a·r² + b·r + c, with weights 1/sem².

    Attributes:
        quadratic: a. Its interval allows for the noise that radii share, and holds only where a parabola fits.
        linear: b.
        constant: c.
        chi_squared: Σ (residual/sem)², where no sem is taken smaller than rounding.
        degrees_of_freedom: radii − 3.
        p_value: of a lack of fit at least as large, were the series a parabola. Radii share groups and probes, hence
            noise: the law of χ² is Satterthwaite's approximation for their covariance, estimated from the groups.

    With fewer than about 8 groups, or groups with heavy tails, weights are poor and so are the intervals: with 4 groups
    they can cover 88 % at a nominal 95 %. A large p-value does not prove a parabola: with noisy series it only
    says that none was ruled out.
    """

    quadratic: Estimate
    linear: Estimate
    constant: Estimate
    chi_squared: float
    degrees_of_freedom: int
    p_value: float


def fit_quadratic(
    radii: Array, values: Array, covariance: Array, floor: Array, groups: int, freedom: float
) -> QuadraticFit:
    """Fit n values at n ≥ 4 radii.

    Args:
        radii: (n,) r, all different.
        values: (n,).
        covariance: (n, n) of `values`, of any rank; 0 where nothing was sampled.
        floor: (n,) > 0, rounding errors, which keep weights finite.
        groups: behind the values.
        freedom: degrees of freedom of `covariance`.
    """
    unit = np.abs(radii).max()
    scale = np.sqrt(np.diag(covariance) + floor**2)  # (n,)
    design = np.vander(radii / unit, 3) / scale[:, None]  # (n, 3)
    inverse = np.linalg.pinv(design)  # (3, n)
    noise = covariance / np.outer(scale, scale)
    coefficients = inverse @ (values / scale)
    sems = np.sqrt(np.maximum(np.diag(inverse @ noise @ inverse.T), 0))
    a, b, c = (
        Estimate(float(v / unit**power), float(e / unit**power), groups, "estimated", freedom)
        for v, e, power in zip(coefficients, sems, (2, 1, 0), strict=True)
    )
    chi_squared = float(np.square(values / scale - design @ coefficients).sum())
    # χ² = zᵀz with z ~ N(0, M): about tr M · F(tr² M / tr M², freedom); M is a projection where radii are independent
    remainder = np.eye(len(radii)) - design @ inverse
    sampled = remainder @ noise @ remainder
    whole = sampled + remainder @ np.diag((floor / scale) ** 2) @ remainder
    mean = float(np.trace(whole))
    shape = mean**2 / float(np.square(whole).sum())
    known = freedom * (mean / max(float(np.trace(sampled)), 1e-9 * mean)) ** 2  # rounding needs no estimate
    p = fdtrc(shape, known, chi_squared / mean) if known < 1e6 else chdtrc(shape, chi_squared * shape / mean)
    return QuadraticFit(a, b, c, chi_squared, len(radii) - 3, float(p))
