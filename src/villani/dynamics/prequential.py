"""One pass over a text in order: every block is scored by the weights from before it was trained on.

The scores are those of the training step's own forward pass, so that they cost nothing: THEORY.md §5 (c″). Weights that
score a block are a function of the blocks before its batch, of the settings and of the start, and of nothing else.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from torch import nn

from villani.dynamics.chain import StepDirection, Turning
from villani.errors import InputError, check_nonnegative, check_positive
from villani.objective.evaluation import evaluating
from villani.objective.objective import IGNORED
from villani.statistics import Array

Towards = Literal["centre", "zero"]


@dataclass(frozen=True)
class UpdateRule:
    """θ ← θ − ηλ(θ − c) − η·direction: everything about a step that has to be fixed before the text.

    Decay is decoupled, as AdamW's is; with `adam` and c = 0 this is AdamW (β = 0.9, 0.95). The gradient is clipped
    before the direction is made of it.

    Attributes:
        rate: η > 0.
        weight_decay: λ ≥ 0, ηλ ≤ 1.
        direction: of the gradients so far, see `chain.Turning`.
        towards: c: where the pass began, or 0.
        clip: largest norm of a gradient; None for none.
        warm_up: steps over which η rises linearly.

    Raises:
        InputError: a number out of range.
    """

    rate: float
    weight_decay: float = 0.0
    direction: StepDirection = "sgd"
    towards: Towards = "centre"
    clip: float | None = None
    warm_up: int = 0

    def __post_init__(self) -> None:
        check_positive(learning_rate=self.rate)
        check_nonnegative(weight_decay=self.weight_decay, warm_up=self.warm_up)
        if self.clip is not None:
            check_positive(clip=self.clip)
        if self.rate * self.weight_decay > 1:
            raise InputError(
                f"learning_rate={self.rate:g}, weight_decay={self.weight_decay:g}: a step would take more than all of "
                "θ away; lower one of them, so that their product is at most 1"
            )

    def at(self, step: int) -> float:
        """η of a step."""
        return self.rate * min(1.0, (step + 1) / (self.warm_up + 1))


class Learner:
    """Tensors that a rule moves in place, and all that it remembers about them.

    Args:
        rule: how.
        tensors: where they are now is the centre, of which a copy is kept.
    """

    def __init__(self, rule: UpdateRule, tensors: list[torch.Tensor]) -> None:
        self.rule = rule
        self.tensors = tensors
        self.centre = [t.detach().clone() for t in tensors]
        self._turns = [Turning(rule.direction, t.detach()) for t in tensors]

    @property
    def state(self) -> list[torch.Tensor]:
        """What the next step depends on, beside its number."""
        return [*self.tensors, *(memory for turn in self._turns for memory in turn.state)]

    def step(self, gradient: list[torch.Tensor], step: int) -> bool:
        """Make a step; tells whether the gradient was clipped."""
        rule, rate = self.rule, self.rule.at(step)
        with torch.no_grad():
            norm = math.sqrt(sum(float(torch.linalg.vector_norm(g, dtype=torch.float64)) ** 2 for g in gradient))
            if not math.isfinite(norm):
                raise InputError(f"training diverged at step {step}: lower the learning rate, or clip")
            clipped = rule.clip is not None and norm > rule.clip
            for tensor, centre, turn, g in zip(self.tensors, self.centre, self._turns, gradient, strict=True):
                direction = turn(g * (rule.clip / norm) if clipped and rule.clip else g, step)
                if rule.weight_decay:
                    tensor.mul_(1 - rate * rule.weight_decay)
                    if rule.towards == "centre":
                        tensor.add_(centre, alpha=rate * rule.weight_decay)
                tensor.sub_(direction, alpha=rate)
        return clipped

    def moved(self) -> float:
        """‖θ − centre‖."""
        pairs = zip(self.tensors, self.centre, strict=True)
        return math.sqrt(sum(float((t.detach() - c).double().square().sum()) for t, c in pairs))

    def reset(self) -> None:
        """Back to the centre."""
        with torch.no_grad():
            for tensor, centre in zip(self.tensors, self.centre, strict=True):
                tensor.copy_(centre)


@dataclass(frozen=True, eq=False)
class Stretch:
    """Some consecutive steps of a pass.

    Attributes:
        stop: the step that comes next.
        logs: (n,) ln p of the predicted tokens of the blocks of these steps, in the text's order; in the model's dtype.
        clipped: steps whose gradient was.
    """

    stop: int
    logs: Array
    clipped: int


def step_edges(blocks: int, batch: int, breaks: Sequence[int] = ()) -> list[int]:
    """The first block of every step of a pass, and the end; a step has fewer blocks before the end and a break."""
    ends = sorted({0, *breaks, blocks})
    return [edge for first, last in pairwise(ends) for edge in range(first, last, batch)] + [blocks]


def advance(
    model: nn.Module, learner: Learner | None, ids: torch.Tensor, labels: torch.Tensor, *, start: int,
    edges: Sequence[int], micro_tokens: int, enough: Callable[[int], bool] = lambda _: False,
) -> Stretch:  # fmt: skip
    """Score the blocks in order and, after each batch of them, train on it.

    Args:
        model: a causal language model, at the weights that step `start` begins with.
        learner: how its tensors move; None scores alone, with the same arithmetic.
        ids: (M, T) int64 token blocks in the text's order.
        labels: (M, T) int64, −100 where not predicted.
        start: first step.
        edges: first block of every step, and the end, see `step_edges`.
        micro_tokens: tokens in one forward pass, at least a block.
        enough: called with the number of steps done after each; true stops there.

    Raises:
        InputError: a loss or gradient that is not finite.
    """
    device = next(model.parameters()).device
    scores: list[Array] = []
    step, steps, clipped = start, len(edges) - 1, 0
    with evaluating(model, device, fused=True), torch.set_grad_enabled(learner is not None):
        while step < steps:
            rows = slice(edges[step], edges[step + 1])
            logs, gradient = _scores(model, learner, ids[rows].to(device), labels[rows].to(device), micro_tokens)
            if not np.isfinite(logs).all():
                raise InputError(f"training diverged at step {step}: lower the learning rate, or clip")
            scores.append(logs)
            if learner and gradient:
                clipped += learner.step(gradient, step)
            del gradient  # not held beside the next one
            step += 1
            if enough(step):
                break
    return Stretch(step, np.concatenate(scores) if scores else np.zeros(0, dtype=np.float32), clipped)


def _scores(
    model: nn.Module, learner: Learner | None, ids: torch.Tensor, labels: torch.Tensor, micro_tokens: int
) -> tuple[Array, list[torch.Tensor]]:
    """ln p of the predicted tokens of a batch, and ∇ of their mean loss, from one forward pass at the same weights."""
    following = nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORED)  # (B, T): logits are not copied
    total = int((following != IGNORED).sum())
    width = max(1, micro_tokens // ids.shape[1])
    logs: list[Array] = []
    gradient: list[torch.Tensor] = []
    for first in range(0, len(ids), width):
        targets = following[first : first + width].flatten()
        wanted = targets != IGNORED
        if not bool(wanted.any()):
            continue
        losses = _losses(model, ids[first : first + width], targets)
        logs.append(-losses.detach()[wanted].cpu().numpy())
        if learner is None:
            continue
        parts = torch.autograd.grad(losses.sum() / total, learner.tensors, allow_unused=True)
        parts = tuple(torch.zeros_like(t) if p is None else p for p, t in zip(parts, learner.tensors, strict=True))
        gradient = [g.add_(p) for g, p in zip(gradient, parts, strict=True)] if gradient else list(parts)
    return (np.concatenate(logs) if logs else np.zeros(0, dtype=np.float32)), gradient


def _losses(model: nn.Module, ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """−ln p of every target (B·T,), 0 where there is none; the logits are freed here, before the backward pass."""
    logits = model(input_ids=ids, use_cache=False).logits.flatten(0, 1)  # (B·T, V)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return nn.functional.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="none")
