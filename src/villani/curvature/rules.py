"""One rule for each kind of operation: rule(sweep, operation, *arguments) carries jets through it (`taylor.py`)."""

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn import functional as F

from villani.curvature import elementary
from villani.curvature.algebra import JetAlgebra
from villani.curvature.jets import Jet, Probed, Tangents, add_to, as_jet, mapped
from villani.errors import InputError
from villani.objective.families import CAST, CHOSEN, EXTREME, MOVED, PICKED, SOFTMAX, SPLIT, WHERE
from villani.objective.interpret import Table

aten = torch.ops.aten
TaylorRule = Callable[..., Any]


def _linear_in_first(_: JetAlgebra, op: Any, a: Jet, *rest: Any, **options: Any) -> Any:
    move = aten.reshape.default if op is aten.view.default else op  # tangents may lie in memory as values do not
    return mapped(a, lambda t: move(t, *rest, **options))


def _split(_: JetAlgebra, op: Any, a: Jet, *rest: Any) -> list[Jet]:
    values = op(a.x, *rest)
    first = {k: op(t, *rest) for k, t in a.first.items()}
    second = {c: op(t, *rest) for c, t in a.second.items()}
    return [
        Jet(x, {k: t[i] for k, t in first.items()}, {c: t[i] for c, t in second.items()}) for i, x in enumerate(values)
    ]


def _getitem(_: JetAlgebra, __: Any, parts: Sequence[Jet], index: int) -> Jet:
    return parts[index]


def _cat(_: JetAlgebra, op: Any, parts: Sequence[Any], dim: int = 0) -> Jet:
    jets = [as_jet(part) for part in parts]

    def joined(terms: list[Tangents]) -> Tangents:
        keys = {k for term in terms for k in term}
        return {
            k: op([term.get(k, torch.zeros_like(jet.x)) for term, jet in zip(terms, jets, strict=True)], dim)
            for k in sorted(keys)
        }

    return Jet(op([jet.x for jet in jets], dim), joined([j.first for j in jets]), joined([j.second for j in jets]))


def _add(_: JetAlgebra, op: Any, a: Any, b: Any, *, alpha: float = 1) -> Jet:
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


def _multiply(sweep: JetAlgebra, op: Any, a: Any, b: Any) -> Jet:
    return sweep.bilinear(op, a, b)


def _divide(sweep: JetAlgebra, op: Any, a: Any, b: Any) -> Jet:
    if not isinstance(b, Jet):
        return mapped(a, lambda t: op(t, b))
    inverse = b.x.reciprocal()
    return sweep.bilinear(torch.mul, a, sweep.elementwise(b, inverse, -(inverse**2), 2 * inverse**3))


def _linear(sweep: JetAlgebra, op: Any, a: Any, weight: Any, bias: Any = None) -> Jet:
    """What came before goes on as one, and the weight's own probe stays apart until the next linear map."""
    own = weight.probes if isinstance(weight, Probed) else list(weight.first) if isinstance(weight, Jet) else []
    if isinstance(a, Jet) and own:
        sweep.join(a)
        if isinstance(bias, Jet) and len(bias.first) == len(own):
            sweep.join(bias, into=own)
    if isinstance(weight, Probed):
        y = sweep.own(sweep.bilinear(op, a, weight.x), as_jet(a).x, weight, op)
    else:
        y = sweep.bilinear(op, a, weight)
    return y if bias is None else _add(sweep, aten.add.Tensor, y, bias)


def _addmm(sweep: JetAlgebra, _: Any, bias: Any, a: Any, b: Any) -> Jet:
    return _linear(sweep, torch.mm, a, b, bias)


def _where(_: JetAlgebra, op: Any, condition: torch.Tensor, a: Any, b: Any) -> Jet:
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


def _masked_fill(_: JetAlgebra, op: Any, a: Jet, mask: torch.Tensor, value: Any) -> Jet:
    return mapped(a, lambda t: t.masked_fill(mask, 0.0), op(a.x, mask, value))


def _filled(_: JetAlgebra, op: Any, a: Jet, *rest: Any, **options: Any) -> Jet:
    """Padded by, or partly replaced with, a number: linear but for what this adds."""
    names = [argument.name for argument in op._schema.arguments[1:]]
    still = [0.0 if name == "value" else r for name, r in zip(names, rest, strict=False)]
    named = {name: 0.0 if name == "value" else v for name, v in options.items()}
    return mapped(a, lambda t: op(t, *still, **named), op(a.x, *rest, **options))


def _jointly_linear(*places: int) -> Callable[..., Jet]:
    """Rule of an operation that is linear in the arguments at these places taken together."""

    def rule(_: JetAlgebra, op: Any, *given: Any, **options: Any) -> Jet:
        jets = {place: as_jet(given[place]) for place in places}

        def run(parts: dict[int, Any]) -> torch.Tensor:
            found: torch.Tensor = op(*[parts.get(place, g) for place, g in enumerate(given)], **options)
            return found

        def terms(orders: dict[int, Tangents]) -> Tangents:
            keys = sorted({k for order in orders.values() for k in order})
            return {k: run({p: orders[p].get(k, torch.zeros_like(jets[p].x)) for p in places}) for k in keys}

        return Jet(
            run({p: j.x for p, j in jets.items()}),
            terms({p: j.first for p, j in jets.items()}),
            terms({p: j.second for p, j in jets.items()}),
        )

    return rule


def _picked(_: JetAlgebra, op: Any, a: Jet, *rest: Any, **options: Any) -> tuple[Jet, torch.Tensor]:
    """The largest, or all in order: which entries these are does not change nearby."""
    values, places = op(a.x, *rest, **options)
    given = dict(zip((x.name for x in op._schema.arguments[1:] if not x.kwarg_only), rest, strict=False)) | options
    dim, kept = given.get("dim", -1), values.dim() == a.x.dim()

    def gather(t: torch.Tensor) -> torch.Tensor:
        if a.x.dim() == 0:
            return t
        found = t.gather(dim, places if kept else places.unsqueeze(dim))
        return found if kept else found.squeeze(dim)

    return mapped(a, gather, values), places


def _extreme(_: JetAlgebra, op: Any, a: Any, b: Any) -> Jet:
    """The larger or the smaller of two; half of each where they are equal, as autograd has it."""
    a, b = as_jet(a), as_jet(b)
    y = op(a.x, b.x)
    share = torch.where(a.x == b.x, 0.5, (y == a.x).to(y.dtype))
    first: Tangents = {}
    second: Tangents = {}
    for jet, weight in ((a, share), (b, 1 - share)):
        for terms, sums in ((jet.first, first), (jet.second, second)):
            for k, t in terms.items():
                add_to(sums, k, weight * t)
    return Jet(y, first, second)


def _clamp(sweep: JetAlgebra, _: Any, a: Jet, low: Any = None, high: Any = None) -> Jet:
    inside = torch.ones_like(a.x)
    if low is not None:
        inside = inside * (a.x >= low)
    if high is not None:
        inside = inside * (a.x <= high)
    return sweep.elementwise(a, a.x.clamp(low, high), inside, None)


def _clamp_between(sweep: JetAlgebra, _: Any, a: Any, low: Any = None, high: Any = None) -> Any:
    """Between bounds that may move too."""
    if low is not None:
        a = _extreme(sweep, torch.maximum, a, low)
    return a if high is None else _extreme(sweep, torch.minimum, a, high)


def _grouped_product(sweep: JetAlgebra, op: Any, a: Any, weight: Any, *rest: Any, **options: Any) -> Jet:
    """Rows of a, in groups, times a matrix for each group: linear in each."""
    return sweep.bilinear(lambda x, w: op(x, w, *rest, **options), a, weight)


def _convolution(sweep: JetAlgebra, op: Any, a: Any, weight: Any, bias: Any = None, *rest: Any) -> Jet:
    y = sweep.bilinear(lambda x, w: op(x, w, None, *rest), a, weight)
    if bias is None:
        return y
    columns = mapped(as_jet(bias), lambda t: t.reshape(-1, *[1] * (y.x.dim() - 2)))
    return _add(sweep, aten.add.Tensor, y, columns)


def _softmax(sweep: JetAlgebra, op: Any, a: Jet, dim: int, *rest: Any) -> Jet:
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


def _logsumexp(sweep: JetAlgebra, op: Any, a: Jet, dims: Any, keepdim: bool = False) -> Jet:
    """d: ⟨p,u⟩; d²: ⟨p,u_c²⟩ − ⟨p,u_c⟩², with p the softmax over the dimensions."""
    dims = [dims] if isinstance(dims, int) else list(dims)
    whole = op(a.x, dims, True)
    p = (a.x - whole).exp()

    def mean(t: torch.Tensor) -> torch.Tensor:
        weighted: torch.Tensor = (p * t).sum(dims, keepdim=True)
        return weighted

    first = {k: mean(t) for k, t in a.first.items()}
    second = {c: mean(t) for c, t in a.second.items()}
    for c, t in sweep.squares(a.first, lambda t: mean((t - mean(t)).square())).items():
        add_to(second, c, t)
    return mapped(Jet(whole, first, second), lambda t: t if keepdim else t.squeeze(dims))


def _variance(
    sweep: JetAlgebra, op: Any, a: Jet, dims: Any = None, unbiased: Any = None, keepdim: bool = False, *,
    correction: float | None = None,
) -> Jet:  # fmt: skip
    """Σ (x − mean)²/(n − correction), which is 1 by default; `unbiased` stands for 1 or 0."""
    dims = list(range(a.x.dim())) if dims in (None, []) else [dims] if isinstance(dims, int) else list(dims)
    given = correction if correction is not None else 1 if unbiased is None else int(unbiased)
    centred = mapped(a, lambda t: t - t.mean(dims, keepdim=True))
    count = math.prod(a.x.shape[d] for d in dims)
    return mapped(elementary.square(sweep, op, centred), lambda t: t.sum(dims, keepdim=keepdim) / (count - given))


def _vector_norm(
    sweep: JetAlgebra, op: Any, a: Jet, order: float = 2, dims: Any = None, keepdim: bool = False, **_: Any
) -> Jet:
    """(Σ x²)^½ of order 2; of others nothing is known."""
    if order != 2:
        raise InputError(f"no Taylor rule for {op} of order {order:g}: use trace='gauss-newton'")
    dims = list(range(a.x.dim())) if dims is None else dims
    square = mapped(elementary.square(sweep, op, a), lambda t: t.sum(dims, keepdim=keepdim))
    return elementary.sqrt(sweep, op, square)


def _layer_norm(
    sweep: JetAlgebra, __: Any, a: Jet, shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5, *_: Any
) -> Jet:
    """n = c·r with c = a − mean, r = (mean c² + ε)^−½; then gain and bias."""
    dims = tuple(range(-len(shape), 0))
    centred = mapped(a, lambda t: t - t.mean(dims, keepdim=True))
    c = centred.x
    spread = c.square().mean(dims, keepdim=True) + eps
    r = spread.rsqrt()
    q1 = {k: 2 * (c * t).mean(dims, keepdim=True) for k, t in centred.first.items()}
    q2 = {k: 2 * (c * t).mean(dims, keepdim=True) for k, t in centred.second.items()}
    for k, t in sweep.squares(centred.first, lambda t: 2 * t.square().mean(dims, keepdim=True)).items():
        add_to(q2, k, t)
    variance = Jet(spread, q1, q2)
    scale = sweep.elementwise(variance, r, -0.5 * r**3, 0.75 * r**5)
    normed = sweep.bilinear(torch.mul, centred, scale)
    if weight is not None:
        normed = sweep.bilinear(torch.mul, normed, weight)
    return normed if bias is None else _add(sweep, aten.add.Tensor, normed, bias)


def _rms_norm(sweep: JetAlgebra, _: Any, a: Any, shape: Any, weight: Any = None, eps: float | None = None) -> Jet:
    """a·(mean a² + ε)^−½, then gain."""
    a = as_jet(a)
    dims = tuple(range(-len(shape), 0))
    square = mapped(elementary.power(sweep, _, a, 2), lambda t: t.mean(dims, keepdim=True))
    square.x = square.x + (torch.finfo(a.x.dtype).eps if eps is None else eps)
    normed = sweep.bilinear(torch.mul, a, elementary.rsqrt(sweep, _, square))
    return normed if weight is None else sweep.bilinear(torch.mul, normed, weight)


def _embedding(_: JetAlgebra, op: Any, weight: Jet, ids: torch.Tensor, *rest: Any) -> Jet:
    return mapped(weight, lambda t: F.embedding(ids, t), op(weight.x, ids, *rest))


BY_SEQUENCE = {aten.linear.default, aten.addmm.default, aten.layer_norm.default, aten.mul.Tensor}

RULES = Table[TaylorRule](
    (_linear_in_first, [
        *MOVED, CAST, *CHOSEN, aten.neg.default, aten.mean.dim, aten.mean.default, aten.sum.dim_IntList,
        aten.sum.default, aten.cumsum.default, aten.tril.default, aten.triu.default, aten.view_as_complex.default,
        aten.view_as_real.default,
    ]),
    (_split, SPLIT),
    (_getitem, [operator.getitem]),
    (_cat, [aten.cat.default]),
    (_multiply, [aten.matmul.default, aten.bmm.default, aten.mm.default, aten.mul.Tensor]),
    (_add, [aten.add.Tensor, aten.sub.Tensor]),
    (_divide, [aten.div.Tensor]),
    (_linear, [aten.linear.default]),
    (_addmm, [aten.addmm.default]),
    (_grouped_product, [aten._grouped_mm.default, "transformers.grouped_mm_fallback.default"]),
    (_convolution, [aten.conv1d.default]),
    (_where, WHERE),
    (_masked_fill, [aten.masked_fill.Scalar]),
    (_filled, [aten.pad.default, aten.constant_pad_nd.default, aten.scatter.value]),
    (_picked, PICKED),
    (_extreme, EXTREME),
    (_jointly_linear(0, 1), [aten.select_scatter.default, aten.slice_scatter.default]),
    (_jointly_linear(0, 2), [aten.index_put.default]),
    (_jointly_linear(0, 3), [aten.scatter.src, aten.scatter_add.default, aten.index_add.default]),
    (_softmax, SOFTMAX),
    (_logsumexp, [aten.logsumexp.default]),
    (_variance, [aten.var.dim, aten.var.correction]),
    (_vector_norm, [aten.linalg_vector_norm.default]),
    (_layer_norm, [aten.layer_norm.default]),
    (_rms_norm, [aten.rms_norm.default]),
    (_embedding, [aten.embedding.default]),
    (_clamp, [aten.clamp.default, aten.clamp_min.default]),
    (_clamp_between, [aten.clamp.Tensor]),
    (elementary.tanh, [aten.tanh.default]),
    (elementary.sigmoid, [aten.sigmoid.default]),
    (elementary.silu, [aten.silu.default]),
    (elementary.relu, [aten.relu.default]),
    (elementary.gelu, [aten.gelu.default]),
    (elementary.power, [aten.pow.Tensor_Scalar]),
    (elementary.square, [aten.square.default]),
    (elementary.rsqrt, [aten.rsqrt.default]),
    (elementary.sqrt, [aten.sqrt.default]),
    (elementary.reciprocal, [aten.reciprocal.default]),
    (elementary.exp, [aten.exp.default, aten.expm1.default]),
    (elementary.log, [aten.log.default]),
    (elementary.softplus, [aten.softplus.default]),
    (elementary.log_sigmoid, [aten.log_sigmoid.default]),
    (elementary.abs, [aten.abs.default]),
    (elementary.sin, [aten.sin.default]),
    (elementary.cos, [aten.cos.default]),
)  # fmt: skip
