"""How smooth the operations of ATen are, THEORY.md §7. What is in no list is unknown, and what uses it does not pass.

Functions are taken as what they stand for: softplus is log(1 + eˣ), though torch returns x itself from 20 on. With a
threshold at which the two differ it is not, which `smoothness` looks at.
"""

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from villani.criteria.intervals import Range

aten = torch.ops.aten

# C^∞ everywhere in their real arguments; integer arguments, masks and indices being fixed
SMOOTH = {
    operator.getitem,
    # the same numbers elsewhere
    aten.alias.default, aten.clone.default, aten.contiguous.default, aten.view.default, aten._unsafe_view.default,
    aten.reshape.default, aten.flatten.using_ints, aten.transpose.int, aten.t.default, aten.permute.default,
    aten.unsqueeze.default, aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims, aten.expand.default,
    aten.repeat.default, aten.slice.Tensor, aten.select.int, aten.split.Tensor, aten.split_with_sizes.default,
    aten.chunk.default, aten.unbind.int, aten.embedding.default, aten.gather.default, aten.index.Tensor,
    aten.index_select.default, aten.flip.default, aten.roll.default, aten.diagonal.default, aten.cat.default,
    aten.stack.default, aten.where.self, aten.where.ScalarOther, aten.where.ScalarSelf, aten.masked_fill.Scalar,
    aten.masked_fill.Tensor, aten.constant_pad_nd.default, aten.triu.default, aten.tril.default,
    aten.slice_scatter.default, aten.select_scatter.default, aten.scatter.src, aten.scatter.value,
    aten.scatter_add.default, aten.index_put.default, aten.index_add.default,
    # polynomials
    aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.neg.default, aten.square.default, aten.sum.default,
    aten.sum.dim_IntList, aten.mean.default, aten.mean.dim, aten.cumsum.default, aten.prod.default, aten.prod.dim_int,
    aten.var.default, aten.var.dim, aten.var.correction, aten.linear.default, aten.matmul.default, aten.mm.default,
    aten.bmm.default, aten.mv.default, aten.dot.default, aten.addmm.default, aten.baddbmm.default,
    aten.einsum.default, aten.trace.default, aten.lerp.Scalar, aten.lerp.Tensor, aten.conv1d.default,
    aten.conv2d.default, aten.mse_loss.default, aten.nll_loss.default, aten.nll_loss_nd.default,
    # analytic on all numbers
    aten.exp.default, aten.exp2.default, aten.expm1.default, aten.sin.default, aten.cos.default, aten.sinh.default,
    aten.cosh.default, aten.tanh.default, aten.atan.default, aten.asinh.default, aten.erf.default, aten.erfc.default,
    aten.sigmoid.default, aten.log_sigmoid.default, aten.softplus.default, aten.gelu.default, aten.silu.default,
    aten.mish.default, aten.logaddexp.default, aten.logsumexp.default, aten.softmax.int, aten._softmax.default,
    aten._safe_softmax.default, aten.log_softmax.int, aten._log_softmax.default,
    aten.cross_entropy_loss.default,
    aten.binary_cross_entropy_with_logits.default,
}  # fmt: skip

# Continuous with kinks; True where `patterns.limits` or 0 tell where, so that ranges may put them out of reach
KINKED = {
    **dict.fromkeys([
        aten.relu.default, aten.relu6.default, aten.hardtanh.default, aten.clamp.default, aten.clamp.Tensor,
        aten.clamp_min.default, aten.clamp_max.default, aten.abs.default, aten.leaky_relu.default,
    ], True),
    **dict.fromkeys([
        aten.prelu.default, aten.rrelu.default, aten.selu.default, aten.hardswish.default, aten.hardsigmoid.default,
        aten.softshrink.default, aten.max.default, aten.max.dim, aten.max.other, aten.min.default, aten.min.dim,
        aten.min.other, aten.amax.default, aten.amin.default, aten.maximum.default, aten.minimum.default,
        aten.fmax.default, aten.fmin.default, aten.cummax.default, aten.cummin.default, aten.median.default,
        aten.median.dim, aten.kthvalue.default, aten.topk.default, aten.sort.default, aten.sort.stable,
        aten.max_pool1d.default, aten.max_pool2d.default, aten.adaptive_max_pool1d.default, aten.l1_loss.default,
        aten.hinge_embedding_loss.default, aten.margin_ranking_loss.default, aten.triplet_margin_loss.default,
    ], False),
}  # fmt: skip

# Continuously differentiable once; ELU if its two slopes at 0 agree, as they do by default
ONCE = {aten.elu.default, aten.celu.default, aten.huber_loss.default, aten.smooth_l1_loss.default}

DISCONTINUOUS = {
    aten.round.default, aten.round.decimals, aten.floor.default, aten.ceil.default, aten.trunc.default,
    aten.frac.default, aten.fmod.Scalar, aten.fmod.Tensor, aten.remainder.Scalar, aten.remainder.Tensor,
    aten.div.Tensor_mode, aten.div.Scalar_mode, aten.floor_divide.default, aten.sign.default, aten.sgn.default,
    aten.heaviside.default, aten.hardshrink.default, aten.threshold.default, aten.argmax.default,
    aten.argmin.default, aten.argsort.default, aten.argsort.stable, aten.bucketize.Tensor, aten.searchsorted.Tensor,
    aten.multinomial.default, aten.bernoulli.default, aten.quantize_per_tensor.default,
    aten.fake_quantize_per_tensor_affine.default, aten.fake_quantize_per_channel_affine.default,
    aten.nonzero.default,
}  # fmt: skip

COMPARISONS = {
    aten.gt.Scalar, aten.gt.Tensor, aten.ge.Scalar, aten.ge.Tensor, aten.lt.Scalar, aten.lt.Tensor, aten.le.Scalar,
    aten.le.Tensor, aten.eq.Scalar, aten.eq.Tensor, aten.ne.Scalar, aten.ne.Tensor, aten.logical_not.default,
}  # fmt: skip

# Autograd goes no further
CUTS = {aten.detach.default, aten.item.default, aten._local_scalar_dense.default}


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


# C^∞ but for singular points; normalisations are so for ε > 0, which is looked at apart
SINGULAR: dict[Any, Callable[[torch.fx.Node], list[Demand]]] = {
    aten.pow.Tensor_Scalar: _power,
    aten.pow.Tensor_Tensor: _power,
    **dict.fromkeys([
        aten.pow.Scalar, aten.log.default, aten.log2.default, aten.log10.default, aten.sqrt.default,
        aten.rsqrt.default, aten.linalg_vector_norm.default,
    ], _always(_positive())),
    aten.reciprocal.default: _always(_nonzero()),
    aten.div.Tensor: _always(_nonzero(1)),
    aten.log1p.default: _always(_inside(-1.0, float("inf"))),
    **dict.fromkeys([aten.acos.default, aten.asin.default, aten.atanh.default], _always(_inside(-1.0, 1.0))),
    **dict.fromkeys([aten.std.default, aten.std.dim, aten.std.correction], _always(_spread())),
    **dict.fromkeys([aten.layer_norm.default, aten.rms_norm.default, aten.group_norm.default], _always()),
}  # fmt: skip
