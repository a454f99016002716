"""Products with the curvature of a language model whose head is a linear map, without a graph over the vocabulary.

Cross-entropy of logits z = Wh has derivatives in closed form: with p = softmax z and a tangent (ḣ, Ẇ), ż = Wḣ + Ẇh,
ṗ = p⊙ż − p⟨p, ż⟩, and the slopes (p − y)ᵀW and (p − y)hᵀ move by ṗᵀW + (p − y)ᵀẆ and ṗhᵀ + (p − y)ḣᵀ. Only the trunk
h(θ) needs automatic differentiation: the slopes are one function of (h, W) with a derivative of its own, so that a
product is one double backward pass through the trunk. Of all that is as large as tokens × vocabulary only p is kept,
where autograd keeps more than ten such arrays and passes over each of them.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from villani.curvature.products import Tensors
from villani.objective.batches import IGNORED, Batch, takes
from villani.objective.objective import Objective

_POSITIONS = 128  # worked on at a time: 26 MB for each array at V = 50,257


def linear_head(objective: Objective) -> torch.Tensor | None:
    """The head's weight (V, D), if the logits are to the last bit a linear map of what the trunk gives; else None."""
    model: Any = objective.model
    trunk = getattr(model, "base_model", None)
    find = getattr(model, "get_output_embeddings", None)
    head = find() if callable(find) else None
    whole = objective.groups[0]
    if objective.loss_fn is not None or not isinstance(whole, Batch) or not isinstance(head, nn.Linear):
        return None
    if trunk is None or trunk is model or head.bias is not None:
        return None
    names, any_name = takes(trunk)
    given = {name for group in objective.groups for name in group.inputs}
    if not given <= {*names} or not (any_name or {*objective.options} <= {*names}):
        return None
    batch = whole.rows(0, 1).to(objective.device)
    with objective.evaluating(), torch.no_grad():
        features = getattr(trunk(**batch.inputs, **objective.options), "last_hidden_state", None)
        if features is None or not torch.equal(F.linear(features, head.weight), objective.logits(batch)):
            return None
    return head.weight


class HeadedCurvature:
    """The curvature of one batch's loss sum.

    Args:
        objective: of a model that has a `linear_head`; inside `objective.evaluating()`.
        batch: the tokens.
        tensors: the tensors of θ that the matrix is over.
        weight: the head's.
        gauss_newton: JᵀSJ alone.
    """

    def __init__(
        self, objective: Objective, batch: Batch, tensors: Tensors, weight: torch.Tensor, gauss_newton: bool
    ) -> None:
        trunk: Any = objective.model.base_model
        targets = batch.labels[:, 1:]
        predicted = targets != IGNORED
        self._tensors = tensors
        self._place = next((i for i, t in enumerate(tensors) if t is weight), None)
        trunk_output = trunk(**batch.inputs, **objective.options)
        self._live = trunk_output.last_hidden_state[:, :-1][predicted]  # (n, D), with a graph
        self.head = CrossEntropyHead(self._live.detach(), weight.detach(), targets[predicted], exact=not gauss_newton)
        self.tokens = float(predicted.sum())
        self._gauss_newton = gauss_newton
        if gauss_newton:
            self._u, self._of_weight = self.head.slope().requires_grad_(), None
        else:
            self._u, self._of_weight = _Slopes.apply(self._live, weight, self.head)  # type: ignore[no-untyped-call]
        self._pulled = torch.autograd.grad(self._live, tensors, self._u, create_graph=True, allow_unused=True)

    @property
    def loss(self) -> float:
        """Nats, summed over the batch."""
        return self.head.loss

    def __call__(self, vector: Tensors, again: bool) -> Iterator[Sequence[torch.Tensor | None]]:
        """Addends of the product, each tensor by tensor, None for 0; `again` keeps what another product needs."""
        live = [(g, v) for g, v in zip(self._pulled, vector, strict=True) if g is not None and g.requires_grad]
        turned = None if self._place is None else vector[self._place]  # Ẇ
        if not self._gauss_newton:
            if turned is not None and self._of_weight is not None:
                live.append((self._of_weight, turned))
            if live:
                yield _pullback(live, self._tensors, again)
            return
        moved = _pullback(live, [self._u], True)[0] if live else None  # ḣ
        slope, of_weight = self.head.move(torch.zeros_like(self._u) if moved is None else moved, turned)
        if self._place is not None:
            yield [of_weight if i == self._place else None for i in range(len(self._tensors))]
        del of_weight
        yield torch.autograd.grad(self._live, self._tensors, slope, retain_graph=again, allow_unused=True)


def _pullback(
    pairs: list[tuple[torch.Tensor, torch.Tensor]], inputs: Tensors, again: bool
) -> Sequence[torch.Tensor | None]:
    """The slopes in the inputs of Σ⟨g, v⟩ over the pairs."""
    found: Sequence[torch.Tensor | None] = torch.autograd.grad(
        [g for g, _ in pairs], inputs, [v for _, v in pairs], retain_graph=again, allow_unused=True
    )
    return found


class CrossEntropyHead:
    """The cross-entropy of z = Wh at one batch: its loss, its slope in h, and how its slopes move.

    Args:
        features: h (n, D).
        weight: W (V, D).
        labels: (n,).
        exact: with the terms of (p − y); without them only those of S = diag p − ppᵀ.
    """

    def __init__(self, features: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, exact: bool) -> None:
        self.features, self._weight, self._labels, self._exact = features, weight, labels, exact
        logits = F.linear(features, weight)
        log = torch.logsumexp(logits, dim=-1, keepdim=True)
        self.loss = float((log[:, 0] - logits.gather(1, labels[:, None])[:, 0]).double().sum())
        self._p = logits.sub_(log).exp_()  # (n, V)

    def slope(self) -> torch.Tensor:
        """g = (p − y)ᵀW (n, D). Made anew: a head that kept it would hold the graph that holds the head."""
        return self._p @ self._weight - self._weight[self._labels]

    def move(self, moved: torch.Tensor, turned: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """How the slopes in h (n, D) and in W (V, D) move when h moves by ḣ and W by Ẇ (None: is not asked about)."""
        slope = torch.empty_like(moved)
        of_weight: torch.Tensor | None = None
        for start in range(0, len(moved), _POSITIONS):
            rows = slice(start, start + _POSITIONS)
            p, h, dh, y = self._p[rows], self.features[rows], moved[rows], self._labels[rows]
            dz = dh @ self._weight.T
            if turned is not None:
                dz.addmm_(h, turned.T)
            dz.mul_(p)
            dz.addcmul_(p, dz.sum(dim=-1, keepdim=True), value=-1)  # ṗ
            slope[rows] = dz @ self._weight
            if turned is not None:
                of_weight = dz.T @ h if of_weight is None else of_weight.addmm_(dz.T, h)
                if self._exact:
                    slope[rows] += p @ turned - turned[y]
                    of_weight.addmm_(p.T, dh).index_add_(0, y, dh, alpha=-1)
        return slope, of_weight


class _Slopes(torch.autograd.Function):
    """(h, W) → the loss's slope in h, and one in W of which only derivatives are ever asked: its values are zeros.

    With it ⟨slopes, (ḣ, Ẇ)⟩ is one function of θ, so that one pass goes back through the trunk where there were two.
    """

    @staticmethod
    def forward(
        ctx: Any,
        features: torch.Tensor,  # noqa: ARG004
        weight: torch.Tensor,
        head: CrossEntropyHead,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        # features are those of `head`: given so that slopes have a graph to them
        ctx.head = head
        ctx.set_materialize_grads(False)
        return head.slope(), weight.new_zeros(()).expand_as(weight)

    @staticmethod
    def backward(ctx: Any, *moves: torch.Tensor | None) -> tuple[torch.Tensor | None, torch.Tensor | None, None]:
        moved, turned = moves
        if moved is None:
            moved = torch.zeros_like(ctx.head.features)
        return *ctx.head.move(moved, turned), None
