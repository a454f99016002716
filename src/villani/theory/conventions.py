"""Conventions of weight decay, and which can be told in which other (THEORY.md §8). No torch."""

import math
from typing import Literal

from villani.errors import InputError, check_nonnegative, check_positive

Optimizer = Literal["adamw", "sgd", "noisy-sgd"]
Convention = Literal["objective", "sgd", "decoupled-sgd", "unscaled-sgd", "adam-l2", "adamw", "unscaled-adamw"]


def convert(
    value: float, source: Convention, target: Convention, *, learning_rate: float | None = None, momentum: float = 0.0
) -> float:
    """A decay in another convention (THEORY.md §8).

    `objective`, λ of F; `sgd`, L2 in torch's SGD, any fixed momentum; `decoupled-sgd`, θ ← (1 − ηλ)θ outside undamped
    momentum; `unscaled-sgd`, the same not multiplied by η; `adam-l2`; `adamw`; `unscaled-adamw`, as in the paper.

    Raises:
        InputError: there is no such conversion: Adam's preconditioner stands between, and is not constant.
    """
    check_nonnegative(weight_decay=value)
    if not 0 <= momentum < 1:
        raise InputError(f"momentum={momentum:g}: expected a number in [0, 1)")
    families = [("objective", "sgd", "decoupled-sgd", "unscaled-sgd"), ("adamw", "unscaled-adamw"), ("adam-l2",)]
    if not any(source in family and target in family for family in families):
        raise InputError(
            f"weight decay of {source} is none of {target}: Adam's steps are divided by √v̂, so that AdamW's fixed "
            "points solve wd·θ + P⁻¹∇L = 0, and Adam's noise is not isotropic (THEORY.md §8)"
        )

    def per_unit(name: Convention) -> float:
        """What a decay of 1 in this convention is in the first one of its family."""
        if name.startswith("unscaled"):
            if learning_rate is None:
                raise InputError(f"{name}: give the learning rate, which its decay is not multiplied by")
            check_positive(learning_rate=learning_rate)
            return (1 - momentum if name == "unscaled-sgd" else 1.0) / learning_rate
        return 1 - momentum if name == "decoupled-sgd" else 1.0

    return value * per_unit(source) / per_unit(target)


def conventions(
    optimizer: Optimizer, weight_decay: float, learning_rate: float, momentum: float = 0.0
) -> list[tuple[str, float | None, str]]:  # fmt: skip
    """How to write the decay of an optimiser of torch elsewhere: (where, value or None, why or how)."""
    own: Convention = "adamw" if optimizer == "adamw" else "sgd"
    rows: list[tuple[str, Convention, str]] = [
        ("λ of F = L + (λ/2)‖θ‖²", "objective", "the λ of every theorem here"),
        ("torch SGD, weight_decay", "sgd", "L2, added to the gradient; any fixed momentum"),
        ("decoupled SGD, θ ← (1 − ηλ)θ", "decoupled-sgd", f"outside the momentum buffer, μ = {momentum:g}"),
        ("decoupled SGD, not multiplied by η", "unscaled-sgd", f"per step, at η = {learning_rate:g}"),
        ("torch Adam, weight_decay (L2)", "adam-l2", "fixed points of F, but noise that is preconditioned"),
        ("torch AdamW, weight_decay", "adamw", "multiplied by η"),
        ("AdamW as published", "unscaled-adamw", f"not multiplied by η = {learning_rate:g}: per step"),
    ]
    found: list[tuple[str, float | None, str]] = []
    for name, other, words in rows:
        try:
            value = convert(weight_decay, own, other, learning_rate=learning_rate, momentum=momentum)
        except InputError:
            found.append((name, None, "no conversion: Adam's preconditioner stands between"))
        else:
            found.append((name, value, words))
    return found


def memory(weight_decay: float, learning_rate: float, momentum: float = 0.0) -> float:
    """Steps that weights remember at the peak rate: 1/(ηλ), with heavy balls (1 − μ)/(ηλ); ∞ without decay."""
    return (1 - momentum) / (learning_rate * weight_decay) if weight_decay else math.inf
