"""The curvature of a loss as a symmetric matrix that is only ever multiplied: flat vectors in, flat vectors out.

Between products on the same data nothing but the vector changes. The graph of the gradient is therefore kept where it
fits the budget: a product is then a double backward pass alone, two thirds of the work. What is kept moves no bits.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from villani.curvature.double_backward import check_double_backward
from villani.curvature.headed import HeadedCurvature, linear_head
from villani.curvature.products import Tensors, differentiable_gradient, product
from villani.errors import InputError
from villani.objective.batches import Batch
from villani.objective.objective import Forward, Objective, check_weight_decay
from villani.objective.weights import refuse_streamed
from villani.work.memory import resident

OperatorKind = Literal["hessian", "gauss-newton"]
Product = Callable[[torch.Tensor], torch.Tensor]  # (d,) → (d,), symmetric and linear
Applied = Callable[[Tensors, bool], Iterable[Sequence[torch.Tensor | None]]]  # (v, another follows) → addends


@dataclass
class Budget:
    """Memory of the process that may be used, and what else is asked of it.

    Attributes:
        limit: bytes, or None for no limit.
        peak: the largest memory of this process so far, in bytes.
        working: bytes that a product takes and gives back, where that is known before there was much else.
    """

    limit: int | None = None
    peak: Callable[[], int] = field(default=lambda: 0)
    working: int = 0

    def fits(self, more: float) -> bool:
        """Whether `more` bytes may be held on top of what has been in use at the worst moment, so far or to come."""
        if self.limit is None:
            return True
        coming = resident() + self.working if self.working else 0
        return max(self.peak(), coming) + more <= self.limit


class Curvature:
    """∇²L or its Gauss–Newton part, of the mean loss over groups, on all of θ or on some tensors; plus λM if wanted.

    Calling it with v (d,) in θ's dtype gives the product (d,). Pieces of at most `micro_tokens` tokens are added in θ's
    dtype: that rounding is of the size of the products' own.

    Args:
        objective: whose loss and θ; θ must not change while this lives.
        kind: `hessian`, or `gauss-newton` for JᵀSJ, which is never negative.
        groups: which groups the loss is the mean over; all by default.
        tensors: indices of the tensors that the matrix is restricted to: the block H_bb. All by default.
        weight_decay: λ, added on the decayed coordinates: the matrix of F = L + (λ/2)‖m⊙θ‖² rather than of L.
        budget: what graphs may be kept within; without one, none are kept.

    Raises:
        InputError: λ out of range, an unknown kind, or `gauss-newton` of a custom loss, which has no logits.
    """

    def __init__(
        self,
        objective: Objective,
        kind: OperatorKind = "hessian",
        groups: Sequence[int] | None = None,
        tensors: Sequence[int] | None = None,
        weight_decay: float = 0.0,
        budget: Budget | None = None,
    ) -> None:
        check_weight_decay(weight_decay)
        if kind not in ("hessian", "gauss-newton"):
            raise InputError(f"operator={kind!r}: expected hessian or gauss-newton")
        if kind == "gauss-newton" and objective.loss_fn is not None:
            raise InputError("a custom loss_fn has no logits, so no Gauss–Newton matrix: use operator='hessian'")
        refuse_streamed(objective.model, "a matrix of curvature", "villani.measure streams; load with streamed=False")
        if kind == "hessian":
            check_double_backward(objective)
        space = objective.parameters
        chosen = range(len(space.parameters)) if tensors is None else tensors
        self.objective = objective
        self.kind = kind
        self.groups = list(range(len(objective.groups)) if groups is None else groups)
        self.parameters = [space.parameters[i] for i in chosen]
        self.tensors = [p.tensor for p in self.parameters]
        self.sizes = [t.numel() for t in self.tensors]
        self.size = sum(self.sizes)  # d, or the block's
        self.dtype = space.dtype
        self.weight_decay = weight_decay
        self._budget = budget
        self._kept: dict[tuple[int, int], tuple[Applied, float]] = {}
        self._head = linear_head(objective)
        self._graph = 0  # bytes of the largest graph so far

    @property
    def graphs(self) -> int:
        """How many graphs of gradients are kept, one for each batch that the budget has room for."""
        return len(self._kept)

    def views(self, vector: torch.Tensor) -> list[torch.Tensor]:
        """A flat vector as tensors of θ's shapes that share its memory."""
        return [piece.view(t.shape) for piece, t in zip(vector.split(self.sizes), self.tensors, strict=True)]

    def __call__(self, vector: torch.Tensor) -> torch.Tensor:
        """The product."""
        pieces = ((key, batch) for key, batch in self._pieces())
        return self._multiply(vector, pieces)

    def otherwise(self, vector: torch.Tensor) -> torch.Tensor:
        """The same product with other roundings: of 3v, a third of it, block by block from the last to the first.

        The difference to `self(vector)` is a sample of the error of products, those of the graph's values included.
        """
        self._kept.clear()  # graphs for this need their room
        singles = []
        for (group, index), batch in self._pieces():
            rows = batch.ids.shape[0] if isinstance(batch, Batch) else 1
            singles += [((group, -1 - index), batch.rows(i, i + 1) if isinstance(batch, Batch) else batch)
                        for i in range(rows)]  # fmt: skip
        tokens = ((key, b) for key, b in reversed(singles) if not isinstance(b, Batch) or b.tokens)
        return self._multiply(3 * vector, tokens, keep=False) / 3

    def _multiply(
        self, vector: torch.Tensor, pieces: Iterator[tuple[tuple[int, int], Any]], keep: bool = True
    ) -> torch.Tensor:
        total = torch.zeros_like(vector)
        sums, views = self.views(total), self.views(vector)
        tokens = 0.0
        with self.objective.evaluating():
            for key, batch in pieces:
                kept = self._kept.get(key) if keep else None
                if kept is None:
                    before = resident()
                    kept = self._linearised(batch)
                    self._graph = max(self._graph, resident() - before)
                    # The graph is there; a product takes less than it again and θ's size: about two thirds of that.
                    if keep and self._budget is not None and self._budget.fits(self._graph + vector.nbytes):
                        self._kept[key] = kept
                apply, count = kept
                for addend in apply(views, key in self._kept):
                    for s, piece in zip(sums, addend, strict=True):
                        if piece is not None:
                            s.add_(piece)
                    del addend, piece  # of θ's size: before the next one is made
                tokens += count
                del kept, apply
        total /= tokens
        if self.weight_decay:
            for s, v, p in zip(sums, views, self.parameters, strict=True):
                if p.decayed:
                    s.add_(v, alpha=self.weight_decay)
        return total

    def _pieces(self) -> Iterator[tuple[tuple[int, int], Any]]:
        for group in self.groups:
            for index, batch in enumerate(self.objective.batches(group)):
                yield (group, index), batch

    def _linearised(self, batch: Any) -> tuple[Applied, float]:
        """A forward pass, its gradient with a graph, and how to multiply with the curvature of its loss sum."""
        if self._head is not None:
            found = HeadedCurvature(
                self.objective, batch, self.tensors, self._head, gauss_newton=self.kind == "gauss-newton"
            )
            _check_finite(found.loss)
            return found, found.tokens
        forward = self.objective.forward(batch)
        _check_finite(float(forward.loss.detach()))
        if self.kind == "gauss-newton":
            return self._gauss_newton(forward), forward.tokens
        gradient = differentiable_gradient(forward.loss, self.tensors)
        return lambda v, again: [product(gradient, v, self.tensors, keep_graph=again)], forward.tokens

    def _gauss_newton(self, forward: Forward) -> Applied:
        """JᵀSJ v for logits z = z(θ): Jv is the derivative of the linear map u ↦ Jᵀu, S = diag p − ppᵀ."""
        logits = forward.logits
        assert logits is not None
        p = torch.softmax(logits.detach(), dim=-1)
        u = torch.zeros_like(logits, requires_grad=True)
        pulled = torch.autograd.grad(
            logits, self.tensors, u, create_graph=True, allow_unused=True, materialize_grads=True
        )

        def apply(vector: Tensors, again: bool) -> Iterable[Sequence[torch.Tensor | None]]:
            live = [(g, v) for g, v in zip(pulled, vector, strict=True) if g.requires_grad]
            (pushed,) = torch.autograd.grad(
                [g for g, _ in live], u, [v for _, v in live], retain_graph=True, materialize_grads=True
            )
            curved = p * (pushed - (p * pushed).sum(dim=-1, keepdim=True))
            return [torch.autograd.grad(logits, self.tensors, curved, retain_graph=again, allow_unused=True)]

        return apply


def _check_finite(loss: float) -> None:
    if not math.isfinite(loss):
        raise InputError(f"the loss is {loss}: check the checkpoint, or load it in a wider dtype")
