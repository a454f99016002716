"""What Taylor rules are made of: products and functions of jets, and how probes go on as one."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from villani.curvature.jets import Jet, Probed, Tangents, add_to, as_jet


class JetAlgebra:
    """Arithmetic of jets that knows which probes belong together.

    Args:
        classes: probe → class of its second-order term.
        joins: probe → the probe that it becomes part of at the next linear map with weights, for independent probes.
        sequences: of the batch; they lie side by side in the first dimension of every value.

    Attributes:
        second: whether second-order terms are carried.
    """

    second = True

    def __init__(self, classes: Sequence[int], joins: Mapping[int, int] | None = None, sequences: int = 1) -> None:
        self.classes = classes
        self.joins = joins or {}
        self.sequences = sequences
        self._joined: dict[int, int] = {}
        self._factors: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def probe(self, k: int) -> int:
        """What probe k is part of by now."""
        while k in self._joined:
            k = self._joined[k]
        return k

    def join(self, a: Jet, into: Sequence[int] | None = None) -> None:
        """Let the probes of a, as far as they may, go on as part of what `joins` says, or of `into`, one by one."""
        for k, other in zip(a.first, into or [self.joins.get(k, k) for k in a.first], strict=True):
            if k in self.joins:
                self._joined[k] = other
        self.gather(a)

    def gather(self, a: Jet) -> None:
        """Tangents of probes that were joined become one."""
        if not a.first.keys().isdisjoint(self._joined):
            first: Tangents = {}
            for k, t in a.first.items():
                add_to(first, self.probe(k), t)
            a.first = first

    def own(self, y: Jet, x: torch.Tensor, weight: Probed, op: Any) -> Jet:  # noqa: ARG002
        """A linear map y = op(x, W) with what its own matrix's probes, one for every sequence, add to its tangents."""
        y.first |= self.through(x, weight, y.x.shape)
        return y

    def through(self, x: torch.Tensor, weight: Probed, shape: torch.Size) -> Tangents:
        """Tangents, of this shape, of a linear map of x by its own matrix's probes, one for every sequence."""
        factor = self._factor(x)  # (B, N, R)
        size = (self.sequences, factor.shape[2], shape[-1])
        return {k: torch.bmm(factor, weight.draw(k, size)).view(shape) for k in weight.probes}

    def _factor(self, x: torch.Tensor) -> torch.Tensor:
        """C with C Cᵀ = X Xᵀ for the inputs X (N, D) of each sequence; kept while x is the input of further maps."""
        if id(x) not in self._factors:
            rows = x.reshape(self.sequences, -1, x.shape[-1])
            if rows.shape[1] < rows.shape[2]:
                gram = rows.double() @ rows.double().mT
                lift = gram.diagonal(dim1=1, dim2=2).amax(dim=1)[:, None] * 1e-10 + torch.finfo(x.dtype).tiny
                gram.diagonal(dim1=1, dim2=2).add_(lift)  # repeated inputs make it singular
                rows = torch.linalg.cholesky(gram).to(x.dtype)
            self._factors = {id(x): (x, rows)}
        return self._factors[id(x)][1]

    def squares(self, first: Tangents, square: Callable[[torch.Tensor], torch.Tensor]) -> Tangents:
        """Σ over the probes of each class of a quadratic function of their tangents."""
        sums: Tangents = {}
        for k, tangent in first.items() if self.second else ():
            add_to(sums, self.classes[k], square(tangent))
        return sums

    def elementwise(self, a: Jet, y: torch.Tensor, slope: torch.Tensor, bend: torch.Tensor | None) -> Jet:
        """φ(a): slope φ′ and bend φ″ at a; `bend` None where it is zero."""
        first = {k: slope * t for k, t in a.first.items()}
        second = {c: slope * t for c, t in a.second.items()}
        if bend is not None:
            for c, t in self.squares(a.first, torch.square).items():
                add_to(second, c, bend * t)
        return Jet(y, first, second)

    def bilinear(self, f: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], a: Any, b: Any) -> Jet:
        """f(a, b), linear in each; either may be a plain tensor or number."""
        a, b = as_jet(a), as_jet(b)
        first: Tangents = {}
        second: Tangents = {}
        for terms, sums in ((a.first, first), (a.second, second)):
            for k, t in terms.items():
                add_to(sums, k, f(t, b.x))
        for terms, sums in ((b.first, first), (b.second, second)):
            for k, t in terms.items():
                add_to(sums, k, f(a.x, t))
        for k in a.first.keys() & b.first.keys() if self.second else ():
            add_to(second, self.classes[k], 2 * f(a.first[k], b.first[k]))
        return Jet(f(a.x, b.x), first, second)
