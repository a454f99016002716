"""∇²L·v by the ways that the package has, a vector at a time: what tests hold against truths of their own."""

import torch

from villani.curvature.double_backward import check_double_backward
from villani.curvature.products import (
    Tensors,
    differentiable_gradient,
    finite_difference_product,
    forward_product,
    product,
)
from villani.curvature.ways import ProductMethod
from villani.objective.objective import Objective


def hessian_vector_product(
    objective: Objective, vector: Tensors, group: int | None = None, method: ProductMethod = "reverse-over-reverse"
) -> list[torch.Tensor]:
    """∇²L·v in float64, of one group or of all; without the λ term, which is exact and needs no product.

    Args:
        objective: F; only its L is differentiated.
        vector: v, as tensors of θ's shapes and dtype.
        group: index, or None for the token-weighted mean over all groups.
        method: as `villani.curvature.products` has them.

    Raises:
        InputError: as `finite_difference_product`, with that method; else as `check_double_backward`.
    """
    if method == "finite-differences":
        return finite_difference_product(objective, vector, group)[0]
    check_double_backward(objective)
    tensors = objective.parameters.tensors
    sums = [torch.zeros(t.shape, dtype=torch.float64, device=t.device) for t in tensors]
    tokens = 0.0
    with objective.evaluating():
        for g in range(len(objective.groups)) if group is None else [group]:
            for batch in objective.batches(g):
                if method == "forward-over-reverse":
                    pieces, count = forward_product(objective, batch, vector)
                else:
                    forward = objective.forward(batch)
                    count = forward.tokens
                    gradient = differentiable_gradient(forward.loss, tensors)
                    pieces = product(gradient, vector, tensors, keep_graph=False)
                tokens += count
                for total, piece in zip(sums, pieces, strict=True):
                    total.add_(piece)
    return [total / tokens for total in sums]
