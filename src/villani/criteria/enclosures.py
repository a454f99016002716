"""Between which bounds the operations of a traced loss leave their results: the table of rules.

A rule gives the range of the true function on real numbers; the roundings of the operation itself are added to it. An
argument that a rule does not read has to be the default: else nothing is known, as of an operation without a rule.
"""

import math
import operator
from collections.abc import Callable

import torch

from villani.criteria.enclosed_functions import (
    added,
    clamped,
    contracted,
    convolved,
    cumulated,
    either,
    filled,
    gated,
    joined,
    larger,
    leaky,
    logarithm,
    mean,
    monotone,
    moved,
    near,
    norm,
    product,
    put,
    quotient,
    raised,
    raised_to,
    sigmoid,
    smaller,
    softplus,
    summed,
    variance,
    wave,
    zeroed,
)
from villani.criteria.enclosed_losses import (
    binary_cross_entropy,
    cross_entropy,
    likelihood,
    log_softmax,
    log_sum,
    normalised,
    softmax,
    squared_error,
)
from villani.criteria.enclosure import CORRECT, EXACT, FUNCTION, Enclosure, Operation
from villani.criteria.intervals import INFINITY, Range, absolute, minus, reciprocal
from villani.objective.families import CAST, CHOSEN, MOVED, PICKED, SOFTMAX, SPLIT, WHERE
from villani.objective.interpret import Table

aten = torch.ops.aten


def _rule(
    function: Callable[[Operation], Range], reads: str | None, steps: float = FUNCTION, least: float = -INFINITY,
    most: float = INFINITY,
) -> Enclosure:  # fmt: skip
    return Enclosure(function, None if reads is None else frozenset(reads.split()), steps, least, most)


RULES = Table[Enclosure](
    (_rule(moved, None, EXACT), [
        operator.getitem, *MOVED, *SPLIT, *CHOSEN, *PICKED, aten.detach.default, aten.embedding.default,
        aten.amax.default, aten.amin.default, aten.max.default, aten.min.default,
    ]),
    (_rule(moved, None, CORRECT), [CAST]),
    (_rule(joined, None, EXACT), [aten.cat.default, aten.stack.default]),
    (_rule(either, None, EXACT), [*WHERE, aten.where.Scalar]),
    (_rule(filled, None, EXACT), [aten.masked_fill.Scalar, aten.masked_fill.Tensor, aten.constant_pad_nd.default]),
    (_rule(zeroed, None, EXACT), [aten.triu.default, aten.tril.default]),
    (_rule(added, "self other alpha", CORRECT), [aten.add.Tensor, aten.sub.Tensor]),
    (_rule(lambda o: minus(o.range("self")), "self", EXACT), [aten.neg.default]),
    (_rule(product, "self other", CORRECT), [aten.mul.Tensor]),
    (_rule(quotient, "self other", CORRECT), [aten.div.Tensor]),
    (_rule(raised, "self exponent"), [aten.pow.Tensor_Scalar]),
    (_rule(raised_to(2), "self", CORRECT), [aten.square.default]),
    (_rule(raised_to(0.5), "self", 3.0), [aten.sqrt.default]),
    (_rule(raised_to(-0.5), "self"), [aten.rsqrt.default]),
    (_rule(lambda o: reciprocal(o.range("self")), "self", CORRECT), [aten.reciprocal.default]),
    (_rule(lambda o: absolute(o.range("self")), "self", EXACT), [aten.abs.default]),
    (_rule(summed, "self dim keepdim dtype", CORRECT), [aten.sum.default, aten.sum.dim_IntList]),
    (_rule(mean, "self dim keepdim dtype", CORRECT), [aten.mean.default, aten.mean.dim]),
    (_rule(cumulated, "self dim dtype", CORRECT), [aten.cumsum.default]),
    (_rule(variance, "self dim correction unbiased keepdim", CORRECT), [
        aten.var.correction, aten.var.dim, aten.var.default,
    ]),
    (_rule(norm, "self ord dim keepdim dtype"), [aten.linalg_vector_norm.default]),
    (_rule(contracted("input", "weight", "bias"), "input weight bias", CORRECT), [aten.linear.default]),
    (_rule(contracted("mat1", "mat2", "self"), "self mat1 mat2", CORRECT), [aten.addmm.default]),
    (_rule(contracted("batch1", "batch2", "self"), "self batch1 batch2", CORRECT), [aten.baddbmm.default]),
    (_rule(contracted("self", "other"), "self other", CORRECT), [aten.matmul.default]),
    (_rule(contracted("self", "mat2"), "self mat2", CORRECT), [aten.mm.default, aten.bmm.default]),
    (_rule(contracted("self", "vec"), "self vec", CORRECT), [aten.mv.default]),
    (_rule(contracted("self", "tensor"), "self tensor", CORRECT), [aten.dot.default]),
    (_rule(convolved, "input weight bias stride padding dilation groups", CORRECT), [aten.conv1d.default]),
    (_rule(put, None, EXACT), [aten.scatter.src, aten.scatter.value, aten.index_put.default]),
    (_rule(larger, "self other", EXACT), [aten.maximum.default, aten.max.other]),
    (_rule(smaller, "self other", EXACT), [aten.minimum.default, aten.min.other]),
    (_rule(monotone(near(math.exp), positive=True), "self"), [aten.exp.default]),
    (_rule(monotone(near(math.expm1)), "self", least=-1.0), [aten.expm1.default]),
    (_rule(monotone(near(sigmoid), positive=True), "self", least=0.0, most=1.0), [aten.sigmoid.default]),
    (_rule(monotone(near(math.tanh)), "self", least=-1.0, most=1.0), [aten.tanh.default]),
    (_rule(monotone(near(math.erf)), "self", least=-1.0, most=1.0), [aten.erf.default]),
    (_rule(monotone(near(math.atan)), "self"), [aten.atan.default]),
    (_rule(wave, "self", least=-1.0, most=1.0), [aten.sin.default, aten.cos.default]),
    (_rule(softplus, "self beta threshold", EXACT), [aten.softplus.default]),
    (_rule(gated(-0.17005), "self approximate"), [aten.gelu.default]),
    (_rule(gated(-0.27847), "self"), [aten.silu.default]),
    (_rule(gated(-0.30885), "self"), [aten.mish.default]),
    (_rule(leaky, "self negative_slope"), [aten.leaky_relu.default]),
    (_rule(logarithm, "self"), [aten.log.default]),
    (_rule(clamped, "self min max min_val max_val", EXACT), [
        aten.relu.default, aten.relu6.default, aten.hardtanh.default, aten.clamp.default, aten.clamp.Tensor,
        aten.clamp_min.default, aten.clamp_max.default,
    ]),
    (_rule(softmax, "self dim dtype half_to_float", EXACT), SOFTMAX),
    (_rule(log_softmax, "self dim dtype half_to_float"), [aten.log_softmax.int, aten._log_softmax.default]),
    (_rule(log_sum, "self dim keepdim"), [aten.logsumexp.default]),
    (_rule(normalised, "input normalized_shape weight bias eps cudnn_enable"), [
        aten.layer_norm.default, aten.rms_norm.default,
    ]),
    (_rule(cross_entropy, "self target reduction ignore_index label_smoothing", CORRECT), [
        aten.cross_entropy_loss.default,
    ]),
    (_rule(likelihood, "self target reduction ignore_index", CORRECT), [
        aten.nll_loss_nd.default, aten.nll_loss.default,
    ]),
    (_rule(binary_cross_entropy, "self target reduction", CORRECT), [
        aten.binary_cross_entropy_with_logits.default,
    ]),
    (_rule(squared_error, "self target reduction", CORRECT), [aten.mse_loss.default]),
)  # fmt: skip
