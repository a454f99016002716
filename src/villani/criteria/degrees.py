"""Degrees of homogeneity of all values of a traced loss, and what makes the loss invariant under a rescaling of θ.

Scale the entries of θ as θ_i·R^{e_i}. A value of the graph that then scales as R^D, for every R > 0, has degree D. Each
operation says how degrees pass it and what it demands: a sum wants equal degrees; a softmax, a GELU, a normalisation
with ε > 0 want degree 0 (so does any operation without a rule, whose output then has degree 0: symmetries may be
missed, never invented); products add degrees. Degrees are linear forms in unknowns, one for each feature of each
map, all demands are linear equations, and what remains free is the group of symmetries.

A matrix W that maps x to y has entries of degree D(y_i) − D(x_j) whatever these are, so that matrices need no unknowns
of their own.
"""

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch

from villani.criteria.equations import Equations
from villani.criteria.patterns import SHAPED
from villani.criteria.skipped import SkippedOperations
from villani.objective.graph import LossGraph, aten

_UNREAD = "gives whole numbers or truth values, or has options by name, for which there is no rule"
_SMALL = 4096  # entries of a matrix that is used other than as a map, up to which each has an unknown of its own


@dataclass(frozen=True, eq=False)
class _Weights:
    """A parameter of this shape, perhaps seen transposed, before it is used: its entries' degrees are not fixed yet."""

    index: int
    shape: torch.Size
    transposed: bool = False


class Degrees:
    """Degrees of all values of one graph, as numbers of forms in tensors of the values' shapes.

    After construction `tensors` holds (index, shape, numbers of forms that broadcast to the shape) of every tensor of θ
    that the graph uses, and `skipped` the operations that were not understood.

    Args:
        graph: of the loss.
        progress: called with (operations read, all).
    """

    def __init__(self, graph: LossGraph, progress: Callable[[int, int], None] | None = None) -> None:
        self.equations = Equations()
        self.constants = graph.constants
        self.tensors: dict[int, torch.Tensor] = {}  # exponents, as forms; a matrix map's in two parts
        self.maps: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # W (E, D): forms of outputs (E,) and inputs (D,)
        values: dict[torch.fx.Node, Any] = {}
        self.skipped = SkippedOperations(graph.parameters, lambda node: self._moves(values[node]))
        for count, node in enumerate(graph.nodes, 1):
            if progress is not None:
                progress(count, len(graph.nodes))
            if node in graph.parameters:
                index = graph.parameters[node]
                values[node] = _Weights(index, _shape_of(node))
            elif node.op == "call_function":
                moved = any(values.get(a) is not None for a in node.all_input_nodes)
                values[node] = self._run(node, values) if moved else None  # None: does not depend on θ
            else:
                values[node] = None
        self.demand_zero(self.plain(values[graph.loss]))

    # Operations

    def _run(self, node: torch.fx.Node, values: dict[torch.fx.Node, Any]) -> Any:
        real = all(v.is_floating_point() for v in _leaves(node.meta.get("val")) if isinstance(v, torch.Tensor))
        known = real and not node.kwargs.keys() & _positional(node.target)  # a cast to whole numbers does not scale
        rule = _RULES.get(node.target) if known else None
        arguments: Any = torch.fx.map_arg(node.args, values.__getitem__)
        inputs = [a for a in node.all_input_nodes if values[a] is not None]
        if rule is not None or (node.target in _SHAPES and known):
            self.skipped.understood(node, inputs)
            return self._reshape(node, arguments) if rule is None else rule(self, node, *arguments)
        self.skipped.skip(node, inputs, "has no rule" if known else _UNREAD)
        for leaf in _leaves(arguments) + _leaves(torch.fx.map_arg(node.kwargs, values.__getitem__)):
            if isinstance(leaf, torch.Tensor | _Weights):
                self.demand_zero(self.plain(leaf))
        value: Any = node.meta.get("val")
        if isinstance(value, torch.Tensor):
            return _zeros(value.shape)
        return tuple(_zeros(part.shape) if isinstance(part, torch.Tensor) else None for part in value)

    def _moves(self, value: Any) -> bool:
        """Whether some entry of a value has a degree other than 0 so far, or may get one."""
        forms: list[int] = []
        for leaf in _leaves(value):
            if isinstance(leaf, _Weights):
                if leaf.index not in self.tensors and leaf.index not in self.maps:
                    return True
                leaf = self.plain(leaf)
            if leaf is not None:
                forms += leaf.unique().tolist()
        return any(self.equations.resolve(form) for form in forms)

    def _reshape(self, node: torch.fx.Node, arguments: Any) -> Any:
        """Operations that move values about without computing: they move degrees in the same way."""
        first, *rest = arguments
        if isinstance(first, _Weights):
            if node.target in _SAME:
                return first
            whole = node.target in {aten.t.default, aten.numpy_T.default} or (
                node.target in {aten.transpose.int, aten.permute.default}
                and (node.meta["val"].shape == first.shape[::-1])
            )
            if len(first.shape) == 2 and whole:
                return _Weights(first.index, first.shape, not first.transposed)
            first = self.plain(first)
        options: Any = {k: v for k, v in node.kwargs.items() if k not in ("dtype", "memory_format", "device")}
        if node.target in _SAME:
            return first
        if isinstance(first, list | tuple):  # cat, stack
            shapes = [n.meta["val"].shape for n in node.args[0]]  # type: ignore[union-attr]
            first = [_zeros(s) if f is None else self.plain(f) for f, s in zip(first, shapes, strict=True)]
        if isinstance(first, torch.Tensor):
            first = first.contiguous()  # a view of an expanded tensor may not exist
        return node.target(first, *rest, **options)  # type: ignore[operator]

    def plain(self, value: Any) -> torch.Tensor:
        """Degrees of a value; those of a parameter that is used other than as a map are its exponents."""
        if not isinstance(value, _Weights):
            found: torch.Tensor = value
            return found
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
                self.skipped.coarse(value.index)
            exponents = self.tensors[value.index] = self.unknowns(torch.Size(each))
        exponents = exponents.expand(shape)
        return exponents.mT if value.transposed else exponents

    def map(self, x: torch.Tensor, weights: _Weights, outputs_first: bool, leading: Sequence[int]) -> torch.Tensor:
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
        matrix = self.plain(_Weights(weights.index, weights.shape))  # (E, D) or (D, E)
        matrix = matrix if in_order else matrix.mT
        if matrix.stride(0) == 0:  # as an embedding's: the same for all rows
            rest = self.pairs(row, matrix[0])
            self.demand_equal_along(rest, 0)
            return rest[:1].expand(*leading, outputs)
        total = self.pairs(matrix, row.expand(outputs, inputs))
        self.demand_equal_along(total, 1)
        return total[:, 0].expand(*leading, outputs)

    # On tensors of forms

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
            torch.zeros((), dtype=torch.int64) if not isinstance(value, torch.Tensor | _Weights) else self.plain(value)
        )


def _unique_pairs(a: torch.Tensor, b: torch.Tensor) -> tuple[list[tuple[int, int]], torch.Tensor]:
    """The pairs (a, b) that occur, and which of them stands at each entry."""
    base = int(b.max()) + 1 if b.numel() else 1
    keys, back = (a * base + b).reshape(-1).unique(return_inverse=True)
    return [divmod(key, base) for key in keys.tolist()], back


def _zeros(shape: Sequence[int]) -> torch.Tensor:
    return torch.zeros((), dtype=torch.int64).expand(torch.Size(shape))


def _positional(target: Any) -> set[str]:
    """Names of the arguments that rules expect by position."""
    schema = getattr(target, "_schema", None)
    return set() if schema is None else {a.name for a in schema.arguments if not a.kwarg_only}


def _leaves(arguments: Any) -> list[Any]:
    if isinstance(arguments, tuple | list):
        return [leaf for argument in arguments for leaf in _leaves(argument)]
    if isinstance(arguments, dict):
        return _leaves(list(arguments.values()))
    return [arguments]


# Rules: rule(degrees, node, *degrees of the arguments), None for what does not depend on θ


def _sum_of(d: Degrees, node: torch.fx.Node, a: Any, b: Any, *_: Any) -> torch.Tensor:
    shape = _shape_of(node)
    left, right = (d.operand(v).expand(shape) for v in (a, b))
    if not (_is_zero(node.args[0]) or _is_zero(node.args[1])):
        d.merge(left, right)
    return right if _is_zero(node.args[0]) else left


def _is_zero(argument: Any) -> bool:
    return isinstance(argument, int | float) and argument == 0


def _product(d: Degrees, node: torch.fx.Node, a: Any, b: Any) -> torch.Tensor:
    return d.pairs(d.operand(a), d.operand(b)).expand(_shape_of(node))


def _quotient(d: Degrees, node: torch.fx.Node, a: Any, b: Any) -> torch.Tensor:
    return d.pairs(d.operand(a), d.operand(b), Fraction(-1)).expand(_shape_of(node))


def _power(d: Degrees, node: torch.fx.Node, a: Any, n: Any) -> torch.Tensor:
    """The exponent is read exactly, as the float that it is: 0.1 three times is not 0.3."""
    if not isinstance(n, int | float) or not math.isfinite(n):
        d.demand_zero(d.plain(a))
        return _zeros(_shape_of(node))
    return d.scaled(d.plain(a), Fraction(n))


def _of_power(n: Fraction) -> Callable[..., torch.Tensor]:
    return lambda d, _, a, *__: d.scaled(d.plain(a), n)


def _where(d: Degrees, node: torch.fx.Node, _: Any, a: Any, b: Any) -> torch.Tensor:
    """Which of the two is taken depends on data; so both must scale alike (an infinite mask scales as it likes)."""
    return _sum_of_two(d, node, a, b)


def _sum_of_two(d: Degrees, node: torch.fx.Node, a: Any, b: Any) -> torch.Tensor:
    shape = _shape_of(node)
    left, right = (d.operand(v).expand(shape) for v in (a, b))
    d.merge(left, right)
    return left


def _masked_fill(d: Degrees, node: torch.fx.Node, a: Any, *_: Any) -> torch.Tensor:
    return _sum_of_two(d, node, a, None)


def _matmul(d: Degrees, node: torch.fx.Node, a: Any, b: Any) -> torch.Tensor:
    shape = _shape_of(node)
    if isinstance(b, _Weights) and len(b.shape) == 2:
        inner = _shape_of(node.args[0])
        x = _zeros(inner) if a is None else d.plain(a)
        return d.map(x, b, outputs_first=False, leading=inner[:-1])
    left = _zeros(_shape_of(node.args[0])) if a is None else d.plain(a)
    right = _zeros(_shape_of(node.args[1])) if b is None else d.plain(b)
    left = left[None, :] if left.dim() == 1 else left
    right = right[:, None] if right.dim() == 1 else right
    total = d.pairs(left[..., :, :, None], right[..., None, :, :])  # (…, N, K, M)
    d.demand_equal_along(total, -2)
    return total[..., 0, :].reshape(shape)


def _shape_of(node: Any) -> torch.Size:
    shape: torch.Size = node.meta["val"].shape
    return shape


def _linear(d: Degrees, node: torch.fx.Node, x: Any, weight: Any, bias: Any = None) -> torch.Tensor:
    shape = _shape_of(node)
    inner = _shape_of(node.args[0])
    x = _zeros(inner) if x is None else d.plain(x)
    if isinstance(weight, _Weights):
        y = d.map(x, weight, outputs_first=True, leading=shape[:-1])
    elif weight is None:
        d.demand_equal_along(x, -1)
        y = x[..., :1].expand(shape)
    else:
        total = d.pairs(x[..., None, :], weight)
        d.demand_equal_along(total, -1)
        y = total[..., 0]
    if len(node.args) > 2 and node.args[2] is not None:
        d.merge(y, d.operand(bias).expand(shape))
    return y


def _addmm(d: Degrees, node: torch.fx.Node, bias: Any, x: Any, weight: Any) -> torch.Tensor:
    shape = _shape_of(node)
    inner = _shape_of(node.args[1])
    x = _zeros(inner) if x is None else d.plain(x)
    if isinstance(weight, _Weights):
        y = d.map(x, weight, outputs_first=False, leading=shape[:-1])
    else:
        right = _zeros(_shape_of(node.args[2])) if weight is None else weight
        total = d.pairs(x[:, :, None], right[None])
        d.demand_equal_along(total, 1)
        y = total[:, 0]
    d.merge(y, d.operand(bias).expand(shape))
    return y


def _reduce(d: Degrees, node: torch.fx.Node, a: Any, dims: Any = None, *_: Any) -> torch.Tensor:
    forms = d.plain(a)
    axes = range(forms.dim()) if dims is None or dims == [] else [dims] if isinstance(dims, int) else dims
    for dim in axes:
        d.demand_equal_along(forms, dim)
    for dim in axes:
        forms = forms.narrow(dim, 0, 1)
    return forms.reshape(_shape_of(node))


def _layer_norm(
    d: Degrees,
    node: torch.fx.Node,
    a: Any,
    shape: Any,
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
    *_: Any,
) -> torch.Tensor:
    result = _shape_of(node)
    if a is not None:
        a = d.plain(a)
        if eps == 0:
            for dim in range(-len(shape), 0):
                d.demand_equal_along(a, dim)
        else:
            d.demand_zero(a)
    y = _zeros(result) if weight is None else d.plain(weight).expand(result)
    if bias is not None:
        d.merge(y, d.plain(bias).expand(result))
    return y


def _rms_norm(d: Degrees, node: torch.fx.Node, a: Any, shape: Any, weight: Any = None, eps: Any = None) -> torch.Tensor:
    return _layer_norm(d, node, a, shape, weight, None, 1.0 if eps is None else eps)


def _embedding(d: Degrees, node: torch.fx.Node, weight: Any, *_: Any) -> torch.Tensor:
    """All rows alike: which of them a text takes is not up to the graph."""
    if isinstance(weight, _Weights) and weight.index not in d.tensors and weight.index not in d.maps:
        d.tensors[weight.index] = d.unknowns(torch.Size([1, weight.shape[1]]))
    matrix = d.plain(weight)
    d.demand_equal_along(matrix, 0)
    return matrix[0].expand(_shape_of(node))


def _index(d: Degrees, node: torch.fx.Node, a: Any, _: Any) -> torch.Tensor:
    """Places that are constants are read; what a text or θ chooses has to be alike wherever it may be taken from."""
    if a is None:
        return _zeros(_shape_of(node))
    forms = d.plain(a)
    chosen: list[torch.Tensor | None] = []
    for dim, given in enumerate(node.args[1]):  # type: ignore[arg-type]
        places = None if given is None else _constant(d, given)
        if given is not None and places is None:
            if given.meta["val"].dtype == torch.bool:  # how many there are depends on data
                d.demand_zero(forms)
                return _zeros(_shape_of(node))
            d.demand_equal_along(forms, dim)
            places = torch.zeros(_shape_of(given), dtype=torch.int64)
        chosen.append(places)
    found: torch.Tensor = aten.index.Tensor(forms.contiguous(), chosen)
    return found


def _constant(d: Degrees, node: Any) -> torch.Tensor | None:
    """The value of a node, if it is a constant of the graph."""
    while isinstance(node, torch.fx.Node) and node.target in _SAME - _ALTERED:
        node = node.args[0]
    return d.constants.get(node)


def _gather(d: Degrees, node: torch.fx.Node, a: Any, dim: int, *_: Any) -> torch.Tensor:
    """Which entries are taken is not up to the graph; so they have to be alike along the dimension."""
    if a is None:
        return _zeros(_shape_of(node))
    forms = d.plain(a)
    d.demand_equal_along(forms, dim)
    return forms.narrow(dim, 0, 1).contiguous().gather(dim, torch.zeros(_shape_of(node), dtype=torch.int64))


def _new(_: Degrees, __: torch.fx.Node, *___: Any) -> None:
    """A new tensor takes over a shape, and no values."""


def _getitem(_: Degrees, __: torch.fx.Node, parts: Any, index: int) -> Any:
    return parts[index]


_SAME = {
    aten.alias.default, aten.clone.default, aten.contiguous.default, aten._to_copy.default, aten.detach.default,
    aten.to.dtype, aten.neg.default, aten.relu.default, aten.abs.default, aten.lift_fresh_copy.default,
}  # fmt: skip
_ALTERED = {aten.neg.default, aten.relu.default, aten.abs.default}  # of which degrees are kept, and values are not
_SHAPES = _SAME | {
    aten.view.default, aten._unsafe_view.default, aten.reshape.default, aten.transpose.int, aten.permute.default,
    aten.unsqueeze.default, aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims, aten.expand.default,
    aten.slice.Tensor, aten.select.int, aten.t.default, aten.numpy_T.default, aten.split.Tensor,
    aten.split_with_sizes.default, aten.chunk.default, aten.cat.default, aten.stack.default, aten.flatten.using_ints,
    aten.unbind.int, aten.repeat.default, aten.flip.default, aten.roll.default,
}  # fmt: skip
_RULES: dict[Any, Callable[..., Any]] = {
    operator.getitem: _getitem,
    aten.add.Tensor: _sum_of,
    aten.sub.Tensor: _sum_of,
    aten.mul.Tensor: _product,
    aten.mul.Scalar: _product,
    aten.div.Tensor: _quotient,
    aten.pow.Tensor_Scalar: _power,
    aten.square.default: _of_power(Fraction(2)),
    aten.sqrt.default: _of_power(Fraction(1, 2)),
    aten.rsqrt.default: _of_power(Fraction(-1, 2)),
    aten.reciprocal.default: _of_power(Fraction(-1)),
    aten.where.self: _where,
    aten.where.ScalarOther: _where,
    aten.where.ScalarSelf: _where,
    aten.masked_fill.Scalar: _masked_fill,
    aten.matmul.default: _matmul,
    aten.mm.default: _matmul,
    aten.bmm.default: _matmul,
    aten.mv.default: _matmul,
    aten.dot.default: _matmul,
    aten.linear.default: _linear,
    aten.addmm.default: _addmm,
    aten.sum.dim_IntList: _reduce,
    aten.sum.default: _reduce,
    aten.mean.dim: _reduce,
    aten.mean.default: _reduce,
    aten.layer_norm.default: _layer_norm,
    aten.rms_norm.default: _rms_norm,
    aten.embedding.default: _embedding,
    aten.index.Tensor: _index,
    aten.gather.default: _gather,
    **dict.fromkeys([*SHAPED, aten.new_empty.default, aten.empty_like.default], _new),
}
