"""A reference that moves: gradients on the prior's own text at the weights that a chain passes, THEORY.md §5 (c′).

The reference chain makes w ← a·w − η·h + τ·ξ with an h that knows the path so far and the prior's text, and no
certified token. What a chain of directions d is charged for is d − h alone.
"""

from dataclasses import dataclass

import torch

from villani.dynamics.chain import Moving, StepDirection, Turning, batch_loss
from villani.errors import InputError, check_whole
from villani.objective.objective import IGNORED
from villani.streams import Purpose, stream


@dataclass(frozen=True, eq=False)
class PriorDrift:
    """The prior's text and how often its gradient is taken: all fixed before the certified tokens.

    Attributes:
        ids: (P, T) int64 blocks of the prior's text.
        labels: (P, T) int64, −100 where not predicted.
        batch: blocks of a reference gradient, drawn from (seed, index, step); None for all, whose gradient has no
            noise of its own.
        every: steps from one gradient to the next; the last one stands in between.
        micro_tokens: tokens in one forward pass, at least a block.

    Raises:
        InputError: nothing to take a gradient on, or a number out of range.
    """

    ids: torch.Tensor
    labels: torch.Tensor
    batch: int | None = None
    every: int = 1
    micro_tokens: int = 4096

    def __post_init__(self) -> None:
        check_whole(1, every=self.every, micro_tokens=self.micro_tokens)
        if self.batch is not None:
            check_whole(1, batch=self.batch)
        if not bool((self.labels[:, 1:] != IGNORED).any()):
            raise InputError("the prior's text predicts no token, so that its gradient is 0: give more of it")


class Reference:
    """The directions of one reference chain.

    Args:
        drift: on which text.
        moving: at whose weights.
        certified: (M, T) the certified blocks, which are only held against the prior's.
        direction: made of its gradients as the chain's own are made of its own; no certified token enters its memory.
        clip: largest norm of a direction, as the chain's own.
        seed: of the draws.
        index: of the chain.

    Raises:
        InputError: most certified blocks are among the prior's, to the token. That finds texts that were mixed up; that
            no certified token has come into the prior's text in another way is the caller's word.
    """

    def __init__(
        self, drift: PriorDrift, moving: Moving, certified: torch.Tensor, direction: StepDirection, clip: float | None,
        *, seed: int, index: int,
    ) -> None:  # fmt: skip
        own = {row.numpy().tobytes() for row in drift.ids.cpu()}
        shared = sum(row.numpy().tobytes() in own for row in certified.cpu())
        if 2 * shared > len(certified):  # some are alike in any text that repeats itself
            raise InputError(
                f"{shared} of {len(certified)} certified blocks are among the prior's, whose drift may know no "
                "certified token: give texts that are apart"
            )
        self.drift, self.moving, self.clip, self.seed, self.index = drift, moving, clip, seed, index
        self._turn = Turning(direction, moving.centre)
        self._gradient: torch.Tensor | None = None

    def __call__(self, step: int) -> torch.Tensor:
        """h of a step, (k,), at the weights that are in the model now; call it for 0, 1, 2 and so on."""
        if self._gradient is None or step % self.drift.every == 0:
            self._gradient = self._fresh(step)
        h = self._turn(self._gradient, step)
        norm = float(torch.linalg.vector_norm(h, dtype=torch.float64))
        return h * (self.clip / norm) if self.clip is not None and norm > self.clip else h

    def _fresh(self, step: int) -> torch.Tensor:
        drift, moving = self.drift, self.moving
        if drift.batch is None:
            rows = torch.arange(len(drift.ids))
        else:
            draw = stream(self.seed, Purpose.DRIFT, self.index, step)
            rows = torch.from_numpy(draw.integers(len(drift.ids), size=drift.batch))
        ids, labels = (t[rows].to(moving.centre.device) for t in (drift.ids, drift.labels))
        total = int((labels[:, 1:] != IGNORED).sum())
        gradient = torch.zeros_like(moving.centre)
        width = max(1, drift.micro_tokens // ids.shape[1])
        for first in range(0, len(rows), width):
            part = slice(first, first + width)
            tokens = int((labels[part, 1:] != IGNORED).sum())
            if tokens:
                loss = batch_loss(moving.model, ids[part], labels[part]) * (tokens / total)
                gradient += moving.gradient(loss)
        return gradient
