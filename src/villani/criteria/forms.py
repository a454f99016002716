"""Degrees as linear forms: what is demanded of them, and the degrees that maps, sums and products have."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch

from villani.criteria.equations import Equations
from villani.objective.families import CAST, COPIED, WHERE
from villani.objective.interpret import execute

aten = torch.ops.aten
_KNOWN = 1 << 20  # entries of a constant that is worked out
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
        maps: of matrices W (…, E, D), in two parts: forms of outputs (…, E) and inputs (…, D).
        coarse: large tensors whose entries have fewer unknowns than there are of them.
        constants: of the graph.
    """

    def __init__(self, constants: dict[torch.fx.Node, torch.Tensor]) -> None:
        self.equations = Equations()
        self.tensors: dict[int, torch.Tensor] = {}
        self.maps: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.coarse: set[int] = set()
        self.constants = constants
        self._void: dict[torch.fx.Node, bool] = {}
        self._known: dict[torch.fx.Node, Any] = dict(constants)
        self._zero: dict[torch.fx.Node, torch.Tensor | None] = {}

    def is_void(self, constant: torch.fx.Node) -> bool:
        """Whether a constant is 0 or infinite everywhere."""
        if constant not in self._void:
            value = self.constants[constant]
            self._void[constant] = value.is_floating_point() and bool(((value == 0) | value.isinf()).all())
        return self._void[constant]

    def known(self, node: torch.fx.Node) -> Any:
        """The value of a node that depends on constants alone, not on θ nor on what the graph is given; else None."""
        if node not in self._known:
            self._known[node] = None
            given = [self.known(n) for n in node.all_input_nodes]
            shape = getattr(node.meta.get("val"), "shape", None)
            small = shape is not None and all(isinstance(n, int) for n in shape) and shape.numel() <= _KNOWN
            if node.op == "call_function" and small and all(value is not None for value in given):
                self._known[node] = execute(node, self._known.__getitem__, None)
        return self._known[node]

    def zero_entries(self, node: torch.fx.Node) -> torch.Tensor | None:
        """Where a value is 0 or infinite whatever θ is, as a mask that broadcasts to it, as far as products tell."""
        if node not in self._zero:
            mask, value = None, self.known(node)
            if isinstance(value, torch.Tensor) and value.is_floating_point():
                mask = ((value == 0) | value.isinf()).cpu()
            elif node.target in (aten.mul.Tensor, aten.div.Tensor):
                factors = [a for a in node.args[: 1 + (node.target is aten.mul.Tensor)] if isinstance(a, torch.fx.Node)]
                parts = [part for part in map(self.zero_entries, factors) if part is not None]
                mask = parts[0] | parts[-1] if parts else None
            elif node.target in WHERE and self.known(node.args[0]) is not None:  # type: ignore[arg-type]
                one, other = map(self._zeros_of, node.args[1:3])
                mask = torch.where(self.known(node.args[0]).cpu(), one, other)  # type: ignore[arg-type]
            elif node.target in (*COPIED, CAST, aten.neg.default) and isinstance(node.args[0], torch.fx.Node):
                mask = self.zero_entries(node.args[0])
            self._zero[node] = mask if mask is not None and bool(mask.any()) else None
        return self._zero[node]

    def _zeros_of(self, argument: Any) -> torch.Tensor:
        """`zero_entries` of a node or a number, as a mask."""
        if not isinstance(argument, torch.fx.Node):
            return torch.tensor(argument == 0 or math.isinf(argument))
        mask = self.zero_entries(argument)
        return torch.tensor(False) if mask is None else mask

    def plain(self, value: Any) -> torch.Tensor:
        """Degrees of a value; those of a parameter that is used other than as a map are its exponents."""
        if not isinstance(value, Weights):
            forms: torch.Tensor = value
            return forms
        shape = value.shape
        if value.index in self.maps:
            outputs, inputs = self.maps[value.index]
            exponents = self.pairs(outputs.unsqueeze(-1), inputs.unsqueeze(-2), Fraction(-1))
        elif value.index in self.tensors:
            exponents = self.tensors[value.index]
        else:
            each = shape if len(shape) < 2 or shape.numel() <= _SMALL else (1,) * (len(shape) - 1) + (shape[-1],)
            if each != shape:
                self.coarse.add(value.index)
            exponents = self.tensors[value.index] = self.unknowns(torch.Size(each))
        exponents = exponents.expand(shape)
        return exponents.mT if value.transposed else exponents

    def map(self, x: torch.Tensor, weights: Weights, outputs_first: bool, shape: Sequence[int]) -> torch.Tensor:
        """y = W x for matrices of θ, (…, D) → (…, E) of this shape; batches of matrices meet batches of x as broadcast.

        Args:
            x: forms that broadcast to (*shape[:-1], D).
            weights: (*batch, E, D) or (*batch, D, E).
            outputs_first: whether x meets them, transposed or not, as (E, D).
            shape: of y.
        """
        in_order = outputs_first != weights.transposed  # whether θ holds W as (E, D)
        batch, (outputs, inputs) = weights.shape[:-2], weights.shape[-2:] if in_order else weights.shape[:-3:-1]
        row = self._row(x.expand(*shape[:-1], inputs), batch)  # (*batch, D)

        def broadcast(y: torch.Tensor) -> torch.Tensor:
            return (y.unsqueeze(-2) if len(shape) > 1 else y).expand(shape)

        if weights.index not in self.tensors and weights.index not in self.maps:
            y = self.unknowns(torch.Size([*batch, outputs]))
            self.maps[weights.index] = (y, row) if in_order else (self.negative(row), self.negative(y))
            return broadcast(y)
        if weights.index in self.maps:
            r, c = self.maps[weights.index]
            if not in_order:
                r, c = self.negative(c), self.negative(r)
            # entries are r_i − c_j, so that x_j − c_j must not depend on j
            rest = self.pairs(row, c, Fraction(-1))
            self.demand_equal_along(rest, -1)
            return broadcast(self.pairs(r, rest[..., :1]))
        matrix = self.plain(Weights(weights.index, weights.shape))  # (*batch, E, D) or (*batch, D, E)
        matrix = matrix if in_order else matrix.mT
        if matrix.stride(-2) == 0:  # as an embedding's: the same for all rows
            rest = self.pairs(row, matrix[..., 0, :])
            self.demand_equal_along(rest, -1)
            return broadcast(rest[..., :1].expand(*batch, outputs))
        total = self.pairs(matrix, row.unsqueeze(-2))
        self.demand_equal_along(total, -1)
        return broadcast(total[..., 0])

    def _row(self, x: torch.Tensor, batch: Sequence[int]) -> torch.Tensor:
        """(…, N, D) → (*batch, D): what one matrix meets has to be alike."""
        for dim in range(x.dim() - 1):
            own = dim - (x.dim() - 2 - len(batch))  # its place among the matrices' dimensions
            if not (0 <= own < len(batch) and batch[own] == x.shape[dim]):
                self.demand_equal_along(x, dim)
                x = x.narrow(dim, 0, 1)
        return x.reshape(*batch, x.shape[-1])

    def negative(self, x: torch.Tensor) -> torch.Tensor:
        """−x."""
        return self.scaled(x, Fraction(-1))

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
        a, b = _distinct(a, b)
        apart = a != b
        for i, j in _unique_pairs(a[apart], b[apart])[0]:
            self.equations.demand_equal(i, j)

    def pairs(self, a: torch.Tensor, b: torch.Tensor, scale: Fraction = Fraction(1)) -> torch.Tensor:
        """a + scale·b, entry by entry."""
        a, b = torch.broadcast_tensors(a, b)
        shape, (a, b) = a.shape, _distinct(a, b)
        pairs, back = _unique_pairs(a, b)
        sums = torch.tensor([self.equations.combine(i, j, scale) for i, j in pairs], dtype=torch.int64)
        return sums[back].view(a.shape).expand(shape)

    def scaled(self, a: torch.Tensor, scale: Fraction) -> torch.Tensor:
        """scale·a."""
        return self.pairs(torch.zeros_like(a), a, scale)

    def operand(self, value: Any) -> torch.Tensor:
        """Degrees of an argument of an elementwise operation; of a constant 0."""
        return (
            torch.zeros((), dtype=torch.int64) if not isinstance(value, torch.Tensor | Weights) else self.plain(value)
        )


def _distinct(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of two tensors of one shape what is left when dimensions along which both repeat themselves have one entry."""
    for dim in range(a.dim()):
        if a.shape[dim] > 1 and not a.stride(dim) and not b.stride(dim):
            a, b = a.narrow(dim, 0, 1), b.narrow(dim, 0, 1)
    return a, b


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
