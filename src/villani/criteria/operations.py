"""How smooth the operations of ATen are, THEORY.md §7. What is in no row is unknown, and what uses it does not pass.

Functions are taken as what they stand for: softplus is log(1 + eˣ), though torch returns x itself from 20 on. With a
threshold at which the two differ it is not, which `smoothness` looks at.
"""

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch

from villani.criteria.intervals import Range, of_number
from villani.criteria.patterns import arguments, is_floating, limits
from villani.objective.families import CAST, CHOSEN, MOVED, SOFTMAX, SPLIT, WHERE
from villani.objective.interpret import Table

aten = torch.ops.aten
Kind = Literal["lipschitz", "discontinuous", "singular", "undecided", "unknown", "gradient"]
_SOFTPLUS = 15.0  # from this threshold on, softplus jumps by less than float32 tells apart
_ONCE = "∇L is Lipschitz but not differentiable: ∇²L exists almost everywhere and jumps, and nothing beyond it exists"


class Flaw(NamedTuple):
    """What keeps an operation from being C^∞; the consequence where it is not that of the kind."""

    kind: Kind
    consequence: str | None = None


Judgement = Callable[[torch.fx.Node, Mapping[torch.fx.Node, Range]], Flaw | None]


@dataclass(frozen=True)
class Demand:
    """What an argument must satisfy for an operation to be C^∞ there.

    Attributes:
        position: which argument.
        met: whether a range lies in the domain.
        violated: which entries of a tensor do not.
    """

    position: int
    met: Callable[[Range], bool]
    violated: Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Regularity:
    """How smooth an operation is.

    Attributes:
        flaw: (node, ranges) → what keeps it from being C^∞, singular points apart.
        demands: what its arguments must satisfy at singular points.
    """

    flaw: Judgement
    demands: Callable[[torch.fx.Node], list[Demand]] = lambda _: []


def _smooth(*_: object) -> None:
    return None


def _always_flawed(kind: Kind) -> Judgement:
    return lambda *_: Flaw(kind)


def _cast(node: torch.fx.Node, _: Mapping[torch.fx.Node, Range]) -> Flaw | None:
    return None if is_floating(node) else Flaw("discontinuous")


def _softplus(node: torch.fx.Node, _: Mapping[torch.fx.Node, Range]) -> Flaw | None:
    """It has to be log(1 + e^{βx})/β up to rounding where torch returns x itself."""
    given = arguments(node)
    if given["beta"] and given["threshold"] >= _SOFTPLUS:
        return None
    return Flaw("discontinuous" if given["beta"] else "singular")


def _norm(node: torch.fx.Node, _: Mapping[torch.fx.Node, Range]) -> Flaw | None:
    return None if arguments(node)["ord"] == 2 else Flaw("lipschitz")


def _elu(node: torch.fx.Node, _: Mapping[torch.fx.Node, Range]) -> Flaw | None:
    """Its two slopes at 0 agree by default."""
    given = arguments(node)
    return Flaw("lipschitz", None if given["alpha"] * given["input_scale"] != 1 else _ONCE)


def _smooth_l1(node: torch.fx.Node, _: Mapping[torch.fx.Node, Range]) -> Flaw | None:
    return Flaw("lipschitz", None if arguments(node)["beta"] == 0 else _ONCE)


def _kinked(node: torch.fx.Node, _: Mapping[torch.fx.Node, Range]) -> Flaw | None:
    """What is largest jumps, how large does not."""
    chosen = any(u.target is operator.getitem and u.args[1] == 1 for u in node.users)
    return Flaw("discontinuous" if chosen else "lipschitz")


def _kinked_at(node: torch.fx.Node, ranges: Mapping[torch.fx.Node, Range]) -> Flaw | None:
    """Kinks that `patterns.limits` or 0 tell: ranges may put them out of reach."""
    a = ranges[node.args[0]]  # type: ignore[index]
    points = (0.0,) if node.target in (aten.abs.default, aten.leaky_relu.default) else limits(node)
    bounds = [ranges[p] if isinstance(p, torch.fx.Node) else of_number(p) for p in points if p is not None]
    within = any(a.low < bound.high and bound.low < a.high for bound in bounds)
    return _kinked(node, ranges) if within else None


def _positive(position: int = 0) -> Demand:
    return Demand(position, lambda a: a.positive or a.low > 0, lambda x: x <= 0)


def _nonzero(position: int = 0) -> Demand:
    return Demand(position, Range.avoids_zero, lambda x: x == 0)


def _inside(low: float, high: float) -> Demand:
    return Demand(
        0, lambda a: low < a.low and (a.high < high or high == float("inf")), lambda x: (x <= low) | (x >= high)
    )


def _spread() -> Demand:
    """Of a standard deviation over the last dimension or all: it has a kink where all entries agree."""
    return Demand(0, lambda _: False, lambda x: (x == x[..., :1]).all(-1))


def _power(node: torch.fx.Node) -> list[Demand]:
    n = node.args[1]
    if isinstance(n, int | float) and math.isfinite(n) and n == int(n):
        return [] if n >= 0 else [_nonzero()]
    return [_positive()]


def _always(*demands: Demand) -> Callable[[torch.fx.Node], list[Demand]]:
    return lambda _: list(demands)


RULES = Table[Regularity](
    (Regularity(_cast), [CAST]),
    # C^∞ everywhere in their real arguments; integer arguments, masks and indices being fixed
    (Regularity(_smooth), [
        operator.getitem,
        # the same numbers elsewhere
        *MOVED, *SPLIT, *CHOSEN, *WHERE, aten.embedding.default, aten.cat.default, aten.stack.default,
        aten.masked_fill.Scalar, aten.masked_fill.Tensor, aten.constant_pad_nd.default, aten.pad.default,
        aten.view_as_complex.default, aten.view_as_real.default, aten.triu.default,
        aten.tril.default, aten.slice_scatter.default, aten.select_scatter.default, aten.scatter.src,
        aten.scatter.value, aten.scatter_add.default, aten.index_put.default, aten.index_add.default,
        # polynomials
        aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.neg.default, aten.square.default, aten.sum.default,
        aten.sum.dim_IntList, aten.mean.default, aten.mean.dim, aten.cumsum.default, aten.prod.default,
        aten.prod.dim_int, aten.var.default, aten.var.dim, aten.var.correction, aten.linear.default,
        aten.matmul.default, aten.mm.default, aten.bmm.default, aten.mv.default, aten.dot.default,
        aten.addmm.default, aten.baddbmm.default, aten.einsum.default, aten.trace.default, aten.lerp.Scalar,
        aten.lerp.Tensor, aten.conv1d.default, aten.conv2d.default, aten.mse_loss.default, aten.nll_loss.default,
        aten.nll_loss_nd.default,
        # analytic on all numbers
        aten.exp.default, aten.exp2.default, aten.expm1.default, aten.sin.default, aten.cos.default,
        aten.sinh.default, aten.cosh.default, aten.tanh.default, aten.atan.default, aten.asinh.default,
        aten.erf.default, aten.erfc.default, aten.sigmoid.default, aten.log_sigmoid.default, aten.gelu.default,
        aten.silu.default, aten.mish.default, aten.logaddexp.default, aten.logsumexp.default, *SOFTMAX,
        aten.log_softmax.int, aten._log_softmax.default, aten.cross_entropy_loss.default,
        aten.binary_cross_entropy_with_logits.default,
    ]),
    (Regularity(_softplus), [aten.softplus.default]),
    # C^∞ but for singular points; normalisations are so for ε > 0, which `smoothness` looks at
    (Regularity(_smooth), [aten.layer_norm.default, aten.rms_norm.default, aten.group_norm.default]),
    (Regularity(_smooth, _power), [aten.pow.Tensor_Scalar, aten.pow.Tensor_Tensor]),
    (Regularity(_smooth, _always(_positive())), [
        aten.pow.Scalar, aten.log.default, aten.log2.default, aten.log10.default, aten.sqrt.default,
        aten.rsqrt.default,
    ]),
    (Regularity(_norm, _always(_positive())), [aten.linalg_vector_norm.default]),
    (Regularity(_smooth, _always(_nonzero())), [aten.reciprocal.default]),
    (Regularity(_smooth, _always(_nonzero(1))), [aten.div.Tensor]),
    (Regularity(_smooth, _always(_inside(-1.0, float("inf")))), [aten.log1p.default]),
    (Regularity(_smooth, _always(_inside(-1.0, 1.0))), [aten.acos.default, aten.asin.default, aten.atanh.default]),
    (Regularity(_smooth, _always(_spread())), [aten.std.default, aten.std.dim, aten.std.correction]),
    # continuous with kinks
    (Regularity(_kinked_at), [
        aten.relu.default, aten.relu6.default, aten.hardtanh.default, aten.clamp.default, aten.clamp.Tensor,
        aten.clamp_min.default, aten.clamp_max.default, aten.abs.default, aten.leaky_relu.default,
    ]),
    (Regularity(_kinked), [
        aten.prelu.default, aten.rrelu.default, aten.selu.default, aten.hardswish.default, aten.hardsigmoid.default,
        aten.softshrink.default, aten.max.default, aten.max.dim, aten.max.other, aten.min.default, aten.min.dim,
        aten.min.other, aten.amax.default, aten.amin.default, aten.maximum.default, aten.minimum.default,
        aten.fmax.default, aten.fmin.default, aten.cummax.default, aten.cummin.default, aten.median.default,
        aten.median.dim, aten.kthvalue.default, aten.topk.default, aten.sort.default, aten.sort.stable,
        aten.max_pool1d.default, aten.max_pool2d.default, aten.adaptive_max_pool1d.default, aten.l1_loss.default,
        aten.hinge_embedding_loss.default, aten.margin_ranking_loss.default, aten.triplet_margin_loss.default,
    ]),
    # continuously differentiable once
    (Regularity(_elu), [aten.elu.default]),
    (Regularity(_smooth_l1), [aten.smooth_l1_loss.default]),
    (Regularity(lambda *_: Flaw("lipschitz", _ONCE)), [aten.celu.default, aten.huber_loss.default]),
    (Regularity(_always_flawed("discontinuous")), [
        aten.round.default, aten.round.decimals, aten.floor.default, aten.ceil.default, aten.trunc.default,
        aten.frac.default, aten.fmod.Scalar, aten.fmod.Tensor, aten.remainder.Scalar, aten.remainder.Tensor,
        aten.div.Tensor_mode, aten.div.Scalar_mode, aten.floor_divide.default, aten.sign.default, aten.sgn.default,
        aten.heaviside.default, aten.hardshrink.default, aten.threshold.default, aten.argmax.default,
        aten.argmin.default, aten.argsort.default, aten.argsort.stable, aten.bucketize.Tensor,
        aten.searchsorted.Tensor, aten.multinomial.default, aten.bernoulli.default, aten.quantize_per_tensor.default,
        aten.fake_quantize_per_tensor_affine.default, aten.fake_quantize_per_channel_affine.default,
        aten.nonzero.default,
        # comparisons
        aten.gt.Scalar, aten.gt.Tensor, aten.ge.Scalar, aten.ge.Tensor, aten.lt.Scalar, aten.lt.Tensor,
        aten.le.Scalar, aten.le.Tensor, aten.eq.Scalar, aten.eq.Tensor, aten.ne.Scalar, aten.ne.Tensor,
        aten.logical_not.default,
    ]),
    # autograd goes no further
    (Regularity(_always_flawed("gradient")), [
        aten.detach.default, aten.item.default, aten._local_scalar_dense.default,
    ]),
)  # fmt: skip
