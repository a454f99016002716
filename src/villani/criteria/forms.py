"""Degrees as linear forms: what is demanded of them, and the degrees that maps, sums and products have."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch

from villani.criteria.equations import Equations

_SMALL = 4096  # entries of a matrix that is used other than as a map, up to which each has an unknown of its own


@dataclass(frozen=True, eq=False)
class Weights:
    """A parameter of this shape, perhaps seen transposed, before it is used: its entries' degrees are not fixed yet."""

    index: int
    shape: torch.Size
    transposed: bool = False


class Forms:
    """Degrees as numbers of forms, in tensors of the values' shapes.

    Attributes:
        equations: what is demanded.
        tensors: exponents of tensors of θ, as forms that broadcast to their shapes.
        maps: of matrices W (E, D), in two parts: forms of outputs (E,) and inputs (D,).
        coarse: large tensors whose entries have fewer unknowns than there are of them.
        constants: of the graph.
    """

    def __init__(self, constants: dict[torch.fx.Node, torch.Tensor]) -> None:
        self.equations = Equations()
        self.tensors: dict[int, torch.Tensor] = {}
        self.maps: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.coarse: set[int] = set()
        self.constants = constants

    def plain(self, value: Any) -> torch.Tensor:
        """Degrees of a value; those of a parameter that is used other than as a map are its exponents."""
        if not isinstance(value, Weights):
            forms: torch.Tensor = value
            return forms
        shape = value.shape
        if value.index in self.maps:
            outputs, inputs = self.maps[value.index]
            pairs = [[self.equations.combine(o, i, Fraction(-1)) for i in inputs.tolist()] for o in outputs.tolist()]
            exponents = torch.tensor(pairs)
        elif value.index in self.tensors:
            exponents = self.tensors[value.index]
        else:
            each = shape if len(shape) < 2 or shape.numel() <= _SMALL else (1,) * (len(shape) - 1) + (shape[-1],)
            if each != shape:
                self.coarse.add(value.index)
            exponents = self.tensors[value.index] = self.unknowns(torch.Size(each))
        exponents = exponents.expand(shape)
        return exponents.mT if value.transposed else exponents

    def map(self, x: torch.Tensor, weights: Weights, outputs_first: bool, leading: Sequence[int]) -> torch.Tensor:
        """y = W x for a matrix of θ: (…, D) → (…, E)."""
        in_order = outputs_first != weights.transposed  # whether θ holds W as (E, D)
        outputs, inputs = weights.shape if in_order else weights.shape[::-1]
        x = x.expand(*leading, inputs).reshape(-1, inputs)
        self.demand_equal_along(x, 0)
        row = x[0]
        if weights.index not in self.tensors and weights.index not in self.maps:
            y = self.unknowns(torch.Size([outputs]))
            if in_order:
                self.maps[weights.index] = (y, row)
            else:
                negative = torch.tensor([self.equations.times(v, Fraction(-1)) for v in row.tolist()])
                self.maps[weights.index] = (
                    negative,
                    torch.tensor([self.equations.times(v, Fraction(-1)) for v in y.tolist()]),
                )
            return y.expand((*leading, outputs))
        if weights.index in self.maps:
            r, c = self.maps[weights.index]
            if not in_order:
                r, c = (torch.tensor([self.equations.times(v, Fraction(-1)) for v in part.tolist()]) for part in (c, r))
            # entries are r_i − c_j, so that x_j − c_j must not depend on j
            rest = self.pairs(row, c, Fraction(-1))
            self.demand_equal_along(rest, 0)
            return self.pairs(r, rest[:1].expand(outputs)).expand(*leading, outputs)
        matrix = self.plain(Weights(weights.index, weights.shape))  # (E, D) or (D, E)
        matrix = matrix if in_order else matrix.mT
        if matrix.stride(0) == 0:  # as an embedding's: the same for all rows
            rest = self.pairs(row, matrix[0])
            self.demand_equal_along(rest, 0)
            return rest[:1].expand(*leading, outputs)
        total = self.pairs(matrix, row.expand(outputs, inputs))
        self.demand_equal_along(total, 1)
        return total[:, 0].expand(*leading, outputs)

    def unknowns(self, shape: torch.Size) -> torch.Tensor:
        """Forms of new unknowns."""
        return torch.tensor([self.equations.unknown() for _ in range(shape.numel())], dtype=torch.int64).view(shape)

    def demand_zero(self, x: torch.Tensor) -> None:
        """All these forms are zero."""
        for form in x.unique().tolist():
            self.equations.demand_equal(form, 0)

    def demand_equal_along(self, x: torch.Tensor, dim: int) -> None:
        """Forms do not depend on the place along this dimension."""
        if x.shape[dim] > 1 and x.stride(dim):
            self.merge(x.narrow(dim, 0, 1).expand_as(x), x)

    def merge(self, a: torch.Tensor, b: torch.Tensor) -> None:
        """a = b, entry by entry."""
        apart = a != b
        for i, j in _unique_pairs(a[apart], b[apart])[0]:
            self.equations.demand_equal(i, j)

    def pairs(self, a: torch.Tensor, b: torch.Tensor, scale: Fraction = Fraction(1)) -> torch.Tensor:
        """a + scale·b, entry by entry."""
        a, b = torch.broadcast_tensors(a, b)
        pairs, back = _unique_pairs(a, b)
        sums = torch.tensor([self.equations.combine(i, j, scale) for i, j in pairs], dtype=torch.int64)
        return sums[back].view(a.shape)

    def scaled(self, a: torch.Tensor, scale: Fraction) -> torch.Tensor:
        """scale·a."""
        return self.pairs(torch.zeros_like(a), a, scale)

    def operand(self, value: Any) -> torch.Tensor:
        """Degrees of an argument of an elementwise operation; of a constant 0."""
        return (
            torch.zeros((), dtype=torch.int64) if not isinstance(value, torch.Tensor | Weights) else self.plain(value)
        )


def _unique_pairs(a: torch.Tensor, b: torch.Tensor) -> tuple[list[tuple[int, int]], torch.Tensor]:
    """The pairs (a, b) that occur, and which of them stands at each entry."""
    base = int(b.max()) + 1 if b.numel() else 1
    keys, back = (a * base + b).reshape(-1).unique(return_inverse=True)
    return [divmod(key, base) for key in keys.tolist()], back


def zeros(shape: Sequence[int]) -> torch.Tensor:
    """Degree 0 everywhere."""
    return torch.zeros((), dtype=torch.int64).expand(torch.Size(shape))


def shape_of(node: Any) -> torch.Size:
    """Of the value of a node."""
    shape: torch.Size = node.meta["val"].shape
    return shape
