"""A Transformer as a target of Langevin dynamics: one chain, θ in place, no copy but the gradient."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from villani.dynamics.langevin import Evaluation, Sums
from villani.dynamics.noise import gaussian
from villani.errors import InputError
from villani.objective.batches import Batch
from villani.objective.objective import Objective
from villani.objective.parameters import double_dot
from villani.statistics import Array
from villani.streams import Purpose, stream

LINEAR = 3  # linear observables
SUPPORT = 1 << 14  # coordinates of each


class NetworkTarget:
    """The finite objective of a model on its groups: L is the mean over all of their predicted tokens.

    Args:
        objective: the groups are the data set; its mask says what decays.
        batch: blocks of a step, drawn from (seed, chain, step) with replacement; None for the whole data set, which
            makes ∇L exact. A batch's sum is divided by the tokens it has on average, not by its own, so that L and ∇L
            are unbiased where blocks are of unequal length.
        seed: of batches, starts and linear observables.
        spread: chains of odd number begin at a draw of N(0, s/(2λ)) on decayed coordinates instead of at the model.
        prior: √(s/(2λ)), for `spread`.

    Linear observables are u·θ with unit u along the model's own θ on random sets of 16,384 coordinates: a start that is
    as far from 0 as it can be, so that slow odd modes are seen, where the loss may be blind to them (THEORY.md §4).

    Raises:
        InputError: a parameter is not stored contiguously, the batch is larger than the data set, or groups have other
            inputs than ids, or blocks of unequal length.
    """

    walkers = replicates = 1

    def __init__(
        self, objective: Objective, *, batch: int | None, seed: int, spread: bool = False, prior: float = math.inf
    ) -> None:
        groups = [group for group in objective.groups if isinstance(group, Batch)]
        if len(groups) < len(objective.groups):
            raise InputError("groups of a custom loss function: dynamics need token blocks")
        self.objective = objective
        self.batch, self.seed, self.spread, self.prior = batch, seed, spread, prior
        space = objective.parameters
        for p in space.parameters:
            if not p.tensor.is_contiguous():
                raise InputError(f"parameter {p.name} is not contiguous: call .contiguous() on it before")
        self.tensors: list[torch.Tensor] = list(space.tensors)
        self.decayed = [p.decayed for p in space.parameters]
        self.dimension = space.size
        self.extras = tuple(f"linear_{number}" for number in range(LINEAR))
        given = sorted({name for group in groups for name in group.inputs} - {"input_ids"})
        if given:
            raise InputError(
                f"groups with {', '.join(given)}: dynamics need blocks of text that are padded on the right, with "
                "labels of −100 in place of a mask"
            )
        lengths = sorted({group.ids.shape[1] for group in groups})
        if len(lengths) > 1:
            raise InputError(
                f"groups have blocks of {lengths[0]} to {lengths[-1]} tokens: dynamics need one; pad on the right"
            )
        self._data = Batch(torch.cat([group.ids for group in groups]), torch.cat([group.labels for group in groups]))
        if batch is not None and not 1 <= batch <= len(self._data.ids):
            raise InputError(f"batch={batch}: expected 1 to {len(self._data.ids)}, the blocks of the data set")
        self._offsets = np.concatenate([[0], np.cumsum(space.sizes)])
        self._places = [self._choose(number) for number in range(LINEAR)]
        self._directions = [values / np.linalg.norm(values) for values in map(self._gather, self._places)]

    @property
    def tokens(self) -> int:
        """Predicted tokens of the data set."""
        return self._data.tokens

    @property
    def blocks(self) -> int:
        """Blocks of the data set."""
        return len(self._data.ids)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Dropout off, deterministic kernels; gradients are let go at the end."""
        with self.objective.evaluating(fused=True):
            try:
                yield
            finally:
                for tensor in self.tensors:
                    tensor.grad = None

    def reset(self, chain: int) -> None:
        """Odd chains go to a draw of the prior, if `spread`; others stay where the model is, which is put in first."""
        if not (self.spread and chain % 2):
            return
        with torch.no_grad():
            for index, (tensor, decayed) in enumerate(zip(self.tensors, self.decayed, strict=True)):
                if decayed:
                    tensor.copy_(self.prior * gaussian(tensor, self.seed, Purpose.START, chain, index))

    def evaluate(self, chain: int, step: int) -> Evaluation:
        """L and ∇L; the gradient lies in `.grad`, the one copy there is."""
        for tensor in self.tensors:
            tensor.grad = None
        data = self._data
        if self.batch is None:
            rows, share = torch.arange(self.blocks), 1.0
        else:
            rows = torch.from_numpy(
                stream(self.seed, Purpose.BATCHES, chain, step).integers(self.blocks, size=self.batch)
            )
            share = self.batch / self.blocks
        tokens = share * data.tokens
        drawn = Batch(data.ids[rows], data.labels[rows])
        width = max(1, self.objective.micro_tokens // drawn.ids.shape[1])
        loss = 0.0
        for first in range(0, len(rows), width):
            piece = drawn.rows(first, first + width)
            if piece.tokens == 0:
                continue
            mean = self.objective.forward(piece.to(self.objective.device)).loss / tokens
            mean.backward()
            loss += float(mean.detach())
        for tensor in self.tensors:
            if tensor.grad is None:  # it does not enter the loss
                tensor.grad = torch.zeros_like(tensor)
        return Evaluation(np.array([loss]), [tensor.grad for tensor in self.tensors if tensor.grad is not None])

    def sums(self, gradient: list[torch.Tensor]) -> Sums:
        """See `langevin.Sums`."""
        theta = np.array([double_dot(t, t) for t in self.tensors])
        force = np.array([double_dot(t, g) for t, g in zip(self.tensors, gradient, strict=True)])
        decayed = np.array(self.decayed)
        squared = sum(double_dot(g, g) for g in gradient)
        found = (theta.sum(), theta[decayed].sum(), force.sum(), force[decayed].sum(), squared)
        return Sums(*(np.array([value]) for value in found))

    def extra(self, weight_decay: float) -> Array:  # noqa: ARG002
        """u·θ of the linear observables, (LINEAR, 1)."""
        values = [u @ self._gather(place) for u, place in zip(self._directions, self._places, strict=True)]
        return np.array(values)[:, None]

    def sample(self, groups: int, chain: int, step: int) -> list[Batch]:
        """Independent groups of blocks of the data set, for an unbiased Ψ at a step."""
        size = self.batch or min(4, self.blocks)
        draws = (
            stream(self.seed, Purpose.GROUPS, chain, step, g).integers(self.blocks, size=size) for g in range(groups)
        )
        return [Batch(self._data.ids[rows], self._data.labels[rows]) for rows in map(torch.from_numpy, draws)]

    def _choose(self, number: int) -> list[tuple[int, torch.Tensor]]:
        """(tensor, entries) of random distinct coordinates."""
        draw = stream(self.seed, Purpose.DIRECTION, number)
        places = np.unique(draw.integers(self.dimension, size=min(SUPPORT, self.dimension)))
        owners = np.searchsorted(self._offsets, places, side="right") - 1
        return [
            (int(owner), torch.from_numpy(places[owners == owner] - self._offsets[owner]).to(self.objective.device))
            for owner in np.unique(owners)
        ]

    def _gather(self, places: list[tuple[int, torch.Tensor]]) -> Array:
        parts = [self.tensors[i].detach().view(-1)[entries].double().cpu().numpy() for i, entries in places]
        return np.concatenate(parts)
