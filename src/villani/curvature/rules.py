"""One rule for each kind of operation: rule(sweep, operation, *arguments) carries jets through it (`taylor.py`)."""

import operator
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F

from villani.curvature.jets import Jet, Probed, Tangents, add_to, as_jet, mapped

if TYPE_CHECKING:
    from villani.curvature.taylor import Sweep

aten = torch.ops.aten


def _linear_in_first(_: "Sweep", op: Any, a: Jet, *rest: Any, **options: Any) -> Any:
    return mapped(a, lambda t: op(t, *rest, **options))


def _split(_: "Sweep", op: Any, a: Jet, *rest: Any) -> list[Jet]:
    values = op(a.x, *rest)
    first = {k: op(t, *rest) for k, t in a.first.items()}
    second = {c: op(t, *rest) for c, t in a.second.items()}
    return [
        Jet(x, {k: t[i] for k, t in first.items()}, {c: t[i] for c, t in second.items()}) for i, x in enumerate(values)
    ]


def _getitem(_: "Sweep", __: Any, parts: Sequence[Jet], index: int) -> Jet:
    return parts[index]


def _cat(_: "Sweep", op: Any, parts: Sequence[Any], dim: int = 0) -> Jet:
    jets = [as_jet(part) for part in parts]

    def joined(terms: list[Tangents]) -> Tangents:
        keys = {k for term in terms for k in term}
        return {
            k: op([term.get(k, torch.zeros_like(jet.x)) for term, jet in zip(terms, jets, strict=True)], dim)
            for k in sorted(keys)
        }

    return Jet(op([jet.x for jet in jets], dim), joined([j.first for j in jets]), joined([j.second for j in jets]))


def _add(_: "Sweep", op: Any, a: Any, b: Any, *, alpha: float = 1) -> Jet:
    a, b = as_jet(a), as_jet(b)
    y = op(a.x, b.x, alpha=alpha)
    scale = alpha if op is aten.add.Tensor else -alpha
    first: Tangents = {}
    second: Tangents = {}
    for terms, sums in ((a.first, first), (a.second, second)):
        for k, t in terms.items():
            add_to(sums, k, t.expand_as(y))
    for terms, sums in ((b.first, first), (b.second, second)):
        for k, t in terms.items():
            add_to(sums, k, (t if scale == 1 else scale * t).expand_as(y))
    return Jet(y, first, second)


def _multiply(sweep: "Sweep", op: Any, a: Any, b: Any) -> Jet:
    return sweep.bilinear(op, a, b)


def _divide(sweep: "Sweep", op: Any, a: Any, b: Any) -> Jet:
    if not isinstance(b, Jet):
        return mapped(a, lambda t: op(t, b))
    inverse = b.x.reciprocal()
    return sweep.bilinear(torch.mul, a, sweep.elementwise(b, inverse, -(inverse**2), 2 * inverse**3))


def _linear(sweep: "Sweep", op: Any, a: Any, weight: Any, bias: Any = None) -> Jet:
    """What came before goes on as one, and the weight's own probe stays apart until the next linear map."""
    own = weight.probes if isinstance(weight, Probed) else list(weight.first) if isinstance(weight, Jet) else []
    if isinstance(a, Jet) and own:
        sweep.join(a)
        if isinstance(bias, Jet) and len(bias.first) == len(own):
            sweep.join(bias, into=own)
    if isinstance(weight, Probed):
        y = sweep.bilinear(op, a, weight.x)
        y.first |= sweep.through(as_jet(a).x, weight, y.x.shape)
    else:
        y = sweep.bilinear(op, a, weight)
    return y if bias is None else _add(sweep, aten.add.Tensor, y, bias)


def _addmm(sweep: "Sweep", _: Any, bias: Any, a: Any, b: Any) -> Jet:
    return _linear(sweep, torch.mm, a, b, bias)


def _where(_: "Sweep", op: Any, condition: torch.Tensor, a: Any, b: Any) -> Jet:
    a, b = as_jet(a), as_jet(b)
    y = op(condition, a.x, b.x)
    first: Tangents = {}
    second: Tangents = {}
    for terms, sums in ((a.first, first), (a.second, second)):
        for k, t in terms.items():
            add_to(sums, k, torch.where(condition, t, 0.0))
    for terms, sums in ((b.first, first), (b.second, second)):
        for k, t in terms.items():
            add_to(sums, k, torch.where(condition, 0.0, t))
    return Jet(y, first, second)


def _masked_fill(_: "Sweep", op: Any, a: Jet, mask: torch.Tensor, value: Any) -> Jet:
    return mapped(a, lambda t: t.masked_fill(mask, 0.0), op(a.x, mask, value))


def _softmax(sweep: "Sweep", op: Any, a: Jet, dim: int, *rest: Any) -> Jet:
    """d: y(u − ⟨y,u⟩); d²: y(u_c² − ⟨y,u_c²⟩) with u_c centred under y."""
    y = op(a.x, dim, *rest)

    def centred(t: torch.Tensor) -> torch.Tensor:
        weighted: torch.Tensor = (y * t).sum(dim, keepdim=True)
        return t - weighted

    first = {k: centred(t) for k, t in a.first.items()}
    second = {c: y * centred(t) for c, t in a.second.items()}
    for c, t in sweep.squares(first, torch.square).items():
        add_to(second, c, y * centred(t))
    return Jet(y, {k: y * t for k, t in first.items()}, second)


def _layer_norm(
    sweep: "Sweep", __: Any, a: Jet, shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5, *_: Any
) -> Jet:
    """n = c·r with c = a − mean, r = (mean c² + ε)^−½; then gain and bias."""
    dims = tuple(range(-len(shape), 0))
    centred = mapped(a, lambda t: t - t.mean(dims, keepdim=True))
    c = centred.x
    r = (c.square().mean(dims, keepdim=True) + eps).rsqrt()
    q1 = {k: 2 * (c * t).mean(dims, keepdim=True) for k, t in centred.first.items()}
    q2 = {k: 2 * (c * t).mean(dims, keepdim=True) for k, t in centred.second.items()}
    for k, t in sweep.squares(centred.first, lambda t: 2 * t.square().mean(dims, keepdim=True)).items():
        add_to(q2, k, t)
    variance = Jet(c, q1, q2)  # only its tangents are used
    scale = sweep.elementwise(variance, r, -0.5 * r**3, 0.75 * r**5)
    normed = sweep.bilinear(torch.mul, centred, scale)
    if weight is not None:
        normed = sweep.bilinear(torch.mul, normed, weight)
    return normed if bias is None else _add(sweep, aten.add.Tensor, normed, bias)


def _embedding(_: "Sweep", op: Any, weight: Jet, ids: torch.Tensor, *rest: Any) -> Jet:
    return mapped(weight, lambda t: F.embedding(ids, t), op(weight.x, ids, *rest))


def _tanh(sweep: "Sweep", _: Any, a: Jet) -> Jet:
    y = a.x.tanh()
    slope = 1 - y.square()
    return sweep.elementwise(a, y, slope, -2 * y * slope)


def _sigmoid(sweep: "Sweep", _: Any, a: Jet) -> Jet:
    y = a.x.sigmoid()
    slope = y * (1 - y)
    return sweep.elementwise(a, y, slope, slope * (1 - 2 * y))


def _silu(sweep: "Sweep", _: Any, a: Jet) -> Jet:
    s = a.x.sigmoid()
    slope = s * (1 - s)
    return sweep.elementwise(a, a.x * s, s + a.x * slope, slope * (2 + a.x * (1 - 2 * s)))


def _relu(sweep: "Sweep", _: Any, a: Jet) -> Jet:
    """Almost everywhere: the kinks' own curvature is not seen (THEORY.md §7)."""
    return sweep.elementwise(a, a.x.relu(), (a.x > 0).to(a.x.dtype), None)


def _gelu(sweep: "Sweep", op: Any, a: Jet, *, approximate: str = "none") -> Jet:
    x = a.x
    if approximate == "tanh":
        c, b = 0.7978845608028654, 0.044715  # √(2/π)
        inner = Jet(c * (x + b * x**3))
        t = inner.x.tanh()
        u1, u2, d = c * (1 + 3 * b * x**2), 6 * c * b * x, 1 - t.square()
        slope = 0.5 * (1 + t) + 0.5 * x * d * u1
        bend = d * u1 + 0.5 * x * (d * u2 - 2 * t * d * u1.square())
    else:
        density = torch.exp(-0.5 * x.square()) * 0.3989422804014327  # 1/√(2π)
        slope = 0.5 * (1 + torch.erf(x * 0.7071067811865476)) + x * density
        bend = density * (2 - x.square())
    return sweep.elementwise(a, op(x, approximate=approximate), slope, bend)


def _power(sweep: "Sweep", _: Any, a: Jet, n: float) -> Jet:
    bend = n * (n - 1) * a.x ** (n - 2) if n != 2 else torch.full_like(a.x, 2.0)
    return sweep.elementwise(a, a.x**n, n * a.x ** (n - 1), bend)


def _square(sweep: "Sweep", op: Any, a: Jet) -> Jet:
    return _power(sweep, op, a, 2)


def _rsqrt(sweep: "Sweep", _: Any, a: Jet) -> Jet:
    y = a.x.rsqrt()
    return sweep.elementwise(a, y, -0.5 * y**3, 0.75 * y**5)


BY_SEQUENCE = {aten.linear.default, aten.addmm.default, aten.layer_norm.default, aten.mul.Tensor}

RULES: dict[Any, Callable[..., Any]] = {
    **dict.fromkeys(
        [
            aten.view.default, aten._unsafe_view.default, aten.reshape.default, aten.transpose.int,
            aten.permute.default, aten.unsqueeze.default,
            aten.squeeze.dim, aten.expand.default, aten.slice.Tensor, aten.select.int, aten.clone.default,
            aten.alias.default, aten.contiguous.default, aten._to_copy.default, aten.neg.default, aten.mean.dim,
            aten.sum.dim_IntList,
        ],
        _linear_in_first,
    ),
    **dict.fromkeys([aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default], _split),
    **dict.fromkeys([aten.matmul.default, aten.bmm.default, aten.mm.default, aten.mul.Tensor], _multiply),
    **dict.fromkeys([aten.add.Tensor, aten.sub.Tensor], _add),
    **dict.fromkeys([aten.where.self, aten.where.ScalarOther, aten.where.ScalarSelf], _where),
    operator.getitem: _getitem,
    aten.cat.default: _cat,
    aten.div.Tensor: _divide,
    aten.linear.default: _linear,
    aten.addmm.default: _addmm,
    aten.masked_fill.Scalar: _masked_fill,
    aten.softmax.int: _softmax,
    aten.layer_norm.default: _layer_norm,
    aten.embedding.default: _embedding,
    aten.tanh.default: _tanh,
    aten.sigmoid.default: _sigmoid,
    aten.silu.default: _silu,
    aten.relu.default: _relu,
    aten.gelu.default: _gelu,
    aten.pow.Tensor_Scalar: _power,
    aten.square.default: _square,
    aten.rsqrt.default: _rsqrt,
}  # fmt: skip
