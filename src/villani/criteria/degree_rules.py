"""How degrees of homogeneity pass each operation: rule(forms, node, *degrees of the arguments).

The degree of what does not depend on θ is None, as an argument and as a result. A rule that does not know an operation
with these arguments gives NotImplemented, and the operation is one without a rule.
"""

import math
import operator
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import torch
from torch.utils import _pytree as pytree

from villani.criteria import degree_places as places
from villani.criteria.forms import Forms, Weights, shape_of, zeros
from villani.criteria.patterns import arguments
from villani.criteria.skipped import WANTS_ZERO
from villani.objective.families import COMPARED, COPIED, EMPTY, EXTREME, MOVED, NEW, PICKED, SPLIT, WHERE
from villani.objective.interpret import Table

aten = torch.ops.aten
DegreeRule = Callable[..., Any]


def wants_zero(d: Forms, node: torch.fx.Node, *arguments: Any) -> Any:
    """Degree 0 is what it wants of all that it is given, and the degree that it has."""
    for leaf in pytree.tree_leaves(arguments):
        if isinstance(leaf, torch.Tensor | Weights):
            d.demand_zero(d.plain(leaf))
    value: Any = node.meta.get("val")
    if isinstance(value, torch.Tensor):
        return zeros(value.shape)
    return tuple(zeros(part.shape) if isinstance(part, torch.Tensor) else None for part in value)


def _same(_: Forms, __: torch.fx.Node, a: Any, *___: Any) -> Any:
    """The same numbers, or their moduli."""
    return a


def _sum_of(d: Forms, node: torch.fx.Node, a: Any, b: Any, *_: Any) -> torch.Tensor:
    return places.alike(d, node, a, b, *node.args[:2])


def _product(d: Forms, node: torch.fx.Node, a: Any, b: Any) -> torch.Tensor:
    return d.pairs(d.operand(a), d.operand(b)).expand(shape_of(node))


def _quotient(d: Forms, node: torch.fx.Node, a: Any, b: Any) -> torch.Tensor:
    return d.pairs(d.operand(a), d.operand(b), Fraction(-1)).expand(shape_of(node))


def _power(d: Forms, node: torch.fx.Node, a: Any, n: Any) -> torch.Tensor:
    """The exponent is read exactly, as the float that it is: 0.1 three times is not 0.3."""
    if not isinstance(n, int | float) or not math.isfinite(n):
        d.demand_zero(d.plain(a))
        return zeros(shape_of(node))
    return d.scaled(d.plain(a), Fraction(n))


def _of_power(n: Fraction) -> Callable[..., torch.Tensor]:
    return lambda d, _, a, *__: d.scaled(d.plain(a), n)


def _compared(d: Forms, node: torch.fx.Node, a: Any, b: Any) -> None:
    """What scales alike compares as before, and so does what scales with 0."""
    if not any(isinstance(x, int | float) and x == 0 for x in node.args[:2]):
        shape = shape_of(node)
        d.merge(*(d.operand(v).expand(shape) for v in (a, b)))


def _convolution(d: Forms, node: torch.fx.Node, x: Any, weight: Any, bias: Any = None, *_: Any) -> torch.Tensor:
    """y_o = Σ W_{o,c,k} x_c over the channels c of o's group: as a matrix map, of x that is alike at all places."""
    shape, size = shape_of(node), shape_of(node.args[1])
    channels = zeros(shape_of(node.args[0])) if x is None else d.plain(x)
    channels = channels if channels.dim() == len(size) else channels.unsqueeze(0)
    for dim in (0, *range(2, channels.dim())):
        d.demand_equal_along(channels, dim)
        channels = channels.narrow(dim, 0, 1)
    groups = arguments(node)["groups"]
    inputs = channels.reshape(groups, 1, -1).expand(groups, size[0] // groups, size[1]).reshape(size[:2])  # (O, C/g)
    wide = (*size[:2], *(1 for _ in size[2:]))
    if isinstance(weight, Weights) and weight.index not in d.tensors and weight.index not in d.maps:
        outputs = d.unknowns(torch.Size([size[0]]))
        d.tensors[weight.index] = d.pairs(outputs[:, None], inputs, Fraction(-1)).reshape(wide)
    else:
        total = d.pairs(d.operand(weight).expand(size), inputs.reshape(wide))
        for dim in range(1, total.dim()):
            d.demand_equal_along(total, dim)
            total = total.narrow(dim, 0, 1)
        outputs = total.reshape(-1)
    y = outputs.reshape(-1, *(1 for _ in size[2:])).expand(shape)
    if len(node.args) > 2 and node.args[2] is not None:
        d.merge(y, d.operand(bias).reshape(-1, *(1 for _ in size[2:])).expand(shape))
    return y


_MANY = 1 << 22  # products of rows that scale in ways of their own with a matrix: beyond it they are taken to be alike


def _rows_alike(x: torch.Tensor, weights: Weights) -> bool:
    """Whether all that a matrix meets has the same degrees, as tokens do, and the rows of another matrix do not."""
    own = x.dim() - len(weights.shape)  # dimensions after it are those of the batch of matrices
    rows = [dim for dim in range(x.dim() - 1) if (dim < own or dim == x.dim() - 2) and x.shape[dim] and x.stride(dim)]
    return all(bool((x == x.narrow(dim, 0, 1)).all()) for dim in rows)


def _as_map(d: Forms, x: torch.Tensor, weights: Weights) -> bool:
    """Whether a matrix is read as a map of rows that are alike; where that is for want of room, it is named."""
    if _rows_alike(x, weights):
        return True
    if weights.shape.numel() * x.numel() <= _MANY:
        return False
    d.coarse.add(weights.index)
    return True


def _matmul(d: Forms, node: torch.fx.Node, a: Any, b: Any) -> torch.Tensor:
    shape = shape_of(node)
    if places.is_zero(d, node):
        return zeros(shape)
    if isinstance(b, Weights) and len(b.shape) > 1:
        inner = shape_of(node.args[0])
        x = zeros(inner) if a is None else d.plain(a)
        if len(inner) > 1 and _as_map(d, x, b):
            return d.map(x, b, outputs_first=False, shape=shape)
    left = zeros(shape_of(node.args[0])) if a is None else d.plain(a)
    right = zeros(shape_of(node.args[1])) if b is None else d.plain(b)
    left = left[None, :] if left.dim() == 1 else left
    right = right[:, None] if right.dim() == 1 else right
    total = d.pairs(left[..., :, :, None], right[..., None, :, :])  # (…, N, K, M)
    d.demand_equal_along(total, -2)
    return total[..., 0, :].reshape(shape)


def _linear(d: Forms, node: torch.fx.Node, x: Any, weight: Any, bias: Any = None) -> torch.Tensor:
    shape = shape_of(node)
    inner = shape_of(node.args[0])
    x = zeros(inner) if x is None else d.plain(x)
    if isinstance(weight, Weights) and _as_map(d, x, weight):
        y = d.map(x, weight, outputs_first=True, shape=shape)
    elif weight is None:
        d.demand_equal_along(x, -1)
        y = x[..., :1].expand(shape)
    else:
        total = d.pairs(x[..., None, :], d.plain(weight))
        d.demand_equal_along(total, -1)
        y = total[..., 0]
    if len(node.args) > 2 and node.args[2] is not None:
        d.merge(y, d.operand(bias).expand(shape))
    return y


def _addmm(d: Forms, node: torch.fx.Node, bias: Any, x: Any, weight: Any) -> torch.Tensor:
    shape = shape_of(node)
    inner = shape_of(node.args[1])
    x = zeros(inner) if x is None else d.plain(x)
    if isinstance(weight, Weights):
        y = d.map(x, weight, outputs_first=False, shape=shape)
    else:
        right = zeros(shape_of(node.args[2])) if weight is None else weight
        total = d.pairs(x[:, :, None], right[None])
        d.demand_equal_along(total, 1)
        y = total[:, 0]
    d.merge(y, d.operand(bias).expand(shape))
    return y


def _reduce(d: Forms, node: torch.fx.Node, a: Any, dims: Any = None, *_: Any) -> torch.Tensor:
    forms = d.plain(a)
    axes = range(forms.dim()) if dims is None or dims == [] else [dims] if isinstance(dims, int) else dims
    for dim in axes:
        d.demand_equal_along(forms, dim)
    for dim in axes:
        forms = forms.narrow(dim, 0, 1)
    return forms.reshape(shape_of(node))


def _layer_norm(
    d: Forms,
    node: torch.fx.Node,
    a: Any,
    shape: Any,
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
    *_: Any,
) -> torch.Tensor:
    result = shape_of(node)
    if a is not None:
        a = d.plain(a)
        if eps == 0:
            for dim in range(-len(shape), 0):
                d.demand_equal_along(a, dim)
        else:
            d.demand_zero(a)
    y = zeros(result) if weight is None else d.plain(weight).expand(result)
    if bias is not None:
        d.merge(y, d.plain(bias).expand(result))
    return y


def _rms_norm(d: Forms, node: torch.fx.Node, a: Any, shape: Any, weight: Any = None, eps: Any = None) -> torch.Tensor:
    return _layer_norm(d, node, a, shape, weight, None, 1.0 if eps is None else eps)


def _embedding(d: Forms, node: torch.fx.Node, weight: Any, *_: Any) -> torch.Tensor:
    """All rows alike: which of them a text takes is not up to the graph."""
    if isinstance(weight, Weights) and weight.index not in d.tensors and weight.index not in d.maps:
        d.tensors[weight.index] = d.unknowns(torch.Size([1, weight.shape[1]]))
    matrix = d.plain(weight)
    d.demand_equal_along(matrix, 0)
    return matrix[0].expand(shape_of(node))


def _reduced_to(n: int, at: int = 1) -> Callable[..., torch.Tensor]:
    """Rule of a reduction that scales with the n-th power of what it is of; `at`: where its dimensions are given."""

    def rule(d: Forms, node: torch.fx.Node, *given: Any) -> torch.Tensor:
        return d.scaled(_reduce(d, node, given[0], given[at] if len(given) > at else None), Fraction(n))

    return rule


def _cumulated(d: Forms, _: torch.fx.Node, a: Any, dim: int, *__: Any) -> torch.Tensor:
    forms = d.plain(a)
    d.demand_equal_along(forms, dim)
    return forms


def _triangle(d: Forms, _: torch.fx.Node, a: Any, *__: Any) -> torch.Tensor:
    """Zeros elsewhere, which scale as one likes."""
    return d.plain(a)


def _extreme(d: Forms, node: torch.fx.Node, a: Any, b: Any) -> torch.Tensor:
    return places.alike(d, node, a, b, *node.args[:2])


def _as_complex(d: Forms, _: torch.fx.Node, a: Any) -> torch.Tensor:
    forms = d.plain(a)
    d.demand_equal_along(forms, -1)
    return forms[..., 0]


def _as_real(_: Forms, node: torch.fx.Node, a: torch.Tensor) -> torch.Tensor:
    return a.unsqueeze(-1).expand(shape_of(node))


WHOLE = {operator.getitem, *PICKED, *COMPARED}  # whole numbers that these give do not depend on a rescaling

RULES = Table[DegreeRule](
    (_same, [*places.COPIES, aten.neg.default, aten.relu.default, aten.leaky_relu.default, aten.abs.default]),
    (places.moved, [*(operation for operation in MOVED if operation not in COPIED), *SPLIT]),
    (places.joined, [aten.cat.default, aten.stack.default]),
    (places.getitem, [operator.getitem]),
    (places.new, [*NEW, *EMPTY]),
    (_sum_of, [aten.add.Tensor, aten.sub.Tensor]),
    (_product, [aten.mul.Tensor, aten.mul.Scalar]),
    (_quotient, [aten.div.Tensor]),
    (_power, [aten.pow.Tensor_Scalar]),
    (_of_power(Fraction(2)), [aten.square.default]),
    (_of_power(Fraction(1, 2)), [aten.sqrt.default]),
    (_of_power(Fraction(-1, 2)), [aten.rsqrt.default]),
    (_of_power(Fraction(-1)), [aten.reciprocal.default]),
    (places.where, WHERE),
    (places.masked_fill, [aten.masked_fill.Scalar]),
    (places.scattered, [aten.scatter.value]),
    (
        places.put,
        [
            aten.index_put.default,
            aten.scatter.src,
            aten.scatter_add.default,
            aten.index_add.default,
        ],
    ),
    (places.clamped, [aten.clamp.default, aten.clamp.Tensor, aten.clamp_min.default, aten.clamp_max.default]),
    (_extreme, EXTREME),
    (_triangle, [aten.tril.default, aten.triu.default]),
    (_cumulated, [aten.cumsum.default]),
    (_as_complex, [aten.view_as_complex.default]),
    (_as_real, [aten.view_as_real.default]),
    (places.padded, [aten.pad.default, aten.constant_pad_nd.default]),
    (places.picked, PICKED),
    (_compared, COMPARED),
    (_convolution, [aten.conv1d.default]),
    (_matmul, [aten.matmul.default, aten.mm.default, aten.bmm.default, aten.mv.default, aten.dot.default]),
    (_linear, [aten.linear.default]),
    (_addmm, [aten.addmm.default]),
    (_reduce, [aten.sum.dim_IntList, aten.sum.default, aten.mean.dim, aten.mean.default]),
    (_reduced_to(1), [aten.amax.default, aten.amin.default, aten.max.default, aten.min.default]),
    (_reduced_to(2), [aten.var.default, aten.var.dim, aten.var.correction]),
    (_reduced_to(1, at=2), [aten.linalg_vector_norm.default]),
    (_layer_norm, [aten.layer_norm.default]),
    (_rms_norm, [aten.rms_norm.default]),
    (_embedding, [aten.embedding.default]),
    (places.index, [aten.index.Tensor]),
    (places.gather, [aten.gather.default]),
    (wants_zero, WANTS_ZERO),
)
