"""The head and the loss of a model whose weights are streamed, differentiated by hand a few positions at a time.

With features h (n, D), logits z = W h + b and p = softmax(z), the adjoint of z is p − y; along ḣ, V and c of W and b it
turns by p ⊙ (ż − ⟨p, ż⟩), ż = W ḣ + V h + c. No array is tokens × vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from villani.objective.graph import Head
from villani.objective.pieces import Piece, Vector, Wanted

_POSITIONS = 64  # whose logits are held at a time: 13 MB at V = 50,257


@dataclass(frozen=True, eq=False)
class Predictions:
    """The features of the predicted positions.

    Attributes:
        head: of the graph; where it has no linear map, features are the logits.
        values: of θ.
        features: h (n, D).
    """

    head: Head
    values: Sequence[torch.Tensor]
    features: torch.Tensor

    def _read(self) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """W (V, D) and b (V,), read now."""
        weight, bias = (self.values[t] if isinstance(t, int) else t for t in (self.head.weight, self.head.bias))
        return weight, bias

    def _parts(self) -> Iterator[slice]:
        for start in range(0, len(self.features), _POSITIONS):
            yield slice(start, start + _POSITIONS)

    def _logits(self, part: slice, weight: torch.Tensor | None, bias: torch.Tensor | None) -> torch.Tensor:
        z = self.features[part] if weight is None else F.linear(self.features[part], weight, bias)
        return z.to(torch.promote_types(z.dtype, torch.float32))

    @torch.no_grad()
    def loss(self, labels: torch.Tensor) -> float:
        """The sum of cross-entropies, in nats, for labels (n,)."""
        weight, bias = self._read()
        terms = (F.cross_entropy(self._logits(p, weight, bias), labels[p], reduction="sum") for p in self._parts())
        return sum(float(term.double()) for term in terms)

    def probabilities(self) -> Iterator[tuple[slice, torch.Tensor]]:
        """Some positions at a time: which, and softmax of their logits, (b, V)."""
        with torch.no_grad():
            weight, bias = self._read()
            for part in self._parts():
                yield part, torch.softmax(self._logits(part, weight, bias), dim=-1)

    @torch.no_grad()
    def back(
        self, labels: torch.Tensor, vectors: Sequence[Vector], moved: Sequence[torch.Tensor], residual: bool,
        wanted: Wanted,
    ) -> tuple[torch.Tensor, list[torch.Tensor], list[Piece]]:  # fmt: skip
        """Adjoint (n, D) of the features, how it turns along each vector, and what is left of the head's own tensors.

        Args:
            labels: (n,).
            vectors: v.
            moved: ḣ (n, D) along each.
            residual: p − y is held fixed.
            wanted: of the products.
        """
        weight, bias = self._read()
        own = {
            i: t
            for i, t in ((self.head.weight, weight), (self.head.bias, bias))
            if isinstance(i, int) and t is not None
        }
        of_weight = self.head.weight if isinstance(self.head.weight, int) else None
        of_bias = self.head.bias if isinstance(self.head.bias, int) else None
        parts = [{i: vector(i) for i in own} for vector in vectors]
        sums = {i: torch.zeros_like(t) for i, t in own.items()}
        whole = wanted == "products"
        turns = [{i: torch.zeros_like(t) for i, t in of.items() if t is not None} if whole else {} for of in parts]
        curvatures = {i: np.zeros(len(vectors)) for i in own}
        adjoint = torch.zeros_like(self.features)
        turned = [torch.zeros_like(self.features) for _ in vectors]

        def add(to: dict[int, torch.Tensor], z: torch.Tensor, h: torch.Tensor) -> None:
            if of_weight in to:
                to[of_weight].addmm_(z.T, h)
            if of_bias in to:
                to[of_bias] += z.sum(dim=0)

        for part in self._parts():
            h = self.features[part]
            p = torch.softmax(self._logits(part, weight, bias), dim=-1)
            z = p if residual or not parts else p.clone()
            z[torch.arange(len(z), device=z.device), labels[part]] -= 1.0
            z, p = z.to(h.dtype), p.to(h.dtype)
            adjoint[part] = z if weight is None else z @ weight
            add(sums, z, h)
            for k, of in enumerate(parts):
                dh = moved[k][part]
                v, c = (None if i is None else of[i] for i in (of_weight, of_bias))
                if not residual:
                    along = None if v is None else h @ v.T
                    dz = dh if weight is None else dh @ weight.T
                    dz = dz if along is None else dz + along
                    dz = dz if c is None else dz + c
                    dz = p * (dz - (p * dz).sum(dim=-1, keepdim=True))
                    turned[k][part] += dz if weight is None else dz @ weight
                    add(turns[k], dz, h)
                    if along is not None and of_weight is not None:
                        curvatures[of_weight][k] += _sum(along.mul_(dz))
                    if c is not None and of_bias is not None:
                        curvatures[of_bias][k] += _sum(dz.sum(dim=0) * c)
                if v is not None and of_weight is not None:
                    pulled = z @ v  # (b, D)
                    turned[k][part] += pulled
                    curvatures[of_weight][k] += _sum(pulled * dh)  # ⟨v, zᵀ ḣ⟩
                if of_weight in turns[k]:
                    turns[k][of_weight].addmm_(z.T, dh)
        pieces = []
        for i, t in own.items():
            products = {k: (v, turns[k][i]) for k, of in enumerate(parts) if whole and (v := of[i]) is not None}
            pieces.append(Piece(i, t, sums[i], products, curvatures[i]))
        return adjoint, turned, pieces


def _sum(x: torch.Tensor) -> float:
    return float(x.sum(dtype=torch.float64))
