"""Noisy training that a certificate can be written for: θ = θ₀ + S·w, w ← a·w − η·g + τ·ξ, everything else frozen.

θ₀ is the centre of the prior and S a diagonal scale, both fixed before the certified data. Noise is isotropic in w.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import nn

from villani.dynamics.certificate import Account, ChainPlan
from villani.errors import InputError
from villani.objective.evaluation import plain_arithmetic
from villani.objective.objective import IGNORED, Objective
from villani.objective.parameters import double_dot
from villani.statistics import Array
from villani.streams import Purpose, stream
from villani.work.foreign import clipped, pattern_of
from villani.work.work import Work

Scale = Literal["unit", "relative"]
StepDirection = Literal["sgd", "momentum", "adam"]
_MOMENTUM, _SECOND, _EPSILON = 0.9, 0.95, 1e-8


class Moving:
    """The coordinates w ∈ R^k that training moves: the tensors of a model whose names match, about where they are now.

    Args:
        model: its present weights are the centre θ₀.
        pattern: `all`, or a regular expression that names of tensors contain a match of.
        scale: `unit`: θ = θ₀ + w; `relative`: each tensor's w in units of the root mean square of its θ₀ (of all moving
            coordinates' where that is 0), so that noise perturbs all tensors alike.

    Raises:
        InputError: the pattern is invalid or matches nothing.
    """

    def __init__(self, model: nn.Module, pattern: str = "all", scale: Scale = "unit") -> None:
        named = matching(model, pattern)
        self.model = model
        self.names = [name for name, _ in named]
        self.tensors = [p for _, p in named]
        self.sizes = [p.numel() for p in self.tensors]
        self.centre = torch.cat([p.detach().reshape(-1).clone() for p in self.tensors])  # (k,)
        squares = [float(p.detach().double().square().mean()) for p in self.tensors]
        overall = float(np.average(squares, weights=self.sizes)) ** 0.5 or 1.0
        units = [s**0.5 or overall for s in squares] if scale == "relative" else [1.0] * len(squares)
        pairs = zip(self.tensors, units, strict=True)
        self.scale = torch.cat([torch.full_like(p.detach().reshape(-1), unit) for p, unit in pairs])  # (k,)

    @property
    def size(self) -> int:
        """k."""
        return int(self.centre.numel())

    def write(self, w: torch.Tensor) -> None:
        """Put θ₀ + S·w into the model."""
        with torch.no_grad():
            for tensor, part in zip(self.tensors, (self.centre + self.scale * w).split(self.sizes), strict=True):
                tensor.copy_(part.view_as(tensor))

    def gradient(self, loss: torch.Tensor) -> torch.Tensor:
        """∇_w of a loss, (k,)."""
        parts = torch.autograd.grad(loss, self.tensors)
        return torch.cat([part.reshape(-1) for part in parts]) * self.scale


def matching(model: nn.Module, pattern: str) -> list[tuple[str, nn.Parameter]]:
    """Names and tensors that a pattern matches: `all`, or a regular expression that names contain a match of.

    Raises:
        InputError: the pattern is invalid or matches nothing.
    """
    wanted = pattern_of("" if pattern == "all" else pattern, f"train {clipped(pattern)!r}")
    named = [(name, p) for name, p in model.named_parameters() if wanted.search(name)]
    if not named:
        first = next((name for name, _ in model.named_parameters()), "none")
        raise InputError(f"train {pattern!r} matches no parameter: names look like {first!r}")
    return named


@dataclass(frozen=True, eq=False)
class FinishedChain:
    """Where a run ended, and its account.

    Attributes:
        w: (k,) the last iterate.
        losses: (K,) loss of each step's batch, mean nats per predicted token.
        clipped: share of steps whose direction was scaled down.
        account: what the certificate needs.
        squares: (K,) ‖direction‖², of which the account has what the reference does not make itself.
    """

    w: torch.Tensor
    losses: Array
    clipped: float
    account: Account
    squares: Array


@plain_arithmetic()
def run_chain(
    moving: Moving, ids: torch.Tensor, labels: torch.Tensor, plan: ChainPlan, *, batch: int, seed: int, index: int = 0,
    direction: StepDirection = "sgd", reference: Callable[[int], torch.Tensor] | None = None,
    work: Work | None = None,
) -> FinishedChain:  # fmt: skip
    """One run of the plan; the model is left at its last iterate.

    Args:
        moving: what moves.
        ids: (M, T) int64 token blocks.
        labels: (M, T) int64, −100 where not predicted.
        plan: fixed before the data.
        batch: blocks in a step, drawn from (seed, index, step), independently of the noise.
        seed: of everything random.
        index: which of J independent chains.
        direction: the gradient of the batch, an average of them (momentum 0.9), or Adam's; clipped afterwards.
        reference: (k,) direction of the reference chain in a step, at the weights in the model, see `drift.Reference`;
            None for 0. It goes with a plan of that kind.
        work: told of every step.

    Raises:
        InputError: a loss that is not finite, or a model that no bound is about: one that is not causal, is random or
            writes to its weights.
    """
    if plan.moving_reference != (reference is not None):
        raise InputError(f"moving_reference={plan.moving_reference}: a plan goes with a reference of its own kind")
    Objective(moving.model, ids[:1][None])  # refuses such a model
    moving.model.eval()  # dropout off
    w = torch.zeros_like(moving.centre)
    if plan.start == "prior":
        w += plan.variance**0.5 * _normal(stream(seed, Purpose.CHAIN_START, index), w)
    normals = stream(seed, Purpose.CHAIN_NOISE, index)
    account, losses, squares, clipped = Account(plan), [], [], 0
    turn = Turning(direction, w)
    steps = len(plan.rates)
    for k, (rate, contraction, noise) in enumerate(zip(plan.rates, plan.contractions, plan.noises, strict=True)):
        moving.write(w)
        rows = torch.from_numpy(stream(seed, Purpose.BATCHES, index, k).integers(len(ids), size=batch))
        loss = batch_loss(moving.model, ids[rows].to(w.device), labels[rows].to(w.device))
        if not bool(torch.isfinite(loss)):
            raise InputError(f"training diverged at step {k}: lower the learning rate, or clip")
        g = turn(moving.gradient(loss), k)
        squared = float(torch.linalg.vector_norm(g, dtype=torch.float64)) ** 2
        if plan.clip is not None and squared > plan.clip**2:
            g *= plan.clip / squared**0.5
            squared = plan.clip**2
            clipped += 1
        xi = _normal(normals, w)
        charged = g if reference is None else g - reference(k)
        squares.append(squared)
        if reference is not None:
            squared = float(torch.linalg.vector_norm(charged, dtype=torch.float64)) ** 2
        inner = double_dot(charged, xi)
        w.mul_(contraction).sub_(g, alpha=rate).add_(xi, alpha=noise)
        account.step(squared, inner, rate=rate, noise=noise, contraction=contraction)
        losses.append(float(loss.detach()))
        if work:
            work.advance(k + 1, steps)
    moving.write(w)
    return FinishedChain(w, np.array(losses), clipped / steps, account, np.array(squares))


def batch_loss(model: nn.Module, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean nats per predicted token of a few blocks, with a graph."""
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    return nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED)


@plain_arithmetic()
def label_probabilities(
    model: nn.Module, ids: torch.Tensor, labels: torch.Tensor, *, micro_tokens: int = 4096,
    work: Work | None = None,
) -> tuple[Array, Array]:  # fmt: skip
    """ln p of every predicted token (m,), and the number of predicted tokens of every block (M,)."""
    model.eval()
    logs, counts = [], (labels[:, 1:] != IGNORED).sum(dim=1).numpy().astype(np.float64)
    step = max(1, micro_tokens // ids.shape[1])
    device = next(model.parameters()).device
    with torch.no_grad():
        for start in range(0, len(ids), step):
            targets = labels[start : start + step, 1:].to(device)
            logits = model(input_ids=ids[start : start + step].to(device), use_cache=False).logits[:, :-1]
            wanted = targets != IGNORED
            scored = logits[wanted].to(torch.promote_types(logits.dtype, torch.float32))
            losses = nn.functional.cross_entropy(scored, targets[wanted], reduction="none")
            logs.append(-losses.double().cpu().numpy())
            if work:
                work.advance(min(start + step, len(ids)), len(ids))
    return np.concatenate(logs), counts


class Turning:
    """From the gradients so far to the direction; none of it sees the noise of the step to come.

    Args:
        direction: the gradient itself, an average of gradients (momentum 0.9), or Adam's (0.9, 0.95).
        like: a tensor of the gradients' shape.

    `state` is all that it remembers.
    """

    def __init__(self, direction: StepDirection, like: torch.Tensor) -> None:
        self.direction = direction
        count = {"sgd": 0, "momentum": 1, "adam": 2}[direction]
        self.state = [torch.zeros_like(like, requires_grad=False) for _ in range(count)]

    def __call__(self, g: torch.Tensor, k: int) -> torch.Tensor:
        """The direction of step k; call it for 0, 1, 2 and so on."""
        if not self.state:
            return g
        self.state[0].mul_(_MOMENTUM).add_(g, alpha=1 - _MOMENTUM)
        average = self.state[0] / (1 - _MOMENTUM ** (k + 1))
        if self.direction == "momentum":
            return average
        self.state[1].mul_(_SECOND).addcmul_(g, g, value=1 - _SECOND)
        return average / ((self.state[1] / (1 - _SECOND ** (k + 1))).sqrt() + _EPSILON)


def _normal(generator: np.random.Generator, like: torch.Tensor) -> torch.Tensor:
    """Standard normals of the shape and dtype of a vector, drawn on the CPU."""
    kind = np.float64 if like.dtype == torch.float64 else np.float32
    return torch.from_numpy(generator.standard_normal(like.numel(), dtype=kind)).to(like.device)
