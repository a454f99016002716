"""Operations that every analysis treats alike: one that belongs to a family is listed here, and nowhere else."""

import torch

aten = torch.ops.aten

CAST = aten._to_copy.default

COPIED = (aten.alias.default, aten.clone.default, aten.contiguous.default)
"""The same tensor again."""

MOVED = (
    *COPIED, aten.view.default, aten._unsafe_view.default, aten.reshape.default, aten.flatten.using_ints,
    aten.transpose.int, aten.t.default, aten.numpy_T.default, aten.permute.default, aten.unsqueeze.default,
    aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims, aten.expand.default, aten.repeat.default,
    aten.slice.Tensor, aten.select.int, aten.flip.default, aten.roll.default, aten.diagonal.default,
    aten.unfold.default,
)  # fmt: skip
"""Entries of the first argument elsewhere; its other arguments are numbers."""

SPLIT = (aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default, aten.unbind.int)
"""The same in several parts."""

CHOSEN = (aten.index.Tensor, aten.index_select.default, aten.gather.default)
"""Entries of the first argument that a tensor of places chooses."""

WHERE = (aten.where.self, aten.where.ScalarOther, aten.where.ScalarSelf)
"""Entries of one of two, as a condition has it."""

PICKED = (aten.topk.default, aten.sort.default, aten.sort.stable, aten.max.dim, aten.min.dim)
"""The largest, or all in order, and the places where these stand."""

COMPARED = tuple(
    getattr(getattr(aten, name), kind) for name in ("gt", "ge", "lt", "le", "eq", "ne") for kind in ("Scalar", "Tensor")
)
"""Truth values of pairs of numbers."""

EXTREME = (aten.maximum.default, aten.minimum.default, aten.max.other, aten.min.other)
"""The larger, or the smaller, of two."""

SOFTMAX = (aten.softmax.int, aten._softmax.default, aten._safe_softmax.default)

NEW = (
    aten.zeros_like.default, aten.ones_like.default, aten.full_like.default, aten.new_zeros.default,
    aten.new_ones.default, aten.new_full.default,
)  # fmt: skip
"""New tensors that take over a shape, and no values."""

EMPTY = (aten.empty_like.default, aten.new_empty.default)
"""The same, with values that nobody set."""
