"""Products with the curvature of a language model whose head is a linear map, without a graph over the vocabulary.

Cross-entropy of logits z = Wh has derivatives in closed form: with p = softmax z and a tangent (ḣ, Ẇ), ż = Wḣ + Ẇh,
ṗ = p⊙ż − p⟨p, ż⟩, and the slopes (p − y)ᵀW and (p − y)hᵀ move by ṗᵀW + (p − y)ᵀẆ and ṗhᵀ + (p − y)ḣᵀ. Only the trunk
h(θ) needs automatic differentiation: with g = (p − y)ᵀW held fixed, one double backward pass over ⟨Jᵀu, v⟩ at u = g
gives the trunk's own curvature (the slope in θ) and ḣ = Jv (the slope in u). Of all that is as large as tokens ×
vocabulary only p is kept, where autograd keeps more than ten such arrays and passes over each of them.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from villani.curvature.products import Tensors
from villani.landscape.objective import IGNORED, Batch, Objective

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
    batch = whole.rows(0, 1).to(objective.device)
    with objective.evaluating(), torch.no_grad():
        output = model(**_arguments(batch))
        features = getattr(trunk(**_arguments(batch)), "last_hidden_state", None)
        if features is None or not torch.equal(F.linear(features, head.weight), output.logits):
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
        self._gauss_newton = gauss_newton
        self._labels = targets[predicted]  # (n,)
        self._live = trunk(**_arguments(batch)).last_hidden_state[:, :-1][predicted]  # (n, D), with a graph
        self._features = self._live.detach()
        self._weight = weight.detach()
        self._place = next((i for i, t in enumerate(tensors) if t is weight), None)
        logits = F.linear(self._features, self._weight)
        log = torch.logsumexp(logits, dim=-1, keepdim=True)
        self.loss = float((log[:, 0] - logits.gather(1, self._labels[:, None])[:, 0]).double().sum())
        self.tokens = float(len(self._labels))
        self._p = logits.sub_(log).exp_()  # (n, V)
        slope = self._p @ self._weight - self._weight[self._labels]  # g
        self._u = slope.requires_grad_()
        self._pulled = torch.autograd.grad(self._live, tensors, self._u, create_graph=True, allow_unused=True)

    def __call__(self, vector: Tensors, again: bool) -> Iterator[Sequence[torch.Tensor | None]]:
        """Addends of the product, each tensor by tensor, None for 0; `again` keeps what another product needs."""
        live = [(g, v) for g, v in zip(self._pulled, vector, strict=True) if g is not None and g.requires_grad]
        moved: torch.Tensor | None = None  # ḣ
        if live:
            inputs = [self._u] if self._gauss_newton else [self._u, *self._tensors]
            found: Sequence[torch.Tensor | None] = torch.autograd.grad(
                [g for g, _ in live], inputs, [v for _, v in live], retain_graph=True, allow_unused=True
            )
            moved = found[0]
            if not self._gauss_newton:
                yield found[1:]
            del found  # of θ's size
        if moved is None:
            moved = torch.zeros_like(self._features)
        turned = None if self._place is None else vector[self._place]  # Ẇ
        slope, of_weight = self._through_head(moved, turned)
        if self._place is not None:
            yield [of_weight if i == self._place else None for i in range(len(self._tensors))]
        del of_weight
        yield torch.autograd.grad(self._live, self._tensors, slope, retain_graph=again, allow_unused=True)

    def _through_head(
        self, moved: torch.Tensor, turned: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """How the slopes in h (n, D) and in W (V, D) move when h moves by ḣ and W by Ẇ."""
        slope = torch.empty_like(moved)
        of_weight = None if turned is None else torch.zeros_like(self._weight)
        exact = not self._gauss_newton  # with the terms of (p − y)
        for start in range(0, len(moved), _POSITIONS):
            rows = slice(start, start + _POSITIONS)
            p, h, dh, y = self._p[rows], self._features[rows], moved[rows], self._labels[rows]
            dz = dh @ self._weight.T
            if turned is not None:
                dz.addmm_(h, turned.T)
            dz.sub_((p * dz).sum(dim=-1, keepdim=True)).mul_(p)  # ṗ
            slope[rows] = dz @ self._weight
            if of_weight is not None and turned is not None:
                of_weight.addmm_(dz.T, h)
                if exact:
                    slope[rows] += p @ turned - turned[y]
                    of_weight.addmm_(p.T, dh).index_add_(0, y, dh, alpha=-1)
        return slope, of_weight


def _arguments(batch: Batch) -> dict[str, Any]:
    found: dict[str, Any] = {"input_ids": batch.ids, "use_cache": False}
    return found if batch.attention is None else {**found, "attention_mask": batch.attention}
