"""The head and the loss of a model whose weights are streamed, differentiated by hand a few positions at a time.

With features h (n, D), logits z = W h + b and p = softmax(z), the adjoint of z is p − y; along ḣ, V and c of W and b it
turns by p ⊙ (ż − ⟨p, ż⟩), ż = W ḣ + V h + c. No array is tokens × vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from villani.objective.graph import Head

Vector = Callable[[int], torch.Tensor | None]
"""Index of a tensor in θ → that part of a vector, made when it is asked for; None where it is zero."""

_POSITIONS = 128  # whose logits are held at a time: 26 MB at V = 50,257


@dataclass(frozen=True, eq=False)
class Piece:
    """What a pass back leaves of one tensor of θ.

    Attributes:
        index: of the tensor.
        value: its values.
        gradient: of the loss sum.
        products: (v, ∇²·v) of this tensor for every vector.
    """

    index: int
    value: torch.Tensor
    gradient: torch.Tensor
    products: list[tuple[torch.Tensor, torch.Tensor]]

    def plus(self, other: "Piece") -> "Piece":
        """With another part of the same tensor's gradient and products."""
        products = [(v, a + b) for (v, a), (_, b) in zip(self.products, other.products, strict=True)]
        return Piece(self.index, self.value, self.gradient + other.gradient, products)


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
        self, labels: torch.Tensor, vectors: Sequence[Vector], moved: Sequence[torch.Tensor], residual: bool
    ) -> tuple[torch.Tensor, list[torch.Tensor], list[Piece]]:
        """Adjoint (n, D) of the features, how it turns along each vector, and what is left of the head's own tensors.

        Args:
            labels: (n,).
            vectors: v.
            moved: ḣ (n, D) along each.
            residual: p − y is held fixed.
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
        turns = [{i: torch.zeros_like(t) for i, t in own.items()} for _ in vectors]
        adjoint = torch.zeros_like(self.features)
        turned = [torch.zeros_like(self.features) for _ in vectors]

        def add(to: dict[int, torch.Tensor], z: torch.Tensor, h: torch.Tensor) -> None:
            if of_weight is not None:
                to[of_weight].addmm_(z.T, h)
            if of_bias is not None:
                to[of_bias] += z.sum(dim=0)

        for part in self._parts():
            h = self.features[part]
            p = torch.softmax(self._logits(part, weight, bias), dim=-1)
            z = p.clone()
            z[torch.arange(len(z), device=z.device), labels[part]] -= 1.0
            z, p = z.to(h.dtype), p.to(h.dtype)
            adjoint[part] = z if weight is None else z @ weight
            add(sums, z, h)
            for k, of in enumerate(parts):
                dh = moved[k][part]
                v, c = (None if i is None else of[i] for i in (of_weight, of_bias))
                if not residual:
                    dz = dh if weight is None else dh @ weight.T
                    dz = dz if v is None else dz + h @ v.T
                    dz = dz if c is None else dz + c
                    dz = p * (dz - (p * dz).sum(dim=-1, keepdim=True))
                    turned[k][part] += dz if weight is None else dz @ weight
                    add(turns[k], dz, h)
                if v is not None:
                    turned[k][part] += z @ v
                if of_weight is not None:
                    turns[k][of_weight].addmm_(z.T, dh)
        pieces = [
            Piece(i, t, sums[i], [(zero_for(of[i], t), turn[i]) for of, turn in zip(parts, turns, strict=True)])
            for i, t in own.items()
        ]
        return adjoint, turned, pieces


def zero_for(part: torch.Tensor | None, like: torch.Tensor) -> torch.Tensor:
    """Zeros where a part of a vector is None, in no memory."""
    return torch.zeros((), dtype=like.dtype, device=like.device).expand(like.shape) if part is None else part
