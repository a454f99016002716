"""Hessian-vector products by reverse over reverse: differentiate ⟨∇L, v⟩ once more."""

from collections.abc import Sequence

import torch

from villani.landscape.objective import Objective

Tensors = Sequence[torch.Tensor]


def differentiable_gradient(loss: torch.Tensor, tensors: Tensors) -> list[torch.Tensor]:
    """The gradient of a scalar, with its own graph; zero for tensors that the scalar does not depend on."""
    gradient = torch.autograd.grad(loss, tensors, create_graph=True, allow_unused=True)
    return [torch.zeros_like(t) if g is None else g for g, t in zip(gradient, tensors, strict=True)]


def product(gradient: Tensors, vector: Tensors, tensors: Tensors, *, keep_graph: bool) -> list[torch.Tensor]:
    """Hv for the function whose `differentiable_gradient` is given; same shapes as θ.

    Args:
        gradient: with a graph.
        vector: v.
        tensors: θ.
        keep_graph: whether another product with the same gradient follows.
    """
    live = [(g, v) for g, v in zip(gradient, vector, strict=True) if g.requires_grad]
    if not live:  # the loss is linear in θ
        return [torch.zeros_like(t) for t in tensors]
    pieces = torch.autograd.grad(
        [g for g, _ in live],
        tensors,
        grad_outputs=[v for _, v in live],
        retain_graph=keep_graph,
        allow_unused=True,
    )
    return [torch.zeros_like(t) if p is None else p for p, t in zip(pieces, tensors, strict=True)]


def hessian_vector_product(objective: Objective, vector: Tensors, group: int | None = None) -> list[torch.Tensor]:
    """∇²L·v in float64, of one group or of all; without the λ term, which is exact and needs no product.

    Args:
        objective: F; only its L is differentiated.
        vector: v, as tensors of θ's shapes and dtype.
        group: index, or None for the token-weighted mean over all groups.
    """
    tensors = objective.parameters.tensors
    sums = [torch.zeros(t.shape, dtype=torch.float64, device=t.device) for t in tensors]
    tokens = 0.0
    with objective.evaluating():
        for g in range(len(objective.groups)) if group is None else [group]:
            for batch in objective.batches(g):
                forward = objective.forward(batch)
                tokens += forward.tokens
                gradient = differentiable_gradient(forward.loss, tensors)
                for total, piece in zip(sums, product(gradient, vector, tensors, keep_graph=False), strict=True):
                    total.add_(piece)
    return [total / tokens for total in sums]
