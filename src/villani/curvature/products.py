"""Hessian-vector products, three ways.

- `reverse-over-reverse`: differentiate ⟨∇L, v⟩ once more. Exact; attention must have a second derivative.
- `forward-over-reverse`: push a tangent v through the gradient's own computation. Exact too, with no graph of a graph.
- `finite-differences`: gradients at θ ± s·v and θ ± 2s·v, with an estimate of the error. First derivatives are all it
  needs, so it is the way for fused attention and compiled models.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.func import functional_call, grad, jvp

from villani.errors import InputError, first_line
from villani.objective.objective import Objective, check_differentiable

Tensors = Sequence[torch.Tensor]

STEPS = {torch.float32: 2.5e-3, torch.float64: 1e-3}  # ‖s·v‖/‖θ‖ of a finite difference
TOLERANCE = 1e-3  # the largest relative error of a finite difference that is let through


def differentiable_gradient(loss: torch.Tensor, tensors: Tensors) -> list[torch.Tensor]:
    """The gradient of a scalar, with its own graph; zero for tensors that the scalar does not depend on.

    Raises:
        InputError: the scalar has no graph.
    """
    check_differentiable(loss)
    gradient = torch.autograd.grad(loss, tensors, create_graph=True, allow_unused=True)
    return [torch.zeros_like(t) if g is None else g for g, t in zip(gradient, tensors, strict=True)]


def product(gradient: Tensors, vector: Tensors, tensors: Tensors, *, keep_graph: bool) -> list[torch.Tensor]:
    """Hv for the function whose `differentiable_gradient` is given; same shapes as θ.

    Args:
        gradient: with a graph.
        vector: v.
        tensors: θ.
        keep_graph: whether another product with the same gradient follows.
    """
    live = [(g, v) for g, v in zip(gradient, vector, strict=True) if g.requires_grad]
    if not live:  # the loss is linear in θ
        return [torch.zeros_like(t) for t in tensors]
    pieces = torch.autograd.grad(
        [g for g, _ in live],
        tensors,
        grad_outputs=[v for _, v in live],
        retain_graph=keep_graph,
        allow_unused=True,
    )
    return [torch.zeros_like(t) if p is None else p for p, t in zip(pieces, tensors, strict=True)]


class _LossSum(nn.Module):
    """A batch's loss sum and token count as a module, so that `functional_call` can swap θ, tied weights included."""

    def __init__(self, objective: Objective) -> None:
        super().__init__()
        self.model = objective.model
        self._objective = objective

    def forward(self, batch: object) -> tuple[torch.Tensor, torch.Tensor]:
        forward = self._objective.forward(batch)
        return forward.loss, torch.tensor(forward.tokens, dtype=torch.float64)


def forward_product(objective: Objective, batch: object, vector: Tensors) -> tuple[list[torch.Tensor], float]:
    """Hv of a batch's loss sum, forward over reverse, and its token count; inside `objective.evaluating()`.

    Args:
        objective: whose model, loss and θ.
        batch: one of `objective.batches(g)`.
        vector: v, as tensors of θ's shapes and dtype.

    Raises:
        InputError: an operation has no forward derivative.
    """
    module = _LossSum(objective)
    names = [f"model.{p.name}" for p in objective.parameters.parameters]

    def loss(theta: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        loss_sum, tokens = functional_call(module, theta, (batch,))
        return loss_sum, tokens

    theta = {name: t.detach() for name, t in zip(names, objective.parameters.tensors, strict=True)}
    tangent = dict(zip(names, vector, strict=True))
    try:
        result: Any = jvp(grad(loss, has_aux=True), (theta,), (tangent,), has_aux=True)
    except torch.OutOfMemoryError:
        raise
    except (NotImplementedError, RuntimeError, InputError) as error:
        cause = error.__cause__ if isinstance(error, InputError) else error
        if cause is None:  # a refusal of its own
            raise
        raise InputError(
            f"no forward-over-reverse of this loss: {first_line(cause).rstrip('.')}: use reverse-over-reverse"
        ) from error
    _, curved, tokens = result
    return [curved[name] for name in names], float(tokens)


def finite_difference_product(
    objective: Objective, vector: Tensors, group: int | None = None, norm: Callable[[Tensors], float] | None = None
) -> tuple[list[torch.Tensor], float]:
    """∇²L·v from gradients at five points of the line θ + tv, and an estimate of its relative error ‖error‖/‖∇²L·v‖.

    With P(t) = (g(θ + tv) − g(θ − tv))/2t the product is Richardson's (4P(s) − P(2s))/3, whose truncation is O(s⁴). The
    estimate has two parts. Truncation: ρ² with ρ = ‖P(2s) − P(s)‖/‖product‖, since what is left is to the term that
    Richardson removed about as that term is to the product. Rounding: the fourth difference of the gradient over the
    five points is at least √34 times the noise of one displaced gradient, and the product has √130/12s times it, so one
    bounds the other. What is smooth in it, O(s³) once over s, is more than the truncation: the estimate is on the safe
    side.

    The step s is relative to ‖θ‖, since a Rademacher v has norm √d. Transformers with random and with trained weights
    bend over about ‖θ‖/4 along such v. In float32 the estimate is least at ‖sv‖ = 0.0025‖θ‖, where the error was 3·10⁻⁵
    to 7·10⁻⁵ for d from 2·10⁵ to 3.5·10⁷, nearly all rounding. In float64 the step is hardly shorter, 0.001‖θ‖, because
    most models round to float32 inside (attention scores, norms, softmax) whatever the dtype of θ: the error was
    2·10⁻⁵ with them and 10⁻⁸ without. Where the estimate is above 10⁻³, a tenth of the step and four times the step are
    tried.

    A gradient that jumps (ReLU) has curvature in its jumps, which automatic differentiation leaves out and differences
    do not: the two do not agree, and where that shows the product is refused.

    θ comes back bit for bit. Besides a gradient this takes about five copies of θ, two of them in float64.

    Args:
        objective: F; only its L is differentiated, and only once, with fused attention where the model has it.
        vector: v, as tensors of θ's shapes and dtype.
        group: index, or None for the token-weighted mean over all groups.
        norm: of a vector whose part this process has, where θ is cut over processes, each with its part of all else.

    Returns:
        the product, in float64, and the estimate.

    Raises:
        InputError: a gradient that is not finite, θ = 0, or an estimate above 10⁻³ at every step.
    """
    norm = norm or _norm
    size, length = norm(objective.parameters.tensors), norm(vector)
    if size == 0:
        raise InputError("finite differences: θ is 0, which gives no scale for a step: use reverse-over-reverse")
    if length == 0:
        return [torch.zeros_like(v, dtype=torch.float64) for v in vector], 0.0
    middle = objective.gradient(group, fused=True)
    tried = []
    for factor in (1.0, 0.1, 4.0):
        step = factor * STEPS[objective.parameters.dtype]
        curved, error = _five_points(objective, vector, group, middle, step * size / length, norm)
        if error <= TOLERANCE:
            return curved, error
        tried.append(f"{error:.1g} at a step of {step:g}·‖θ‖")
    raise InputError(
        f"finite differences: relative error {', '.join(tried)}, above {TOLERANCE:g}: the gradient jumps (ReLU) or is "
        "noisy; use reverse-over-reverse, or float64"
    )


def _five_points(
    objective: Objective, vector: Tensors, group: int | None, middle: Tensors, step: float,
    norm: Callable[[Tensors], float],
) -> tuple[list[torch.Tensor], float]:  # fmt: skip
    """The product, and the estimate of its relative error; `middle` is the gradient at θ."""
    weights = {  # of each gradient in the product, in P(2s) − P(s), in the fourth difference; in pairs that cancel
        -2: (1 / 12, -1 / 4, 1.0),
        2: (-1 / 12, 1 / 4, 1.0),
        -1: (-8 / 12, 1 / 2, -4.0),
        1: (8 / 12, -1 / 2, -4.0),
    }
    curved = [torch.zeros_like(m) for m in middle]
    removed = [torch.zeros_like(t) for t in vector]
    fourth = [(6 * m).to(t) for m, t in zip(middle, vector, strict=True)]
    for multiple, (first, second, even) in weights.items():
        with objective.displaced(list(vector), multiple * step):
            gradient = objective.gradient(group, fused=True)
        for c, r, f, g in zip(curved, removed, fourth, gradient, strict=True):
            c.add_(g, alpha=first / step)
            r.add_(g, alpha=second / step)
            f.add_(g, alpha=even)
    size, noise = norm(curved), norm(fourth) / step * (130 / 34) ** 0.5 / 12
    if not math.isfinite(size):
        raise InputError(
            f"finite differences: a gradient within {2 * step:.2g}·v of θ is not finite: use reverse-over-reverse"
        )
    if size == 0:  # the loss is linear along v
        return curved, 0.0
    return curved, (norm(removed) / size) ** 2 + noise / size


def _norm(tensors: Tensors) -> float:
    return math.sqrt(sum(float(torch.linalg.vector_norm(t.detach(), dtype=torch.float64)) ** 2 for t in tensors))
