"""Measuring a model that `fully_shard` cut over processes, by first derivatives through its own hooks.

Every process has its part of θ and runs its share of each group's rows; the hooks gather weights and reduce gradients,
so that each ends up with its part of the group's gradient. Norms, inner products and sketches of parts are added over
the processes that count them. A trace is that of finite differences (`curvature/products.py`): each process moves its
part of θ along its part of a probe that belongs to the whole.
"""

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import nn

from villani.curvature.group import inner_products
from villani.curvature.products import Tensors, finite_difference_product
from villani.curvature.sketch import GradientSketch, buckets_for
from villani.errors import InputError
from villani.integrations.layout import Layout
from villani.integrations.passes import Passes
from villani.integrations.shards import ShardedSpace, squared_norms
from villani.integrations.untouched import is_sharded, own_part
from villani.measurement.measurement import Measurement
from villani.measurement.rows import group_sums, naive_norm
from villani.objective.batches import Batch, options, read_batch
from villani.objective.objective import MICRO_TOKENS, LossFunction, Objective, check_differentiable, check_frozen
from villani.statistics import sampled_statistics

GRADIENTS = 4  # of a group that a probe takes, beside the one that is its statistic


class ShardedObjective(Objective):
    """An `Objective` of which each process has a part; its methods are called by all of them alike.

    Args:
        layout: of the model.
        groups: the same in every process; see `Objective`.
        passes: through the model.
        weight_decay: λ.
        decay: the mask.
        loss_fn: see `Objective`.

    Raises:
        InputError: what cannot be measured, in every process.
    """

    def __init__(
        self, layout: Layout, groups: Sequence[Any], passes: Passes, weight_decay: float = 0.0, decay: str = "all",
        loss_fn: LossFunction | None = None,
    ) -> None:  # fmt: skip
        # not Objective's own, which looks at θ whole; that the loss is one of next tokens is not tried out here
        self.processes, self.passes = layout.processes, passes
        self.streamed, self.doubly_checked = False, True  # its products are differences of gradients
        self.bits, self.displacements = None, 0
        self.model, self.loss_fn, self.weight_decay, self.finite = layout.model, loss_fn, weight_decay, False
        self.micro_tokens, self.traced, self._watched = MICRO_TOKENS, {}, False
        self._known: list[torch.Tensor] | None = None  # what `gradient` is going to be asked for next
        self.parameters: ShardedSpace = ShardedSpace(self.model, decay, self.processes.main)
        self.parameters.check()
        if loss_fn is None:
            check_frozen(self.model, self.parameters.dtype)
        self.device = _compute_device(self.model)
        self.options = {} if loss_fn else options(self.model)
        self.groups = list(groups)
        if loss_fn is None:
            self.groups = [read_batch(g, self.model, f"group {i}") for i, g in enumerate(self.groups)]

    def gradient(self, group: int | None = None, *, fused: bool = False) -> list[torch.Tensor]:
        """See `Objective.gradient`; this process's part."""
        known, self._known = self._known, None
        return known or super().gradient(group, fused=fused)

    def gradient_sum(self, groups: Iterable[int], *, fused: bool = False) -> tuple[list[torch.Tensor], float, float]:
        """This process's part of ∇ of the loss sum of some groups, in float64; tokens and loss of all processes."""
        parts = self.parameters.tensors
        sums = [torch.zeros(t.shape, dtype=torch.float64, device=t.device) for t in parts]
        own = np.zeros(2)
        with self.evaluating(fused=fused):
            for group in groups:
                for piece, weight, counts in self._own_pieces(group):
                    self.processes.ready()
                    tokens, loss = self._pass(piece, weight, sums)
                    own += counts * np.array([tokens, loss])
        self._add_whole(sums)
        tokens, loss = self.processes.summed(own)
        return sums, float(tokens), float(loss)

    def norm(self, tensors: Tensors) -> float:
        """The Euclidean norm of a vector over θ, of which each process gives its part."""
        own = squared_norms(list(tensors)) * self.parameters.counted
        return math.sqrt(float(self.processes.summed(own).sum()))

    def measured(self, probes: int, seed: int) -> Measurement:
        """The five statistics; the same bits in every process.

        Raises:
            InputError: a loss or a derivative that is not finite, or finite differences that are off by more than 10⁻³.
        """
        space, count = self.parameters, len(self.groups)
        sketch = GradientSketch(space, seed, buckets_for(count))
        rows = []
        for group in range(count):
            gradient, tokens, loss = self.gradient_sum([group], fused=True)
            row = {
                "tokens": np.array([tokens]), "loss": np.array([loss]),
                "gradient": self.processes.added(space.sketch(sketch, gradient)).numpy(),
                "dots": self._dots(gradient, space.tensors),
                "traces": np.stack([self._trace(group, gradient, tokens, seed, probe) for probe in range(probes)]),
            }  # fmt: skip
            for name in ("loss", "gradient", "traces"):
                if not np.isfinite(row[name]).all():
                    raise InputError(f"group {group}: the {name} is not finite: the run has diverged, or needs float64")
            rows.append(row)
        sums = group_sums(space.decayed, rows, sketched=sketch.lossy)
        norms = self.processes.summed(space.norms_squared())
        return Measurement(
            joint=sampled_statistics(sums), naive_gradient_norm_squared=naive_norm(sums), gauss_newton_trace=None,
            decayed_norm_squared=float(norms[space.decayed].sum()), parameters=space.size,
            decayed_parameters=space.decayed_size, weight_decay=self.weight_decay, tokens=int(sums.tokens.sum()),
            tensors=(), layers=(), sketch=sketch.buckets if sketch.lossy else None,
        )  # fmt: skip

    def try_out(self) -> None:
        """A gradient of every group, and second derivatives of one row.

        Raises:
            InputError: what `measured` would.
        """
        self.gradient_sum(range(len(self.groups)), fused=True)
        first = self.groups[0]
        if isinstance(first, Batch):
            first = next(row for i in range(len(first.ids)) if (row := first.rows(i, i + 1)).tokens)
        self.groups = [first]
        gradient, tokens, _ = self.gradient_sum([0], fused=True)
        self._trace(0, gradient, tokens, 0, 0)

    def _trace(
        self, group: int, gradient: list[torch.Tensor], tokens: float, seed: int, probe: int
    ) -> np.ndarray:  # fmt: skip
        """(P,) vᵀ∇²(loss sum)v of one probe, tensor by tensor; `gradient` is that of the loss sum."""
        self._known = [g / tokens for g in gradient]
        vector = self.parameters.probe(seed, group, probe)
        curved, _ = finite_difference_product(self, vector, group, self.norm)
        return tokens * self._dots(curved, vector)

    def _dots(self, left: Tensors, right: Tensors) -> np.ndarray:
        return self.processes.summed(inner_products(left, right) * self.parameters.counted)

    def _own_pieces(self, group: int) -> list[tuple[Any, float, float]]:
        """This process's pieces of a group, as many in each process: (piece, weight of its loss, whether it counts).

        Rows are dealt out; a process that has none left runs one of others for nothing, since all run together. What a
        `loss_fn` takes cannot be dealt out: each runs all of it.
        """
        size, rank, whole = self.processes.size, self.processes.rank, self.groups[group]
        if not isinstance(whole, Batch):
            return [(whole, 1 / size, float(rank == 0))]
        rows, most = len(whole.ids), max(1, self.micro_tokens // whole.ids.shape[1])
        cuts = [rows * r // size for r in range(size + 1)]
        dealt = [
            [piece for a in range(first, last, most) if (piece := whole.rows(a, min(a + most, last))).tokens]
            for first, last in pairwise(cuts)
        ]
        longest = max(dealt, key=len)
        own: list[tuple[Any, float, float]] = [(piece.to(self.device), 1.0, 1.0) for piece in dealt[rank]]
        idle = longest[0].rows(0, 1).to(self.device) if longest else None
        return own + [(idle, 0.0, 0.0)] * (len(longest) - len(own))

    def _pass(self, piece: Any, weight: float, sums: list[torch.Tensor]) -> tuple[float, float]:
        """Add this process's part of a piece's gradient; gives its tokens and loss."""
        seen: list[float] = []

        def loss() -> torch.Tensor:
            forward = self.forward(piece)
            check_differentiable(forward.loss)
            seen.extend((forward.tokens, float(forward.loss.detach().double())))
            return forward.loss * weight

        try:
            self.passes.backward(loss)
            for total, p in zip(sums, self.parameters.parameters, strict=True):
                if p.tensor.grad is not None:  # of parts: a mean over processes; of what all hold: this one's alone
                    total.add_(own_part(p.tensor.grad), alpha=self.processes.size if is_sharded(p.tensor) else 1)
        finally:
            for p in self.parameters.parameters:
                p.tensor.grad = None
        tokens, value = seen
        if not np.isfinite(value):
            raise InputError(f"the loss is {value}: the run has diverged, or needs a wider dtype")
        return tokens, value

    def _add_whole(self, sums: list[torch.Tensor]) -> None:
        """Gradients of what `fully_shard` left whole, which its hooks do not reduce."""
        for total, p in zip(sums, self.parameters.parameters, strict=True):
            if not is_sharded(p.tensor):
                total.copy_(self.processes.added(total.cpu()))


def _compute_device(model: nn.Module) -> torch.device:
    """Where forward passes are made, wherever parts are kept."""
    kind = next(p.device_mesh.device_type for p in model.parameters() if is_sharded(p))  # type: ignore[attr-defined]
    return torch.device(kind, torch.get_device_module(kind).current_device()) if kind != "cpu" else torch.device("cpu")
