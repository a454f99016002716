"""What one group contributes: loss, gradient and unbiased samples of tr ∇²L, in one forward pass per batch.

Three ways to the trace (THEORY.md §6), all unbiased:

- `hutchinson`: vᵀ∇²L v with Rademacher probes v, by any of the products of `curvature/products.py`.
- `gauss-newton`: ∇²L = JᵀSJ + Σ_k (p − y)_k ∇²z_k for logits z. The first trace is E‖∇L_ŷ‖²·n over labels ŷ drawn from
  the model's own p, one ordinary backward pass; only the second, residual, part meets probes. It is the Hessian of
  ⟨p − y, z⟩ with p − y held fixed, whose gradient equals ∇L, so that one graph serves both.
- `taylor`: vᵀ∇²L v by a forward sweep that stores nothing (`curvature/taylor.py`), in half the memory.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import nn

from villani.curvature.blocks import BlockTrace
from villani.curvature.deflation import Deflation
from villani.curvature.head import draw_labels
from villani.curvature.probes import rademacher_probe
from villani.curvature.products import (
    ProductMethod,
    Tensors,
    differentiable_gradient,
    finite_difference_product,
    forward_product,
    product,
)
from villani.curvature.sketch import GradientSketch
from villani.errors import InputError
from villani.objective.objective import Forward, Objective, check_differentiable
from villani.statistics import Array
from villani.streams import Purpose, stream

TraceMethod = Literal["gauss-newton", "hutchinson", "taylor"]
SWEPT = 4  # probes in one Taylor sweep at most: memory grows with them, and most of what sharing a sweep saves is saved
_ROWS = 64  # positions whose cumulative distribution is held in float64 at a time: 26 MB at V = 50,257


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


def group_statistics(
    objective: Objective,
    group: int,
    probes: int,
    seed: int,
    method: TraceMethod,
    sketch: GradientSketch,
    sampler: BlockTrace | None = None,
    products: ProductMethod = "reverse-over-reverse",
    deflate: Deflation | None = None,
) -> GroupStatistics:
    """Measure one group; a pure function of θ, the group and (seed, group, probe).

    `sampler` is what `taylor` samples with, and belongs to this objective; `products` is for `hutchinson` only, and so
    is `deflate`, with products of the first kind.

    Raises:
        InputError: the loss or a derivative is not finite, sampled labels are asked of a custom loss function, or
            finite differences are too far off.
    """
    space = objective.parameters
    tokens, loss = 0.0, 0.0
    gradient = torch.zeros(min(space.size, sketch.buckets), dtype=torch.float64)
    dots = np.zeros(len(space.parameters))
    rows = 1 if sampler is not None and not objective.finite else probes
    traces = np.zeros((rows, len(space.parameters)))
    gauss_newton = np.zeros((0 if method == "hutchinson" else rows, len(space.parameters)))
    labels = [stream(seed, Purpose.LABELS, group, probe) for probe in range(probes)]
    with objective.evaluating(fused=products == "finite-differences"):
        for index, batch in enumerate(objective.batches(group)):
            forward = objective.forward(batch)
            _check_finite(forward.loss, f"group {group}: the loss")
            tokens += forward.tokens
            loss += float(forward.loss.detach().double())
            check_differentiable(forward.loss)
            if sampler is not None or products != "reverse-over-reverse":
                slopes = list(
                    torch.autograd.grad(forward.loss, space.tensors, allow_unused=True, materialize_grads=True)
                )
                del forward  # its graph need not outlive the gradient
                gradient += sketch(slopes)
                dots += _inner_products(slopes, space.tensors)
                del slopes
                keys = [(group, probe, index) for probe in range(probes)]
                if sampler is not None:
                    at_once = 1 if objective.finite else SWEPT
                    for first in range(0, probes, at_once):
                        some = keys[first : first + at_once]
                        sample = sampler.sample(batch, seed, *some)
                        row, share = (first, 1.0) if objective.finite else (0, len(some) / probes)
                        traces[row] += share * (sample.traces - sample.gauss_newton)
                        gauss_newton[row] += share * sample.gauss_newton
                elif products == "forward-over-reverse":
                    for probe in range(probes):
                        vector = rademacher_probe(space, seed, group, probe)
                        traces[probe] += _inner_products(forward_product(objective, batch, vector)[0], vector)
                continue
            root = forward.loss
            if method == "gauss-newton":
                logits, targets = _logits(forward)
                for probe in range(probes):
                    gauss_newton[probe] += _gauss_newton_sample(logits, space.tensors, labels[probe])
                root = _residual_root(logits, targets)
            slopes = differentiable_gradient(root, space.tensors)
            gradient += sketch(slopes)
            dots += _inner_products(slopes, space.tensors)
            for direction in deflate.vectors if deflate else []:  # exact, so every probe's sample has it
                traces += _inner_products(product(slopes, direction, space.tensors, keep_graph=True), direction)
            for probe in range(probes):
                vector = rademacher_probe(space, seed, group, probe)
                if deflate:
                    vector = deflate.project(vector)
                curved = product(slopes, vector, space.tensors, keep_graph=probe + 1 < probes)
                traces[probe] += _inner_products(curved, vector)
    if products == "finite-differences":  # of the whole group at once, so that θ moves four times a probe
        for probe in range(probes):
            vector = rademacher_probe(space, seed, group, probe)
            traces[probe] = tokens * _inner_products(finite_difference_product(objective, vector, group)[0], vector)
    if len(gauss_newton):
        traces += gauss_newton
    for name, values in (("gradient", gradient.numpy()), ("Hessian trace", traces)):
        if not np.isfinite(values).all():
            wide = space.dtype == torch.float64
            advice = "is a root, a logarithm or a masked softmax taken of nothing?" if wide else "try float64"
            raise InputError(
                f"group {group}: the {name} is not finite though the loss is {loss / tokens:.6g}: {advice}"
            )
    return GroupStatistics(tokens, loss, gradient.numpy(), dots, traces, gauss_newton)


def _logits(forward: Forward) -> tuple[torch.Tensor, torch.Tensor]:
    if forward.logits is None or forward.labels is None:
        raise InputError("a custom loss_fn has no logits to sample labels from: use trace='hutchinson'")
    return forward.logits, forward.labels


def _residual_root(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """⟨p − y, z⟩ with p − y held fixed: its gradient is that of the loss sum, its Hessian the residual part."""
    errors = torch.softmax(logits.detach(), dim=-1)
    errors[torch.arange(len(errors), device=errors.device), labels] -= 1.0
    return torch.sum(errors * logits)


def _gauss_newton_sample(logits: torch.Tensor, tensors: Tensors, generator: np.random.Generator) -> Array:
    """(P,) ‖∇_t Σ ℓ(ŷ)‖² with ŷ ~ p: unbiased for each tensor's trace of the Gauss–Newton matrix of the loss sum.

    Scores are conditionally independent with mean zero, so cross terms between positions vanish on average.
    """
    sampled = _sample_rows(torch.softmax(logits.detach(), dim=-1), generator)
    loss = nn.functional.cross_entropy(logits, sampled, reduction="sum")
    slopes = torch.autograd.grad(loss, tensors, retain_graph=True, allow_unused=True)
    return np.array([0.0 if g is None else float(_double_dot(g, g)) for g in slopes])


def _sample_rows(probabilities: torch.Tensor, generator: np.random.Generator) -> torch.Tensor:
    """One index from each row of (n, V) probabilities, by inverting the distribution function in float64."""
    uniform = torch.from_numpy(generator.random(len(probabilities))).to(probabilities.device)
    parts = zip(probabilities.split(_ROWS), uniform.split(_ROWS), strict=True)
    return torch.cat([draw_labels(rows, u[:, None])[:, 0] for rows, u in parts])


def _inner_products(left: Tensors, right: Tensors) -> Array:
    return np.array([float(_double_dot(a, b)) for a, b in zip(left, right, strict=True)])


def _double_dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """⟨a, b⟩ in float64, a piece at a time so that no float64 copy of a large tensor is made."""
    total = torch.zeros((), dtype=torch.float64, device=a.device)
    flat_a, flat_b = a.detach().reshape(-1), b.detach().reshape(-1)
    for x, y in zip(flat_a.split(1 << 20), flat_b.split(1 << 20), strict=True):
        total += torch.dot(x.double(), y.double())
    return total


def _check_finite(value: torch.Tensor, what: str) -> None:
    if not bool(torch.isfinite(value)):
        raise InputError(f"{what} is {float(value.detach())}: check the checkpoint, or load it in a wider dtype")
