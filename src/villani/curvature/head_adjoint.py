"""The head's part of a first-order sweep and its adjoint; formulas in `curvature/taylor.py` and `adjoint.py`."""

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from villani.curvature.head import POSITIONS, TiedRows, along, draw_labels


@dataclass
class HeadAdjoint:
    """What belongs to the loss sum over n predicted positions, with features h and their tangents ḣ.

    Attributes:
        loss: nats.
        adjoint: (n, D) of h in L: Wᵀ(p − y).
        turned: (n, D) its derivative along the probe, WᵀSW ḣ, averaged over sampled labels.
        of_weight: (V, D) the gradient in W; None where it is not wanted.
        of_bias: (V,) the same of the bias.
        gauss_newton: its part of the trace.
        tied: the share of products of a tied head's own probe with its features.
        weight: exact trace over W.
        bias: exact trace over the bias.
    """

    loss: float
    adjoint: torch.Tensor
    turned: torch.Tensor
    of_weight: torch.Tensor | None
    of_bias: torch.Tensor | None
    gauss_newton: float = 0.0
    tied: float = 0.0
    weight: float = 0.0
    bias: float = 0.0


def head_adjoint(
    h: torch.Tensor, moved: torch.Tensor, labels: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None,
    tied: TiedRows | None, uniform: torch.Tensor, *, slopes: tuple[bool, bool],
) -> HeadAdjoint:  # fmt: skip
    """Take a head, or logits where there is none, to the loss and back.

    Args:
        h: (n, D) features, or logits (n, V) where `weight` is None.
        moved: ḣ, of the same shape.
        labels: (n,) y.
        weight: (V, D) W, or None.
        bias: (V,) or None.
        tied: the probe on a tied head, if it is tied.
        uniform: (n, LABELS) independent uniform numbers, for the sampled labels.
        slopes: whether the gradients in W and in the bias are wanted.
    """
    whole = HeadAdjoint(
        0.0, torch.zeros_like(h), torch.zeros_like(h),
        torch.zeros_like(weight) if slopes[0] and weight is not None else None,
        torch.zeros_like(bias) if slopes[1] and bias is not None else None,
    )  # fmt: skip
    for start in range(0, len(labels), POSITIONS):
        part = slice(start, start + POSITIONS)
        x, t, y = h[part], moved[part], labels[part]
        z = x if weight is None else F.linear(x, weight, bias)
        z = z.to(torch.promote_types(z.dtype, torch.float32))
        whole.loss += _sum(F.cross_entropy(z, y, reduction="none"))
        p = torch.softmax(z, dim=-1).to(h.dtype)
        if weight is None:
            centred = t - (p * t).sum(dim=-1, keepdim=True)
            whole.turned[part] = p * centred
            whole.gauss_newton += _sum(p * centred.square())
        else:
            _through(whole, part, (x, t, y, p), weight, tied, uniform[part])
        errors = p
        errors[torch.arange(len(y), device=y.device), y] -= 1.0
        if weight is None:
            whole.adjoint[part] = errors
        if whole.of_weight is not None:
            whole.of_weight.addmm_(errors.T, x)
        if whole.of_bias is not None:
            whole.of_bias += errors.sum(dim=0)
    whole.gauss_newton += whole.weight + whole.bias
    return whole


def _through(
    whole: HeadAdjoint, part: slice, given: tuple[torch.Tensor, ...], weight: torch.Tensor, tied: TiedRows | None,
    uniform: torch.Tensor,
) -> None:  # fmt: skip
    """Second derivatives of some positions of a head."""
    h, t, y, p = given
    spread = 1 - torch.linalg.vector_norm(p, dim=-1).square()
    whole.weight += _sum(h.square().sum(dim=-1) * spread)
    whole.bias += _sum(spread)
    drawn = draw_labels(p, uniform)  # (b, LABELS)
    mean_row = p @ weight  # (b, D)
    whole.adjoint[part] = mean_row - weight[y]
    scores = weight[drawn] - mean_row[:, None]  # (b, LABELS, D)
    steps = along(scores, t)  # (b, LABELS)
    whole.turned[part] = torch.matmul(steps[:, None], scores)[:, 0] / steps.shape[1]
    whole.gauss_newton += _sum(steps.square()) / steps.shape[1]
    if tied is None:
        return
    on_rows, moved = h @ tied.values.T, t @ tied.values.T  # V h and V ḣ on the rows that occur, (b, R)
    p_rows = p[:, tied.rows]
    place = torch.searchsorted(tied.rows, drawn).clamp_(max=len(tied.rows) - 1)
    hit = tied.rows[place] == drawn
    shift = torch.where(hit, on_rows.gather(1, place), 0.0) - (p_rows * on_rows).sum(-1, keepdim=True)
    crossed = 2 * _sum(steps * shift) / steps.shape[1]
    errors = p_rows - (tied.rows == y[:, None]).to(p.dtype)
    whole.gauss_newton += crossed
    whole.tied += crossed + 2 * _sum(errors * moved)


def _sum(x: torch.Tensor) -> float:
    return float(x.sum(dtype=torch.float64))
