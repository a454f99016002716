"""The head integrated out: what probes upstream give in the loss, and the exact trace over the head itself.

Formulas in `curvature/taylor.py`; all sums are over predicted positions, so the results belong to the loss sum.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from villani.curvature.jets import Jet

POSITIONS = 128  # logits of so many positions at a time: 26 MB at V = 50,257
_RUN = 128  # labels
LABELS = 64  # labels sampled at every position: their noise is then well below that of the probes


@dataclass(frozen=True)
class TiedRows:
    """The part of a probe that acts on a head which is tied to the input embedding.

    Attributes:
        probe: which one.
        rows: (R,) the token ids that occur in the input, sorted.
        values: (R, D) the probe on those rows.
    """

    probe: int
    rows: torch.Tensor
    values: torch.Tensor


@dataclass(frozen=True)
class HeadTerms:
    """Second derivatives of the loss sum.

    Attributes:
        residual: class → Σ over its probes of (p − y)ᵀ z_kk.
        tied_residual: probe → what products of a tied head's own probe with its features add to `residual`.
        gauss_newton: probe → z_kᵀ S z_k, averaged over sampled labels.
        weight: exact trace over the head's weight matrix.
        bias: exact trace over its bias.
        moduli, squares: class → Σ of |terms| and of terms² of `residual`, which tell what rounding may have put there.
    """

    residual: dict[int, float]
    tied_residual: dict[int, float]
    gauss_newton: dict[int, float]
    weight: float
    bias: float
    moduli: dict[int, float]
    squares: dict[int, float]


def head_terms(
    features: Jet,
    labels: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    tied: Sequence[TiedRows],
    uniform: torch.Tensor,
) -> HeadTerms:
    """Integrate a head over the features of n predicted positions.

    Args:
        features: h (n, D) with its tangents.
        labels: (n,) y.
        weight: (V, D) W.
        bias: (V,) or None.
        tied: the probes on a tied head, if it is tied.
        uniform: (n, LABELS) independent uniform numbers, for the sampled labels.
    """
    residual, moduli, squares = (dict.fromkeys(features.second, 0.0) for _ in range(3))
    tied_residual = dict.fromkeys([own.probe for own in tied], 0.0)
    gauss_newton = dict.fromkeys(features.first, 0.0)
    total_weight = total_bias = 0.0
    for start in range(0, len(labels), POSITIONS):
        part = slice(start, start + POSITIONS)
        h, y = features.x[part], labels[part]
        p = torch.softmax(F.linear(h, weight, bias), dim=-1)
        spread = 1 - torch.linalg.vector_norm(p, dim=-1).square()
        total_weight += _sum(h.square().sum(dim=-1) * spread)
        total_bias += _sum(spread)
        drawn = draw_labels(p, uniform[part])  # (b, LABELS)
        mean_row = p @ weight  # (b, D)
        pull = mean_row - weight[y]  # Wᵀ(p − y)
        for c, t in features.second.items():
            sums = pull * t[part]
            residual[c] += _sum(sums)
            moduli[c] += _sum(sums.abs())
            squares[c] += _sum(sums.square())
        scores = weight[drawn] - mean_row[:, None]  # (b, LABELS, D)
        for own in tied:
            t = features.first[own.probe][part]
            on_rows = h @ own.values.T  # (b, R): V h on the rows that occur
            moved = t @ own.values.T  # V h_k
            p_rows = p[:, own.rows]
            errors = p_rows - (own.rows == y[:, None]).to(p.dtype)
            tied_residual[own.probe] += 2 * _sum(errors * moved)
            place = torch.searchsorted(own.rows, drawn).clamp_(max=len(own.rows) - 1)
            hit = own.rows[place] == drawn
            shift = torch.where(hit, on_rows.gather(1, place), 0.0) - (p_rows * on_rows).sum(-1, keepdim=True)
            gauss_newton[own.probe] += 2 * _sum(along(scores, t) * shift) / LABELS
        for k, t in features.first.items():
            gauss_newton[k] += _sum(along(scores, t[part]).square()) / LABELS
    total_bias = total_bias if bias is not None else 0.0
    return HeadTerms(residual, tied_residual, gauss_newton, total_weight, total_bias, moduli, squares)


def logit_terms(logits: Jet, labels: torch.Tensor) -> HeadTerms:
    """The loss sum over n predicted positions where there is no head to integrate: all of it is exact given the probes.

    Args:
        logits: z (n, V) with its tangents; z_kᵀ S z_k is the variance of z_k under p.
        labels: (n,) y.
    """
    residual, moduli, squares = (dict.fromkeys(logits.second, 0.0) for _ in range(3))
    gauss_newton = dict.fromkeys(logits.first, 0.0)
    for start in range(0, len(labels), POSITIONS):
        part = slice(start, start + POSITIONS)
        y = labels[part, None]
        p = torch.softmax(logits.x[part], dim=-1)
        for c, t in logits.second.items():
            sums = p * t[part]
            sums.scatter_add_(1, y, -t[part].gather(1, y))
            residual[c] += _sum(sums)
            moduli[c] += _sum(sums.abs())
            squares[c] += _sum(sums.square())
        for k, t in logits.first.items():
            centred = t[part] - (p * t[part]).sum(dim=-1, keepdim=True)
            gauss_newton[k] += _sum(p * centred.square())
    return HeadTerms(residual, {}, gauss_newton, 0.0, 0.0, moduli, squares)


def along(scores: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """(b, LABELS) inner products of each score with its position's tangent."""
    return torch.matmul(scores, t[:, :, None])[:, :, 0]


def draw_labels(p: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """(b, L) labels from (b, V) probabilities and (b, L) uniform numbers: the distribution inverted.

    First the run of `_RUN` labels is found, then the label in it, so that only runs that are hit are summed one by one.
    """
    size = p.shape[1]
    runs = F.pad(p, (0, -size % _RUN)).view(len(p), -1, _RUN)  # (b, R, _RUN)
    ends = runs.sum(dim=-1).double().cumsum(dim=-1)
    wanted = uniform.to(p.device) * ends[:, -1:]
    hit = torch.searchsorted(ends, wanted, right=True).clamp_(max=ends.shape[1] - 1)  # (b, L)
    starts = F.pad(ends, (1, 0)).gather(1, hit)
    inside = runs[torch.arange(len(p), device=p.device)[:, None], hit].double().cumsum(dim=-1)  # (b, L, _RUN)
    place = torch.searchsorted(inside, (wanted - starts)[..., None], right=True)[..., 0].clamp_(max=_RUN - 1)
    return (hit * _RUN + place).clamp_(max=size - 1)


def _sum(x: torch.Tensor) -> float:
    return float(x.sum(dtype=torch.float64))
