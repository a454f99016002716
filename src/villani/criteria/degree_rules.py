"""How degrees of homogeneity pass each operation: rule(forms, node, *degrees of the arguments).

The degree of what does not depend on θ is None, as an argument and as a result.
"""

import math
import operator
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import torch
from torch.utils import _pytree as pytree

from villani.criteria.forms import Forms, Weights, shape_of, zeros
from villani.criteria.patterns import arguments
from villani.criteria.skipped import WANTS_ZERO
from villani.objective.families import CAST, COMPARED, COPIED, EMPTY, MOVED, NEW, PICKED, SPLIT, WHERE
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


def _moved(d: Forms, node: torch.fx.Node, first: Any, *rest: Any) -> Any:
    """Operations that move values about without computing: they move degrees in the same way."""
    target: Any = node.target
    if isinstance(first, Weights):
        if len(first.shape) > 1 and _transposes(node, len(first.shape)):
            return Weights(first.index, first.shape, not first.transposed)
        first = d.plain(first)
    try:
        return target(first, *rest)
    except RuntimeError:  # a view of an expanded tensor that does not exist
        return target(first.contiguous(), *rest)


def _transposes(node: torch.fx.Node, dims: int) -> bool:
    """Whether all that an operation does is to exchange the last two dimensions."""
    if node.target in (aten.t.default, aten.numpy_T.default):
        return dims == 2
    order = list(range(dims))
    if node.target is aten.transpose.int:
        i, j = (int(dim) % dims for dim in node.args[1:3])  # type: ignore[arg-type]
        order[i], order[j] = order[j], order[i]
    elif node.target is aten.permute.default:
        order = [int(dim) % dims for dim in node.args[1]]  # type: ignore[union-attr,arg-type]
    return order == [*range(dims - 2), dims - 1, dims - 2]


def _joined(d: Forms, node: torch.fx.Node, parts: Any, dim: int = 0) -> Any:
    """Side by side; zeros have the degree of their neighbour, as they have every one."""
    target: Any = node.target
    given: Any = node.args[0]
    forms = [zeros(shape_of(n)) if f is None else d.plain(f) for f, n in zip(parts, given, strict=True)]
    real = next((f for f, n in zip(forms, given, strict=True) if not is_zero(n) and f.numel()), None)
    if real is not None:
        forms = [real.narrow(dim, 0, 1).expand_as(f) if is_zero(n) and f.dim() == real.dim() else f
                 for f, n in zip(forms, given, strict=True)]  # fmt: skip
    return target(forms, dim)


def _sum_of(d: Forms, node: torch.fx.Node, a: Any, b: Any, *_: Any) -> torch.Tensor:
    return _alike(d, node, a, b, *node.args[:2])


def _alike(d: Forms, node: torch.fx.Node, a: Any, b: Any, one: Any, other: Any) -> torch.Tensor:
    """Both scale alike, but for zeros; `one` and `other` are what a and b stand for in the graph."""
    shape = shape_of(node)
    left, right = (d.operand(v).expand(shape) for v in (a, b))
    if is_zero(one) or is_zero(other):
        return right if is_zero(one) else left
    d.merge(left, right)
    return left


_ZEROS = {aten.zeros.default, aten.zeros_like.default, aten.new_zeros.default}
_FULL = {aten.full.default, aten.full_like.default, aten.new_full.default, aten.scalar_tensor.default}
_KEEPING = {*MOVED, *SPLIT, CAST, operator.getitem, aten.neg.default, aten.sum.dim_IntList, aten.mean.dim}
_PRODUCTS = {aten.mul.Tensor, aten.matmul.default, aten.bmm.default, aten.mm.default}


def is_zero(argument: Any) -> bool:
    """Whether it is 0 whatever θ is, or infinite: such a value scales by any factor and stays the same."""
    if isinstance(argument, int | float):
        return argument == 0 or math.isinf(argument)
    if not isinstance(argument, torch.fx.Node):
        return False
    if argument.target in _ZEROS:
        return True
    if argument.target in _FULL:
        return is_zero(argument.args[0 if argument.target is aten.scalar_tensor.default else -1])
    if argument.target in _KEEPING:
        return is_zero(argument.args[0])
    return argument.target in _PRODUCTS and any(isinstance(a, torch.fx.Node) and is_zero(a) for a in argument.args)


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


def _where(d: Forms, node: torch.fx.Node, _: Any, a: Any, b: Any) -> torch.Tensor:
    """Which of the two is taken depends on data; so both must scale alike."""
    return _alike(d, node, a, b, *node.args[1:3])


def _masked_fill(d: Forms, node: torch.fx.Node, a: Any, *_: Any) -> torch.Tensor:
    return _alike(d, node, a, None, node.args[0], node.args[2])


def _scattered(d: Forms, node: torch.fx.Node, a: Any, *_: Any) -> torch.Tensor:
    """Some entries replaced by a number."""
    return _alike(d, node, a, None, node.args[0], node.args[3])


def _padded(d: Forms, node: torch.fx.Node, a: Any, pad: Sequence[int], *_: Any) -> torch.Tensor:
    """Zeros around have the degree of the nearest entry; other numbers have degree 0."""
    given = arguments(node)
    forms = d.plain(a)
    if given.get("mode", "constant") != "constant" or not is_zero(given["value"] or 0):
        d.demand_zero(forms)
        return zeros(shape_of(node))
    for k in range(len(pad) // 2):
        dim, size = forms.dim() - 1 - k, forms.shape[-1 - k]
        forms = forms.index_select(dim, torch.arange(-pad[2 * k], size + pad[2 * k + 1]).clamp(0, size - 1))
    return forms


def _picked(d: Forms, node: torch.fx.Node, a: Any, *_: Any) -> Any:
    """The largest, or all in order, of entries that scale alike: which they are stays as it is."""
    forms, dim = d.plain(a), arguments(node)["dim"]
    value: Any = node.meta["val"]
    if forms.dim() == 0:
        return forms, None
    d.demand_equal_along(forms, dim)
    first = forms.narrow(dim, 0, 1)
    shape = value[0].shape
    return (first if len(shape) == first.dim() else first.squeeze(dim)).expand(shape), None


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


def _matmul(d: Forms, node: torch.fx.Node, a: Any, b: Any) -> torch.Tensor:
    shape = shape_of(node)
    if isinstance(b, Weights) and len(b.shape) > 1:
        inner = shape_of(node.args[0])
        x = zeros(inner) if a is None else d.plain(a)
        if len(inner) > 1:
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
    if isinstance(weight, Weights):
        y = d.map(x, weight, outputs_first=True, shape=shape)
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


def _index(d: Forms, node: torch.fx.Node, a: Any, _: Any) -> torch.Tensor:
    """Places that are constants are read; what a text or θ chooses has to be alike wherever it may be taken from."""
    if a is None:
        return zeros(shape_of(node))
    forms = d.plain(a)
    chosen: list[torch.Tensor | None] = []
    for dim, given in enumerate(node.args[1]):  # type: ignore[arg-type]
        places = None if given is None else _constant(d, given)
        if given is not None and places is None:
            if given.meta["val"].dtype == torch.bool:  # how many there are depends on data
                d.demand_zero(forms)
                return zeros(shape_of(node))
            d.demand_equal_along(forms, dim)
            places = torch.zeros(shape_of(given), dtype=torch.int64)
        chosen.append(places)
    read: torch.Tensor = aten.index.Tensor(forms.contiguous(), chosen)
    return read


def _constant(d: Forms, node: Any) -> torch.Tensor | None:
    """The value of a node, if it is a constant of the graph."""
    while isinstance(node, torch.fx.Node) and node.target in _COPIES:
        node = node.args[0]
    return d.constants.get(node)


def _gather(d: Forms, node: torch.fx.Node, a: Any, dim: int, *_: Any) -> torch.Tensor:
    """Which entries are taken is not up to the graph; so they have to be alike along the dimension."""
    if a is None:
        return zeros(shape_of(node))
    forms = d.plain(a)
    d.demand_equal_along(forms, dim)
    return forms.narrow(dim, 0, 1).contiguous().gather(dim, torch.zeros(shape_of(node), dtype=torch.int64))


def _new(_: Forms, __: torch.fx.Node, *___: Any) -> None:
    """A new tensor takes over a shape, and no values."""


def _getitem(_: Forms, __: torch.fx.Node, parts: Any, index: int) -> Any:
    return parts[index]


_COPIES = (*COPIED, CAST, aten.detach.default, aten.to.dtype, aten.lift_fresh_copy.default)

WHOLE = {operator.getitem, *PICKED, *COMPARED}  # whole numbers that these give do not depend on a rescaling

RULES = Table[DegreeRule](
    (_same, [*_COPIES, aten.neg.default, aten.relu.default, aten.abs.default]),
    (_moved, [*(operation for operation in MOVED if operation not in COPIED), *SPLIT]),
    (_joined, [aten.cat.default, aten.stack.default]),
    (_getitem, [operator.getitem]),
    (_new, [*NEW, *EMPTY]),
    (_sum_of, [aten.add.Tensor, aten.sub.Tensor]),
    (_product, [aten.mul.Tensor, aten.mul.Scalar]),
    (_quotient, [aten.div.Tensor]),
    (_power, [aten.pow.Tensor_Scalar]),
    (_of_power(Fraction(2)), [aten.square.default]),
    (_of_power(Fraction(1, 2)), [aten.sqrt.default]),
    (_of_power(Fraction(-1, 2)), [aten.rsqrt.default]),
    (_of_power(Fraction(-1)), [aten.reciprocal.default]),
    (_where, WHERE),
    (_masked_fill, [aten.masked_fill.Scalar]),
    (_scattered, [aten.scatter.value]),
    (_padded, [aten.pad.default, aten.constant_pad_nd.default]),
    (_picked, PICKED),
    (_compared, COMPARED),
    (_convolution, [aten.conv1d.default]),
    (_matmul, [aten.matmul.default, aten.mm.default, aten.bmm.default, aten.mv.default, aten.dot.default]),
    (_linear, [aten.linear.default]),
    (_addmm, [aten.addmm.default]),
    (_reduce, [aten.sum.dim_IntList, aten.sum.default, aten.mean.dim, aten.mean.default]),
    (_layer_norm, [aten.layer_norm.default]),
    (_rms_norm, [aten.rms_norm.default]),
    (_embedding, [aten.embedding.default]),
    (_index, [aten.index.Tensor]),
    (_gather, [aten.gather.default]),
    (wants_zero, WANTS_ZERO),
)
