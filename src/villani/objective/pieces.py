"""What a pass back through streamed weights leaves of each tensor of θ, and how parts of it add up."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch.nn import functional as F

from villani.statistics import Array

Vector = Callable[[int], torch.Tensor | None]
"""Index of a tensor in θ → that part of a vector, made when it is asked for; None where it is zero."""

Wanted = Literal["products", "curvatures", "gradients"]
"""What a pass back is to give beside gradients: ∇²·v, or of that vᵀ∇²v alone, which needs no memory, or nothing."""


@dataclass(frozen=True, eq=False)
class Piece:
    """What a pass back leaves of one tensor of θ.

    Attributes:
        index: of the tensor.
        value: its values.
        gradient: of the loss sum.
        products: number of a vector → (v, ∇²·v) of this tensor, where they are wanted and v is not zero in it.
        curvatures: (K,) vᵀ(∇²·v) of this tensor for every vector, where that alone is wanted.
    """

    index: int
    value: torch.Tensor
    gradient: torch.Tensor
    products: dict[int, tuple[torch.Tensor, torch.Tensor]]
    curvatures: Array


Part = tuple[Piece, torch.Tensor | None]
"""What a segment leaves of a tensor; with numbers of rows, gradient and products are those of these rows alone."""


def added(waiting: Piece | None, piece: Piece, rows: torch.Tensor | None = None) -> Piece:
    """A piece with what was there of its tensor before, if anything, whose memory is taken for the sum.

    Args:
        waiting: that; nobody else holds its gradient and products.
        piece: the new one.
        rows: (R,) whose gradient and products it has; all if None.
    """
    if waiting is None:
        none = {k: (v, torch.zeros_like(piece.value)) for k, (v, _) in piece.products.items()}
        waiting = Piece(piece.index, piece.value, torch.zeros_like(piece.value), none, np.zeros(len(piece.curvatures)))

    def total(before: torch.Tensor, part: torch.Tensor) -> torch.Tensor:
        return before.add_(part) if rows is None else before.index_add_(0, rows, part)

    products = {k: (v, total(waiting.products[k][1], part)) for k, (v, part) in piece.products.items()}
    return replace(
        piece, gradient=total(waiting.gradient, piece.gradient), products=products,
        curvatures=waiting.curvatures + piece.curvatures,
    )  # fmt: skip


def to_wait(piece: Piece, *, shared: bool) -> Piece:
    """What is kept of a piece that is not complete: its values and vectors come again with the last of its tensor.

    Args:
        piece: of which there is more to come.
        shared: somebody else may hold the memory of its gradient or products.
    """
    none = piece.value.new_empty(0)
    products = {k: (none, a.clone() if shared else a) for k, (_, a) in piece.products.items()}
    return replace(piece, value=none, gradient=piece.gradient.clone() if shared else piece.gradient, products=products)


@dataclass(frozen=True)
class Rows:
    """The rows of a table that are looked up.

    Attributes:
        numbers: (R,) of the rows, sorted.
        values: (R, D).
    """

    numbers: torch.Tensor
    values: torch.Tensor


def lookup(table: torch.Tensor | Rows, ids: torch.Tensor, *rest: Any) -> torch.Tensor:
    """Rows of a table, or of one that has no others."""
    if isinstance(table, Rows):
        return F.embedding(torch.searchsorted(table.numbers, ids), table.values)
    rows: torch.Tensor = torch.ops.aten.embedding.default(table, ids, *rest)
    return rows
