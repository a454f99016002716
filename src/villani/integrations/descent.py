"""Which λ of F the steps of a training run descend, and why where there is none (THEORY.md §8).

A step that moves θ by −η(c∇L + λmθ) on the mean descends c·F at λ/c: c is what clipping, or a Trainer that divides by
more tokens than it predicts, makes of ∇L while it leaves the decay alone. Where the loss is another function than L, or
the step no gradient step, there is no such λ.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from villani.objective.objective import Objective
from villani.objective.parameters import ParameterSpace

_TRANSPARENT = ("accelerate", "lightning", "pytorch_lightning")  # whose wrappers hand steps on as they are
SAME_LOSS = 1e-5  # relative difference of two losses in float32 that are the same function


@dataclass(frozen=True)
class Decay:
    """The weight decay that an optimiser applies.

    Attributes:
        weight_decay: of the groups that decay; the largest where they differ.
        objective: the λ of F that has its fixed points, or None (THEORY.md §8).
        why: in a sentence.
        mask: the tensors that decay, for `ParameterSpace`.
        preconditioned: why a step is no multiple of ∇F even so, in a sentence; empty where it is one.
    """

    weight_decay: float
    objective: float | None
    why: str
    mask: str
    preconditioned: str = ""


@dataclass(frozen=True)
class TrainingLoss:
    """The loss that a run trains with, held against L.

    Attributes:
        factor: c with ∇(training loss) = c∇L on the batches of the last step; None where there is no such number.
        why: what sets the two apart, by a name for each reason; empty where they are the same.
    """

    factor: float | None = 1.0
    why: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Steps:
    """What was seen of gradients on their way from `backward` to the optimiser.

    Attributes:
        taken: optimiser steps.
        unseen: those whose gradients did not come from `backward`.
        changed: those whose gradients were changed on the way.
        bent: those where the change was not by one factor.
        factor: of the last step.
        varied: whether weight decay changed since the first step that was seen.
        uneven: in a sentence, how the settings of groups differed in a step; empty where they never did.
    """

    taken: int = 0
    unseen: int = 0
    changed: int = 0
    bent: int = 0
    factor: float = 1.0
    varied: bool = False
    uneven: str = ""


@dataclass(frozen=True)
class Descent:
    """What the steps of a run descend.

    Attributes:
        weight_decay: λ of the F whose fixed points the last step had; None where there is no such F.
        factor: c that ∇L was multiplied by in it; None where it was not a multiple.
        exact: whether every step was, on the mean, −η∇F at this λ.
        why: what stands against it, by a name for each reason.
    """

    weight_decay: float | None
    factor: float | None
    exact: bool
    why: Mapping[str, str]


def decay_of(optimizer: Any, model: nn.Module) -> Decay:
    """Which λ of F, if any, an optimiser's weight decay is, and on what; see `innermost` for wrappers."""
    optimizer = innermost(optimizer)
    groups = optimizer.param_groups
    home = {id(p): group for group in groups for p in group["params"]}
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    decays = {name: float(home.get(id(p), {}).get("weight_decay", 0.0)) for name, p in trained.items()}
    values = {value for value in decays.values() if value}
    names = [name for name, value in decays.items() if value]
    mask = "all" if len(names) in (0, len(trained)) else ParameterSpace.matching(names)
    largest, kind = max(values, default=0.0), type(optimizer).__name__
    plain = optimizer.__class__.__module__.startswith("torch.optim.")  # a subclass may do anything
    of_theta = {id(p) for p in trained.values()}
    moved = [group for group in groups if any(id(p) in of_theta for p in group["params"])]
    if not plain:
        why = (
            f"{kind} is no optimiser of torch's own: what its steps descend is not known, nor what its weight decay is"
        )
        return Decay(largest, None, why, mask)
    if type(optimizer) is torch.optim.ASGD:
        return Decay(largest, None, "ASGD has a second decay, lambd: its weight decay is no λ of F", mask)
    if any(group.get("maximize", False) for group in moved):
        return Decay(largest, None, f"{kind} maximises the loss: it descends no F", mask)
    if len(values) > 1:
        why = f"groups decay at {len(values)} different rates: no one λ of F"
        return Decay(largest, None, why, mask)
    apart = f"{kind} preconditions its steps: they are no multiple of ∇F"
    if type(optimizer) is torch.optim.SGD:
        others = set(home) - {id(p) for p in model.parameters()}
        apart = uneven(moved) or _incomplete(len(of_theta - set(home)), len(others))
        if values:
            why = "SGD's L2 term is the gradient of (λ/2)‖mθ‖² with λ = weight_decay"
            return Decay(largest, largest, why, mask, apart)
    if not values:
        return Decay(0.0, 0.0, "No decay: F is the loss.", mask, apart)
    if type(optimizer) is torch.optim.Adam and not moved[0].get("decoupled_weight_decay", False):
        return Decay(largest, largest, "Adam with L2 has the fixed points of F, at another noise than F's", mask, apart)
    return Decay(largest, None, f"{kind} is no gradient descent on F: its weight decay is no λ of F", mask)


def innermost(optimizer: Any) -> Any:
    """The optimiser within the wrappers of accelerate and Lightning."""
    while type(optimizer).__module__.split(".")[0] in _TRANSPARENT and hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return optimizer


def uneven(groups: Sequence[Mapping[str, Any]]) -> str:
    """How groups of SGD differ, so that its step is no multiple of ∇F; empty where they do not."""
    for name in ("lr", "momentum", "dampening", "nesterov"):
        values = {float(group.get(name, 0.0)) for group in groups}
        if len(values) > 1:
            told = ", ".join(f"{value:g}" for value in sorted(values))
            return f"groups have different {name} ({told}): steps are −P∇F with a P that is no multiple of the identity"
    return ""


def _incomplete(left: int, others: int) -> str:
    """Why an optimiser does not descend in θ, and in nothing but θ; empty where it does."""
    if left:
        return f"{left} tensors of θ are in no group of the optimiser and do not move"
    if others:
        return f"the optimiser moves {others} tensors that are not of θ: L changes with them"
    return ""


def same_in_training(objective: Objective) -> bool:
    """Whether the loss of a group is the same in the modes that submodules are in as in evaluation.

    It is not where training draws dropout or noise, or normalises by statistics of the batch. One draw is compared.
    """
    piece = next(objective.batches(0))
    modes = [(module, module.training) for module in objective.model.modules()]
    training = objective.forward(piece).loss.detach()
    objective.model.eval()
    try:
        evaluated = objective.forward(piece).loss.detach()
    finally:
        for module, mode in modes:
            module.training = mode
    return bool((training - evaluated).abs() <= SAME_LOSS * evaluated.abs())


def altered_gradients(model: nn.Module) -> str:
    """What makes `backward` give another gradient than that of the loss, in a sentence; empty where nothing does."""
    for name, module in model.named_modules():
        where = name or type(module).__name__
        if module._backward_hooks or module._backward_pre_hooks:
            return f"{where} has backward hooks, which may change gradients"
        if isinstance(module, nn.Embedding) and module.weight.requires_grad:
            if module.padding_idx is not None:
                return f"{where} has padding_idx={module.padding_idx}: that row gets decay, and no gradient as input"
            if module.scale_grad_by_freq or module.max_norm is not None:
                return f"{where} scales gradients by frequency or weights to a norm: its steps are not along ∇L"
    hooked = [name for name, p in model.named_parameters() if p.requires_grad and p._backward_hooks]
    return f"{hooked[0]} has a gradient hook, which may change it" if hooked else ""


def descent_of(decay: Decay, loss: TrainingLoss, steps: Steps, *, same: bool = True, altered: str = "") -> Descent:
    """What steps descend.

    Args:
        decay: of the optimiser.
        loss: that the run trains with.
        steps: what was seen of them.
        same: whether the model's loss is the same in training as in evaluation.
        altered: what `altered_gradients` found.
    """
    why = dict(loss.why)
    if decay.objective is None:
        why["optimizer"] = decay.why
    elif decay.preconditioned or steps.uneven:
        why["metric"] = decay.preconditioned or steps.uneven
    if not same:
        why["training mode"] = (
            "in training mode the model computes another loss (dropout, noise, batch statistics) than L, which is "
            "without them"
        )
    if altered:
        why["altered"] = altered
    if steps.varied:
        why["schedule"] = "weight decay changes in the run: F does too"
    factor = None if loss.factor is None or not same else loss.factor
    if steps.unseen:
        why["unseen"] = "gradients do not come from backward(): what became of them is not known"
    if steps.bent:
        why["bent"] = f"gradients were changed before {steps.bent} of {steps.taken} steps, and not by a factor"
    elif steps.changed:
        why["clipped"] = (
            f"gradients were scaled before {steps.changed} of {steps.taken} steps, by {steps.factor:.4g} in the last, "
            "and the decay was not (clipping?)"
        )
    factor = None if factor is None or steps.bent or steps.unseen else factor * steps.factor
    if factor is not None and abs(factor - 1) <= SAME_LOSS:
        factor = 1.0
    found = None if decay.objective is None or not factor else decay.objective / factor
    return Descent(found, factor, not why and factor is not None, why)
