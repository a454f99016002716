"""What one group contributes: loss, gradient and unbiased samples of tr ∇²L, in one forward pass per batch."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from villani.curvature.products import Tensors
from villani.curvature.sketch import GradientSketch
from villani.errors import InputError
from villani.objective.objective import Forward, Objective, check_differentiable
from villani.objective.parameters import double_dot
from villani.objective.pieces import Piece, Vector
from villani.objective.streamed import Tape
from villani.statistics import Array


@dataclass(frozen=True)
class GroupStatistics:
    """Sums over one group's predicted tokens; P tensors, m probes, k sketch entries.

    Attributes:
        tokens: how many tokens the group predicts.
        loss: nats.
        gradient: (k,) the gradient of the loss sum, sketched.
        dots: (P,) its inner product with θ, tensor by tensor.
        traces: (m, P) unbiased samples of the trace of the loss sum's Hessian, tensor by tensor; with `taylor`, where
            only their mean is needed, one row that stands for all probes.
        gauss_newton: (m, P) the Gauss–Newton part of `traces`; (0, P) with `hutchinson`, which does not part them.
    """

    tokens: float
    loss: float
    gradient: Array
    dots: Array
    traces: Array
    gauss_newton: Array


class GroupPass:
    """One pass over the batches of a group: what they predict and lose, and the gradient, as they add up.

    Args:
        objective: whose group.
        group: its index.
        sketch: of the gradient.
    """

    def __init__(self, objective: Objective, group: int, sketch: GradientSketch) -> None:
        space = objective.parameters
        self.objective, self.group = objective, group
        self.tokens = self.loss = 0.0
        self.gradient = torch.zeros(min(space.size, sketch.buckets), dtype=torch.float64)
        self.dots = np.zeros(len(space.parameters))
        self._sketch = sketch

    def forwards(self) -> Iterator[tuple[Any, Forward]]:
        """Each batch and its forward pass, inside `objective.evaluating()`.

        Raises:
            InputError: a loss that is not finite, or has no graph.
        """
        for batch in self.objective.batches(self.group):
            yield batch, self._forward(batch)  # not kept here: a graph goes when the caller lets go of it

    def _forward(self, batch: object) -> Forward:
        forward = self.objective.forward(batch)
        self.add_loss(float(forward.loss.detach().double()), forward.tokens)
        check_differentiable(forward.loss)
        return forward

    def add_loss(self, loss: float, tokens: float) -> None:
        """Add a batch's loss sum.

        Raises:
            InputError: it is not finite.
        """
        if not math.isfinite(loss):
            raise InputError(
                f"group {self.group}: the loss is {loss}: check the checkpoint, or load it in a wider dtype"
            )
        self.tokens += tokens
        self.loss += loss

    def add_gradient(self, gradient: list[torch.Tensor]) -> None:
        """Add a batch's gradient of the loss sum, as tensors of θ's shapes."""
        self.gradient += self._sketch(gradient)
        self.dots += inner_products(gradient, self.objective.parameters.tensors)

    def add_part(self, index: int, gradient: torch.Tensor) -> None:
        """Add a part of one tensor's gradient."""
        self._sketch.add(self.gradient, index, gradient)
        self.dots[index] += quick_dot(gradient, self.objective.parameters.tensors[index])

    def differentiated(self) -> Iterator[Any]:
        """Each batch when its gradient has been added, of whose graph and logits nothing is left; as `forwards`."""
        for batch in self.objective.batches(self.group):
            if self.objective.streamed:
                for piece in self.tape(batch).back():
                    self.add_piece(piece)
                    del piece  # before the next one is made
            else:
                self.add_gradient(self._gradient(batch))
            yield batch

    def tape(self, batch: Any, vectors: Sequence[Vector] = ()) -> Tape:
        """A batch's forward pass, of a model whose weights are streamed; as `forwards`."""
        tape = Tape(self.objective, batch, vectors)
        self.add_loss(tape.loss(), float(len(tape.labels)))
        return tape

    def add_piece(self, piece: Piece) -> None:
        """Add one tensor of a batch's gradient."""
        self._sketch.add(self.gradient, piece.index, piece.gradient)
        self.dots[piece.index] += double_dot(piece.gradient, piece.value)

    def _gradient(self, batch: object) -> list[torch.Tensor]:
        loss, tensors = self._forward(batch).loss, self.objective.parameters.tensors
        return list(torch.autograd.grad(loss, tensors, allow_unused=True, materialize_grads=True))


class TraceSampler(Protocol):
    """A way to tr ∇²L of one objective; those that there are stand in `curvature/trace.py`."""

    def prepare(self, group: int) -> None:
        """Refuse an objective that cannot be sampled, before any work is done on groups like this one.

        Raises:
            InputError: why.
        """

    def sample(self, group: GroupPass, probes: int, seed: int) -> tuple[Array, Array]:
        """Make the pass over a group: its samples, and their Gauss–Newton part, as of `GroupStatistics`.

        Probes and labels are drawn from (seed, group, probe).
        """

    def cost(self, probes: int) -> float:
        """About how many plain gradients' time a group takes, its gradient included."""


def group_statistics(
    objective: Objective, group: int, probes: int, seed: int, sampler: TraceSampler, sketch: GradientSketch
) -> GroupStatistics:
    """Measure one group; a pure function of θ, the group and (seed, group, probe).

    `sampler` belongs to this objective.

    Raises:
        InputError: the loss or a derivative is not finite, or what the sampler refuses.
    """
    one = GroupPass(objective, group, sketch)
    traces, gauss_newton = sampler.sample(one, probes, seed)
    gradient = one.gradient.numpy()
    for name, values in (("gradient", gradient), ("Hessian trace", traces)):
        if not np.isfinite(values).all():
            wide = objective.parameters.dtype == torch.float64
            advice = "is a root, a logarithm or a masked softmax taken of nothing?" if wide else "try float64"
            raise InputError(
                f"group {group}: the {name} is not finite though the loss is {one.loss / one.tokens:.6g}: {advice}"
            )
    return GroupStatistics(one.tokens, one.loss, gradient, one.dots, traces, gauss_newton)


def inner_products(left: Tensors, right: Tensors) -> Array:
    """(P,) in float64, tensor by tensor."""
    return np.array([double_dot(a, b) for a, b in zip(left, right, strict=True)])


def quick_dot(a: torch.Tensor, b: torch.Tensor) -> float:
    """⟨a, b⟩: products in the precision of a and b, sums in float64, a piece at a time that stays in the cache."""
    pairs = zip(a.detach().reshape(-1).split(1 << 18), b.detach().reshape(-1).split(1 << 18), strict=True)
    return sum(float((x * y).sum(dtype=torch.float64)) for x, y in pairs)
