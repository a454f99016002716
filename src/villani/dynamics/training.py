"""The small training loop that studies need: one loop, three optimisers, and which λ of F each decay stands for."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from villani.dynamics.interrupted import Interrupted
from villani.dynamics.noise import add_gaussian
from villani.dynamics.schedules import DecaySchedule, NotFinite
from villani.errors import InputError
from villani.objective.evaluation import plain_arithmetic
from villani.objective.objective import IGNORED, Objective, check_weight_decay
from villani.objective.parameters import ParameterSpace
from villani.streams import Purpose, stream
from villani.work.work import Work

Optimizer = Literal["adamw", "sgd", "noisy-sgd"]
Schedule = Literal["warm-up-cosine", "constant"]
_ADAM = (0.9, 0.95)
_WORDS = {
    "adamw": "AdamW (β = 0.9, 0.95)", "sgd": "SGD with L2", "noisy-sgd": "SGD with L2 and noise √(ηs) ξ",
}  # fmt: skip


class Diverged(InputError):
    """A loss that is not finite, and what was judged before it.

    Attributes:
        step: at which a batch had it.
        held_out: as in `Trained`, up to then.
    """

    def __init__(self, step: int, loss: float, held_out: list[tuple[int, float]]) -> None:
        super().__init__(f"training diverged at step {step} (loss {loss}): lower the learning rate")
        self.step, self.held_out = step, held_out


@dataclass(frozen=True)
class Trained:
    """What a training run leaves behind, beside the model.

    Attributes:
        losses: of every step's batch, mean nats per predicted token.
        optimizer: in words.
        objective_weight_decay: the λ of F that the decay stands for (THEORY.md §8); None where there is none, as where
            clipping acted.
        why: in a sentence, why.
        held_out: (step, mean nats per predicted token of the held-out blocks).
    """

    losses: list[float]
    optimizer: str
    objective_weight_decay: float | None
    why: str
    held_out: list[tuple[int, float]]


@plain_arithmetic()
def train(
    model: nn.Module,
    ids: torch.Tensor,
    labels: torch.Tensor,
    *,
    steps: int,
    batch: int,
    learning_rate: float,
    seed: int,
    optimizer: Optimizer = "adamw",
    weight_decay: float = 0.0,
    decay: str = "all",
    momentum: float = 0.0,
    temperature: float | None = None,
    schedule: Schedule = "warm-up-cosine",
    decay_schedule: DecaySchedule | None = None,
    clip: float | None = 1.0,
    held_out: tuple[torch.Tensor, torch.Tensor] | None = None,
    evaluate_every: int = 0,
    work: Work | None = None,
    state: Path | None = None,
) -> Trained:
    """Train in place.

    Args:
        model: a causal language model.
        ids: (M, T) int64 token blocks.
        labels: (M, T) int64, −100 where not predicted.
        steps: optimiser steps.
        batch: blocks in a step, drawn afresh from (seed, step).
        learning_rate: at its peak.
        seed: of the draws.
        optimizer: adamw, sgd with L2, or noisy-sgd, which adds √(ηs) ξ to each step of sgd.
        weight_decay: as torch's optimiser takes it, on the tensors that `decay` names.
        decay: which tensors decay, see `ParameterSpace`.
        momentum: of sgd, without damping.
        temperature: s > 0 of noisy-sgd.
        schedule: warm-up over a tenth of the steps and then cosine to zero, or constant.
        decay_schedule: sets each step's weight decay, from `weight_decay` on. noisy-sgd's noise does not follow.
        clip: largest norm of a step's gradient; None for none. With clipping no drift is ∇F.
        held_out: ids and labels to evaluate on at the end and at every `evaluate_every`-th step.
        evaluate_every: 0 for the end only.
        work: told of every step.
        state: files from which a killed run goes on to the same bits, see `Interrupted`; the caller clears them.

    Raises:
        InputError: a number out of range, an unknown mask, or a state that is damaged.
        Diverged: a loss that is not finite.
    """
    _check(steps, weight_decay, optimizer, momentum, temperature)
    space = ParameterSpace(model, decay)
    stepper = _optimizer(space, optimizer, learning_rate, weight_decay, momentum)
    rates = learning_rates(schedule, learning_rate, steps)
    _set_rate(stepper, rates[0])
    losses: list[float] = []
    judged: list[tuple[int, float]] = []
    first = clipped = 0  # steps
    kept = Interrupted(state, stepper) if state else None
    if kept and (before := kept.read()):
        first, rest = before
        if work:
            work.resumed(kept.seconds)
        losses, clipped = rest["losses"], rest["clipped"]
        judged = [(step, float(loss)) for step, loss in rest["held_out"]]
        _set_rate(stepper, rates[first])
        if decay_schedule:
            decay_schedule.load_state_dict(rest["decay_schedule"])
    if decay_schedule:
        decay_schedule.attach(stepper)
    judge = None if held_out is None else Objective(model, [{"input_ids": held_out[0], "labels": held_out[1]}])
    model.train()
    for step in range(first, steps):
        rows = torch.from_numpy(stream(seed, Purpose.BATCHES, step).integers(len(ids), size=batch))
        logits = model(input_ids=ids[rows], use_cache=False).logits[:, :-1]
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), labels[rows][:, 1:].flatten(), ignore_index=IGNORED)
        if not bool(torch.isfinite(loss)):
            raise Diverged(step, float(loss.detach()), judged)
        stepper.zero_grad(set_to_none=True)
        loss.backward()
        if clip is not None:
            clipped += bool(nn.utils.clip_grad_norm_(model.parameters(), clip) > clip)
        stepper.step()
        if temperature is not None:
            with torch.no_grad():
                tensors = [t.detach() for t in space.tensors]
                add_gaussian(tensors, [math.sqrt(rates[step] * temperature)] * len(tensors), seed, 0, step)
        if step + 1 < steps:
            _set_rate(stepper, rates[step + 1])
            if decay_schedule:
                try:
                    decay_schedule.step()
                except NotFinite as error:
                    raise Diverged(step, float(loss.detach()), judged) from error
        losses.append(float(loss.detach()))
        if judge and (step + 1 == steps or (evaluate_every and (step + 1) % evaluate_every == 0)):
            judged.append((step + 1, judge.loss()))
        if kept and kept.due and step + 1 < steps:
            kept.write(
                step + 1,
                {
                    "losses": losses, "clipped": clipped,
                    "held_out": [(at, repr(value)) for at, value in judged],  # which may be nan, as JSON has none
                    "decay_schedule": decay_schedule.state_dict() if decay_schedule else None,
                },
            )  # fmt: skip
        if work:
            work.advance(step + 1, steps)
    stepper.zero_grad(set_to_none=True)
    model.eval()
    meaning, why = _meaning(optimizer, weight_decay, schedule, clipped, steps, decay_schedule)
    return Trained(losses, _WORDS[optimizer] + (f", momentum {momentum:g}" if momentum else ""), meaning, why, judged)


def _check(
    steps: int, weight_decay: float, optimizer: Optimizer, momentum: float, temperature: float | None
) -> None:  # fmt: skip
    if steps < 1:
        raise InputError(f"steps={steps}: expected at least 1")
    check_weight_decay(weight_decay)
    if not 0 <= momentum < 1 or (momentum and optimizer != "sgd"):
        raise InputError(f"momentum={momentum:g}: expected a number in [0, 1), with sgd only")
    if (temperature is None) == (optimizer == "noisy-sgd") or not 0 < (temperature or 1.0) < math.inf:
        raise InputError(f"temperature={temperature}: a finite number > 0 goes with noisy-sgd, and with nothing else")


def _set_rate(stepper: torch.optim.Optimizer, rate: float) -> None:
    for group in stepper.param_groups:
        group["lr"] = rate


def _optimizer(
    space: ParameterSpace, name: Optimizer, learning_rate: float, weight_decay: float, momentum: float
) -> torch.optim.Optimizer:  # fmt: skip
    groups = [
        {"params": [p.tensor for p in space.parameters if p.decayed is decayed], "weight_decay": value}
        for decayed, value in ((True, weight_decay), (False, 0.0))
    ]  # fmt: skip
    groups = [group | {"initial_lr": learning_rate} for group in groups if group["params"]]
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=learning_rate, betas=_ADAM)
    return torch.optim.SGD(groups, lr=learning_rate, momentum=momentum)


def learning_rates(schedule: Schedule, peak: float, steps: int) -> list[float]:
    """η of every step of a training run."""
    if schedule == "constant":
        return [peak] * steps
    stepper, warm_up = torch.optim.SGD([torch.zeros(1)], lr=peak), max(1, steps // 10)
    pace = torch.optim.lr_scheduler.SequentialLR(
        stepper,
        [
            torch.optim.lr_scheduler.LinearLR(stepper, 1 / warm_up, total_iters=warm_up),
            torch.optim.lr_scheduler.CosineAnnealingLR(stepper, max(1, steps - warm_up)),
        ],
        milestones=[warm_up],
    )
    rates = []
    for _ in range(steps):
        rates.append(float(stepper.param_groups[0]["lr"]))
        stepper.step()
        pace.step()
    return rates


def _meaning(
    name: Optimizer, weight_decay: float, schedule: Schedule, clipped: int, steps: int,
    decay_schedule: DecaySchedule | None,
) -> tuple[float | None, str]:  # fmt: skip
    """Which λ of F a decay is, and why (THEORY.md §8), in a run in some of whose steps clipping acted."""
    meaning, why = _plain_meaning(name, weight_decay, schedule)
    if clipped and meaning:
        # torch adds L2 after clipping: the decay is exact, the data's part of the drift is c∇L where it was clipped
        meaning, why = None, f"{why} Clipping to c∇L acted in {clipped} of {steps} steps, which descend F at λ/c."
    if decay_schedule:
        meaning, why = None, f"{type(decay_schedule).__name__}: {decay_schedule.why_not_f}."
    return meaning, why


def _plain_meaning(name: Optimizer, weight_decay: float, schedule: Schedule) -> tuple[float | None, str]:
    """Which λ of F a decay is, and why (THEORY.md §8)."""
    if weight_decay == 0:
        return 0.0, "No decay: F is the loss."
    if name == "adamw":
        return None, (
            "AdamW is no gradient descent on F: its fixed points solve wd·θ + P⁻¹∇L = 0, coordinate by coordinate a "
            "λ_i = wd(√v̂_i + ε) that holds at frozen P only. No λ of F belongs to this decay."
        )
    words = "SGD's L2 term is the gradient of (λ/2)‖mθ‖² with λ = weight_decay exactly, for any fixed momentum."
    if schedule != "constant":
        words += " The schedule scales the drift of both terms alike."
    return weight_decay, words
