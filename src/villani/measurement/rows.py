"""What a group leaves in a ledger, and what the rows of groups say together."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from villani.statistics import Array, Estimate, GroupSums, ratio_estimates
from villani.work.team import Rows

if TYPE_CHECKING:  # who reads a ledger needs no torch
    from villani.curvature.group import GroupStatistics


def group_row(statistics: "GroupStatistics") -> Rows:
    """A group's statistics as a unit of work leaves them."""
    return {
        "tokens": np.array([statistics.tokens]),
        "loss": np.array([statistics.loss]),
        "gradient": statistics.gradient,
        "dots": statistics.dots,
        "traces": statistics.traces,
        "gauss_newton": statistics.gauss_newton,
    }


def group_sums(decayed: Sequence[bool] | NDArray[np.bool_], rows: Sequence[Rows], *, sketched: bool) -> GroupSums:
    """What the rows of groups say where these of P tensors decay."""
    tokens, traces = samples(rows, "traces")
    dots = np.stack([row["dots"] for row in rows])  # (G, P)
    return GroupSums(
        tokens=tokens,
        loss=np.concatenate([row["loss"] for row in rows]),
        gradient=np.stack([row["gradient"] for row in rows]),
        gradient_dot_parameters=dots[:, np.asarray(decayed, dtype=bool)].sum(axis=1),
        hessian_trace=traces.sum(axis=2),
        sketched=sketched,
    )


def samples(rows: Sequence[Rows], name: str) -> tuple[Array, Array]:
    """(G,) tokens and (G, m, P) samples."""
    return np.concatenate([row["tokens"] for row in rows]), np.stack([row[name] for row in rows])


def trace_estimates(tokens: Array, traces: Array, finite: bool) -> list[Estimate]:
    """Token-weighted means of (G, m, P) trace samples, one estimate for each of P."""
    count, probes, _ = traces.shape
    if finite:
        share = traces / tokens.sum()
        values = share.mean(axis=1).sum(axis=0)
        sems = np.sqrt((share.var(axis=1, ddof=1) / probes).sum(axis=0))
        freedom = float(count * (probes - 1))
    else:
        values, sems = ratio_estimates(traces.mean(axis=1), tokens)
        freedom = float(count - 1)
    return [Estimate(float(v), float(e), count, "statistical", freedom) for v, e in zip(values, sems, strict=True)]


def naive_norm(sums: GroupSums) -> Estimate:
    """Mean of ‖∇L_g‖² over groups."""
    norms = np.einsum("gk,gk->g", sums.gradient, sums.gradient) / sums.tokens**2
    count = len(norms)
    sem = float(norms.std(ddof=1) / np.sqrt(count)) if count > 1 else 0.0
    return Estimate(float(norms.mean()), sem, count, "estimated")
