"""Rescaling symmetries of a loss, found on its traced graph: which exponents leave every value of L as it is.

Scale the entries of θ as θ_i·R^{e_i}. A value of the graph that then scales as R^D, for every R > 0, has degree D. Each
operation says how degrees pass it and what it demands: a sum wants equal degrees; a softmax, a GELU, a normalisation
with ε > 0 want degree 0 (so does any operation without a rule, whose output then has degree 0: symmetries may be
missed, never invented); products add degrees. Degrees are linear forms in unknowns, one for each feature of each
map, all demands are linear equations, and what remains free is the group of symmetries.

A matrix W that maps x to y has entries of degree D(y_i) − D(x_j) whatever these are, so that matrices need no unknowns
of their own. Unknowns that touch the same tensors in the same way are moved together: one generator for all channels
that a value matrix has, say, rather than one each.
"""

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch

from villani.landscape.graph import LossGraph, aten

Form = dict[int, Fraction]  # unknown → coefficient
_SMALL = 4096  # entries of a matrix that is used other than as a map, up to which each has an unknown of its own


class Equations:
    """Linear forms in unknowns, kept once each, and the homogeneous equations between them."""

    def __init__(self) -> None:
        self.forms: list[Form] = [{}]
        self._ids: dict[frozenset[tuple[int, Fraction]], int] = {frozenset(): 0}
        self._unknowns = 0
        self._solved: dict[int, Form] = {}

    def unknown(self) -> int:
        """The form of a new unknown."""
        self._unknowns += 1
        return self.intern({self._unknowns: Fraction(1)})

    def intern(self, form: Form) -> int:
        """The number of a form."""
        key = frozenset(form.items())
        if key not in self._ids:
            self._ids[key] = len(self.forms)
            self.forms.append(form)
        return self._ids[key]

    def combine(self, a: int, b: int, scale: Fraction = Fraction(1)) -> int:
        """a + scale·b."""
        total = dict(self.forms[a])
        _add_to(total, self.forms[b], scale)
        return self.intern(total)

    def times(self, a: int, scale: Fraction) -> int:
        """scale·a."""
        return self.combine(0, a, scale)

    def demand_equal(self, a: int, b: int) -> None:
        """a = b from now on."""
        if a != b:
            rest = self.resolve(self.combine(a, b, Fraction(-1)))
            if rest:
                pivot = max(rest)
                scale = rest.pop(pivot)
                self._solved[pivot] = {u: -c / scale for u, c in rest.items()}

    def resolve(self, a: int) -> Form:
        """The form in unknowns that are free so far."""
        found = dict(self.forms[a])
        while known := next((u for u in found if u in self._solved), 0):
            _add_to(found, self._solved[known], found.pop(known))
        return found


def _add_to(form: Form, other: Form, scale: Fraction) -> None:
    for unknown, coefficient in other.items():
        total = form.get(unknown, Fraction(0)) + scale * coefficient
        if total:
            form[unknown] = total
        else:
            form.pop(unknown, None)


@dataclass(frozen=True, eq=False)
class _Weights:
    """A parameter of this shape, perhaps seen transposed, before it is used: its entries' degrees are not fixed yet."""

    index: int
    shape: torch.Size
    transposed: bool = False


@dataclass(frozen=True, eq=False)
class Exponents:
    """How one tensor scales.

    Attributes:
        index: of the tensor in θ.
        values: integers that broadcast to its shape.
    """

    index: int
    values: torch.Tensor


class Degrees:
    """Degrees of all values of one graph, as numbers of forms in tensors of the values' shapes.

    After construction `tensors` holds (index, shape, numbers of forms that broadcast to the shape) of every tensor of θ
    that the graph uses.
    """

    def __init__(self, graph: LossGraph) -> None:
        self.equations = Equations()
        self.tensors: dict[int, torch.Tensor] = {}  # exponents, as forms; a matrix map's in two parts
        self.maps: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # W (E, D): forms of outputs (E,) and inputs (D,)
        values: dict[torch.fx.Node, Any] = {}
        for node in graph.nodes:
            if node in graph.parameters:
                index = graph.parameters[node]
                values[node] = _Weights(index, node.meta["val"].shape)
            elif node.op == "call_function":
                moved = [values[a] for a in node.all_input_nodes if values.get(a) is not None]
                values[node] = self._run(node, values) if moved else None  # None: does not depend on θ
            else:
                values[node] = None
        self._demand_zero(self._plain(values[graph.loss]))

    # Operations

    def _run(self, node: torch.fx.Node, values: dict[torch.fx.Node, Any]) -> Any:
        rule = _RULES.get(node.target)
        arguments: Any = torch.fx.map_arg(node.args, values.__getitem__)
        if rule is not None:
            return rule(self, node, *arguments)
        if node.target in _SHAPES:
            return self._reshape(node, arguments)
        for leaf in _leaves(arguments) + _leaves(torch.fx.map_arg(node.kwargs, values.__getitem__)):
            if isinstance(leaf, torch.Tensor | _Weights):
                self._demand_zero(self._plain(leaf))
        value = node.meta.get("val")
        if isinstance(value, torch.Tensor):
            return _zeros(value.shape)
        return tuple(_zeros(part.shape) if isinstance(part, torch.Tensor) else None for part in value)

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
            first = self._plain(first)
        options: Any = {k: v for k, v in node.kwargs.items() if k not in ("dtype", "memory_format", "device")}
        if node.target in _SAME:
            return first
        if isinstance(first, list | tuple):  # cat, stack
            shapes = [n.meta["val"].shape for n in node.args[0]]  # type: ignore[union-attr]
            first = [_zeros(s) if f is None else self._plain(f) for f, s in zip(first, shapes, strict=True)]
        if isinstance(first, torch.Tensor):
            first = first.contiguous()  # a view of an expanded tensor may not exist
        return node.target(first, *rest, **options)  # type: ignore[operator]

    def _plain(self, value: Any) -> torch.Tensor:
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
            exponents = self.tensors[value.index] = self._unknowns(torch.Size(each))
        exponents = exponents.expand(shape)
        return exponents.mT if value.transposed else exponents

    def map(self, x: torch.Tensor, weights: _Weights, outputs_first: bool, leading: Sequence[int]) -> torch.Tensor:
        """y = W x for a matrix of θ: (…, D) → (…, E)."""
        in_order = outputs_first != weights.transposed  # whether θ holds W as (E, D)
        outputs, inputs = weights.shape if in_order else weights.shape[::-1]
        x = x.expand(*leading, inputs).reshape(-1, inputs)
        self._demand_equal_along(x, 0)
        row = x[0]
        if weights.index not in self.tensors and weights.index not in self.maps:
            y = self._unknowns(torch.Size([outputs]))
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
            rest = self._pairs(row, c, Fraction(-1))
            self._demand_equal_along(rest, 0)
            return self._pairs(r, rest[:1].expand(outputs)).expand(*leading, outputs)
        matrix = self._plain(_Weights(weights.index, weights.shape))  # (E, D) or (D, E)
        matrix = matrix if in_order else matrix.mT
        if matrix.stride(0) == 0:  # as an embedding's: the same for all rows
            rest = self._pairs(row, matrix[0])
            self._demand_equal_along(rest, 0)
            return rest[:1].expand(*leading, outputs)
        total = self._pairs(matrix, row.expand(outputs, inputs))
        self._demand_equal_along(total, 1)
        return total[:, 0].expand(*leading, outputs)

    # On tensors of forms

    def _unknowns(self, shape: torch.Size) -> torch.Tensor:
        return torch.tensor([self.equations.unknown() for _ in range(shape.numel())], dtype=torch.int64).view(shape)

    def _demand_zero(self, x: torch.Tensor) -> None:
        for form in x.unique().tolist():
            self.equations.demand_equal(form, 0)

    def _demand_equal_along(self, x: torch.Tensor, dim: int) -> None:
        if x.shape[dim] > 1 and x.stride(dim):
            self._merge(x.narrow(dim, 0, 1).expand_as(x), x)

    def _merge(self, a: torch.Tensor, b: torch.Tensor) -> None:
        apart = a != b
        for i, j in _unique_pairs(a[apart], b[apart])[0]:
            self.equations.demand_equal(i, j)

    def _pairs(self, a: torch.Tensor, b: torch.Tensor, scale: Fraction = Fraction(1)) -> torch.Tensor:
        """a + scale·b, entry by entry."""
        a, b = torch.broadcast_tensors(a, b)
        pairs, back = _unique_pairs(a, b)
        sums = torch.tensor([self.equations.combine(i, j, scale) for i, j in pairs], dtype=torch.int64)
        return sums[back].view(a.shape)

    def _scaled(self, a: torch.Tensor, scale: Fraction) -> torch.Tensor:
        return self._pairs(torch.zeros_like(a), a, scale)

    def _operand(self, value: Any, node: Any) -> torch.Tensor:
        """Degrees of an argument of an elementwise operation; of a constant 0."""
        return (
            torch.zeros((), dtype=torch.int64) if not isinstance(value, torch.Tensor | _Weights) else self._plain(value)
        )


def _unique_pairs(a: torch.Tensor, b: torch.Tensor) -> tuple[list[tuple[int, int]], torch.Tensor]:
    """The pairs (a, b) that occur, and which of them stands at each entry."""
    base = int(b.max()) + 1 if b.numel() else 1
    keys, back = (a * base + b).reshape(-1).unique(return_inverse=True)
    return [divmod(key, base) for key in keys.tolist()], back


def _zeros(shape: Sequence[int]) -> torch.Tensor:
    return torch.zeros((), dtype=torch.int64).expand(torch.Size(shape))


def _leaves(arguments: Any) -> list[Any]:
    if isinstance(arguments, tuple | list):
        return [leaf for argument in arguments for leaf in _leaves(argument)]
    if isinstance(arguments, dict):
        return _leaves(list(arguments.values()))
    return [arguments]


# Rules: rule(degrees, node, *degrees of the arguments), None for what does not depend on θ


def _sum_of(d: Degrees, node: torch.fx.Node, a: Any, b: Any, *_: Any) -> torch.Tensor:
    shape = node.meta["val"].shape
    a, b = (d._operand(v, node).expand(shape) for v in (a, b))
    if not (_is_zero(node.args[0]) or _is_zero(node.args[1])):
        d._merge(a, b)
    return b if _is_zero(node.args[0]) else a


def _is_zero(argument: Any) -> bool:
    return isinstance(argument, int | float) and argument == 0


def _product(d: Degrees, node: torch.fx.Node, a: Any, b: Any) -> torch.Tensor:
    return d._pairs(d._operand(a, node), d._operand(b, node)).expand(node.meta["val"].shape)


def _quotient(d: Degrees, node: torch.fx.Node, a: Any, b: Any) -> torch.Tensor:
    return d._pairs(d._operand(a, node), d._operand(b, node), Fraction(-1)).expand(node.meta["val"].shape)


def _power(d: Degrees, node: torch.fx.Node, a: Any, n: Any) -> torch.Tensor:
    if not isinstance(n, int | float):
        raise TypeError("an exponent that depends on θ")
    return d._scaled(d._plain(a), Fraction(n).limit_denominator(1000))


def _of_power(n: Fraction) -> Callable[..., torch.Tensor]:
    return lambda d, node, a, *_: d._scaled(d._plain(a), n)


def _where(d: Degrees, node: torch.fx.Node, _: Any, a: Any, b: Any) -> torch.Tensor:
    """Which of the two is taken depends on data; so both must scale alike (an infinite mask scales as it likes)."""
    return _sum_of_two(d, node, a, b)


def _sum_of_two(d: Degrees, node: torch.fx.Node, a: Any, b: Any) -> torch.Tensor:
    shape = node.meta["val"].shape
    a, b = (d._operand(v, node).expand(shape) for v in (a, b))
    d._merge(a, b)
    return a


def _masked_fill(d: Degrees, node: torch.fx.Node, a: Any, *_: Any) -> torch.Tensor:
    return _sum_of_two(d, node, a, None)


def _matmul(d: Degrees, node: torch.fx.Node, a: Any, b: Any) -> torch.Tensor:
    shape = node.meta["val"].shape
    if isinstance(b, _Weights) and len(b.shape) == 2:
        inner = _shape_of(node.args[0])
        x = _zeros(inner) if a is None else d._plain(a)
        return d.map(x, b, outputs_first=False, leading=inner[:-1])
    left = _zeros(_shape_of(node.args[0])) if a is None else d._plain(a)
    right = _zeros(_shape_of(node.args[1])) if b is None else d._plain(b)
    left = left[None, :] if left.dim() == 1 else left
    right = right[:, None] if right.dim() == 1 else right
    total = d._pairs(left[..., :, :, None], right[..., None, :, :])  # (…, N, K, M)
    d._demand_equal_along(total, -2)
    return total[..., 0, :].reshape(shape)


def _shape_of(node: Any) -> torch.Size:
    shape: torch.Size = node.meta["val"].shape
    return shape


def _linear(d: Degrees, node: torch.fx.Node, x: Any, weight: Any, bias: Any = None) -> torch.Tensor:
    shape = node.meta["val"].shape
    inner = _shape_of(node.args[0])
    x = _zeros(inner) if x is None else d._plain(x)
    if isinstance(weight, _Weights):
        y = d.map(x, weight, outputs_first=True, leading=shape[:-1])
    elif weight is None:
        d._demand_equal_along(x, -1)
        y = x[..., :1].expand(shape)
    else:
        total = d._pairs(x[..., None, :], weight)
        d._demand_equal_along(total, -1)
        y = total[..., 0]
    if len(node.args) > 2 and node.args[2] is not None:
        d._merge(y, d._operand(bias, node).expand(shape))
    return y


def _addmm(d: Degrees, node: torch.fx.Node, bias: Any, x: Any, weight: Any) -> torch.Tensor:
    shape = node.meta["val"].shape
    inner = _shape_of(node.args[1])
    x = _zeros(inner) if x is None else d._plain(x)
    if isinstance(weight, _Weights):
        y = d.map(x, weight, outputs_first=False, leading=shape[:-1])
    else:
        right = _zeros(_shape_of(node.args[2])) if weight is None else weight
        total = d._pairs(x[:, :, None], right[None])
        d._demand_equal_along(total, 1)
        y = total[:, 0]
    d._merge(y, d._operand(bias, node).expand(shape))
    return y


def _reduce(d: Degrees, node: torch.fx.Node, a: Any, dims: Any = None, *_: Any) -> torch.Tensor:
    a = d._plain(a)
    axes = range(a.dim()) if dims is None or dims == [] else [dims] if isinstance(dims, int) else dims
    for dim in axes:
        d._demand_equal_along(a, dim)
    for dim in axes:
        a = a.narrow(dim, 0, 1)
    return a.reshape(node.meta["val"].shape)


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
    result = node.meta["val"].shape
    if a is not None:
        a = d._plain(a)
        if eps == 0:
            for dim in range(-len(shape), 0):
                d._demand_equal_along(a, dim)
        else:
            d._demand_zero(a)
    y = _zeros(result) if weight is None else d._plain(weight).expand(result)
    if bias is not None:
        d._merge(y, d._plain(bias).expand(result))
    return y


def _rms_norm(d: Degrees, node: torch.fx.Node, a: Any, shape: Any, weight: Any = None, eps: Any = None) -> torch.Tensor:
    return _layer_norm(d, node, a, shape, weight, None, 1.0 if eps is None else eps)


def _embedding(d: Degrees, node: torch.fx.Node, weight: Any, ids: Any, *_: Any) -> torch.Tensor:
    """All rows alike: which of them a text takes is not up to the graph."""
    if isinstance(weight, _Weights) and weight.index not in d.tensors and weight.index not in d.maps:
        d.tensors[weight.index] = d._unknowns(torch.Size([1, weight.shape[1]]))
    matrix = d._plain(weight)
    d._demand_equal_along(matrix, 0)
    return matrix[0].expand(node.meta["val"].shape)


def _getitem(_: Degrees, __: torch.fx.Node, parts: Any, index: int) -> Any:
    return parts[index]


_SAME = {
    aten.alias.default, aten.clone.default, aten.contiguous.default, aten._to_copy.default, aten.detach.default,
    aten.to.dtype, aten.neg.default, aten.relu.default, aten.abs.default, aten.lift_fresh_copy.default,
}  # fmt: skip
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
}


@dataclass(frozen=True, eq=False)
class Generator:
    """One one-parameter group of rescalings that leaves L as it is: θ_i → θ_i·R^{e_i}.

    Attributes:
        exponents: index of a tensor in θ → integers e that broadcast to its shape; tensors left out have e = 0.
    """

    exponents: dict[int, torch.Tensor]


def generators(graph: LossGraph) -> list[Generator]:
    """A basis of the symmetries, in the order of the tensors in θ; unknowns of the same kind are moved together."""
    found = Degrees(graph)
    parts: dict[int, list[torch.Tensor]] = {index: [forms] for index, forms in found.tensors.items()}
    for index, (outputs, inputs) in found.maps.items():
        parts[index] = [outputs[:, None], inputs[None, :]]
    resolved: dict[int, Form] = {}
    touched: dict[int, dict[tuple[int, int], set[Fraction]]] = {}  # unknown → (tensor, part) → its coefficients
    for index, pieces in sorted(parts.items()):
        for place, forms in enumerate(pieces):
            for form in forms.unique().tolist():
                if form not in resolved:
                    resolved[form] = found.equations.resolve(form)
                for unknown, coefficient in resolved[form].items():
                    touched.setdefault(unknown, {}).setdefault((index, place), set()).add(coefficient)
    families: dict[Any, set[int]] = {}
    for unknown, places in touched.items():
        signature = frozenset((place, frozenset(coefficients)) for place, coefficients in places.items())
        families.setdefault(signature, set()).add(unknown)
    basis = []
    for family in families.values():
        exponents: dict[int, torch.Tensor] = {}
        for index, pieces in sorted(parts.items()):
            values = [_values(forms, resolved, family) for forms in pieces]
            total = values[0] if len(values) == 1 else _outer(*values)
            if total is not None:
                exponents[index] = total
        if exponents:
            basis.append(Generator(_whole_numbers(exponents)))
    return sorted(basis, key=lambda g: min(g.exponents))


def _values(forms: torch.Tensor, resolved: dict[int, Form], family: set[int]) -> torch.Tensor | None:
    """Σ of the coefficients of a family's unknowns, or None where all are zero; as small as it broadcasts."""
    known, back = forms.unique(return_inverse=True)
    sums = [float(sum((c for u, c in resolved[form].items() if u in family), Fraction(0))) for form in known.tolist()]
    if not any(sums):
        return None
    values = torch.tensor(sums, dtype=torch.float64)[back]
    for dim in range(values.dim()):
        if (values == values.narrow(dim, 0, 1)).all():
            values = values.narrow(dim, 0, 1)
    return values


def _outer(outputs: torch.Tensor | None, inputs: torch.Tensor | None) -> torch.Tensor | None:
    """Entries of a matrix map: degree of the output minus degree of the input."""
    if outputs is None:
        return None if inputs is None else -inputs
    total = outputs if inputs is None else outputs - inputs
    return total if total.any() else None


def _whole_numbers(exponents: dict[int, torch.Tensor]) -> dict[int, torch.Tensor]:
    """Scaled to integers without a common factor."""
    values = [Fraction(v).limit_denominator(1000) for e in exponents.values() for v in e.unique().tolist() if v]
    least = 1
    for v in values:
        least = least * v.denominator // _gcd(least, v.denominator)
    common = 0
    for v in values:
        common = _gcd(common, int(abs(v) * least))
    return {index: e * least / common + 0.0 for index, e in exponents.items()}  # without −0


def _gcd(a: int, b: int) -> int:
    while b:
        a, b = b, a % b
    return a
