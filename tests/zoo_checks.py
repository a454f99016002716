"""One architecture held against independent calculations, in float64: `examine("llama")` gives a row of figures.

transformers' own forward and loss, torch's autograd and central differences of its gradients are what villani's figures
are compared with. Everything is measured at random weights of a tiny model with its default attention.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests.products import hessian_vector_product
from tests.zoo_models import all_in_float64, zoo_model, zoo_tokens
from tests.zoo_symmetries import count_symmetries, forward_options, token_losses
from villani.criteria.degrees import Degrees
from villani.criteria.symmetries import Generator, generators
from villani.curvature.blocks import BlockTrace
from villani.curvature.jets import Jet
from villani.curvature.taylor import Sweep
from villani.errors import InputError
from villani.objective.batches import Batch
from villani.objective.graph import Head, trace_logits, trace_loss
from villani.objective.objective import Objective

LIMITS = {"loss": 1e-10, "product": 1e-6, "taylor": 1e-7, "rescaling": 1e-9, "violation": 1e-7}
"""What counts as a wrong number: relative differences above these."""

STEPS = (1e-4, 1e-5, 1e-6)  # of differences; the smaller ones where ReLU or a router jumps in between
FACTORS = (2.0, 1.37)
_NOISE = 0.1  # of the weights at which rescalings are tried
Row = dict[str, Any]


def examine(kind: str) -> Row:
    """What holds of one architecture.

    Returns:
        `type`; `stage`: "not built", "refused" (by villani, before anything is measured), "untraced" or "traced"; the
        `reason` of the first three; errors as `LIMITS` names them, where measured; `taylor_refused`,
        `symmetries_refused`: why not; counts of symmetries, `missing` and `skipped`; `wrong`: errors beyond `LIMITS`.
    """
    row: Row = {"type": kind}
    try:
        model = zoo_model(kind)
    except Exception as error:  # transformers fails in as many ways as it has models
        return row | {"stage": "not built", "reason": f"{type(error).__name__}: {_line(error)}"}
    row |= {"class": type(model).__name__, "parameters": sum(p.numel() for p in model.parameters())}
    row["attention"] = getattr(model.config, "_attn_implementation", None)
    ids = zoo_tokens()
    with all_in_float64(), sdpa_kernel(SDPBackend.MATH):
        try:
            objective = Objective(model, ids, 0.1)
        except InputError as error:
            return row | {"stage": "refused", "reason": _line(error)}
        row |= {"stage": "traced", "loss": loss_error(objective, ids[0]), "own_loss": own_loss_error(objective, ids[0])}
        row["product"] = product_error(objective, ids[0])
        batch: Batch = next(objective.batches(0))
        row |= _taylor(objective, batch)
        row |= _symmetries(objective, batch, ids[0])
    row["wrong"] = [name for name, limit in LIMITS.items() if not row.get(name, 0.0) <= limit]
    return row


def _line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else text[:299] + "…"


def loss_error(objective: Objective, ids: torch.Tensor) -> float:
    """villani's mean loss against cross-entropy of transformers' logits, relative."""
    with torch.no_grad():
        theirs = float(token_losses(objective.model, ids).mean())
    return abs(objective.loss() / theirs - 1)


def own_loss_error(objective: Objective, ids: torch.Tensor) -> float | str:
    """The same against the `loss` that transformers returns for labels, or why there is none."""
    model = objective.model
    try:
        with torch.no_grad():
            theirs = model(input_ids=ids, labels=ids.clone(), **forward_options(model)).loss
    except Exception as error:  # as many ways as there are models
        return f"{type(error).__name__}: {_line(error)}"
    return "none returned" if theirs is None else abs(objective.loss() / float(theirs) - 1)


def product_error(objective: Objective, ids: torch.Tensor) -> float:
    """villani's Hv against differences of transformers' gradients, ‖difference‖/‖Hv‖, at the best of `STEPS`."""
    theta = objective.parameters.tensors
    vector = _normal(theta, 3)
    curved = torch.cat([h.flatten() for h in hessian_vector_product(objective, vector)])
    centre = [t.detach().clone() for t in theta]

    def gradient(step: float) -> torch.Tensor:
        with torch.no_grad():
            for t, c, v in zip(theta, centre, vector, strict=True):
                t.copy_(c + step * v)
        loss = token_losses(objective.model, ids).mean()
        found = torch.autograd.grad(loss, theta, allow_unused=True)
        return torch.cat(
            [(t.new_zeros(t.shape) if g is None else g).flatten() for g, t in zip(found, theta, strict=True)]
        )

    errors = []
    for h in STEPS:
        wide, narrow = ((gradient(s) - gradient(-s)) / (2 * s) for s in (h, h / 2))
        errors.append(float(((4 * narrow - wide) / 3 - curved).norm() / curved.norm()))
        if errors[-1] < LIMITS["product"] / 100:
            break
    gradient(0.0)
    return min(errors)


def _normal(tensors: Sequence[torch.Tensor], seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(t.shape, generator=generator) for t in tensors]


def _taylor(objective: Objective, batch: Batch) -> Row:
    try:
        trace_logits(objective, batch)
    except InputError as error:
        text = _line(error)
        return {"taylor_refused": text} | ({"stage": "untraced", "reason": text} if "cannot be traced" in text else {})
    try:
        BlockTrace(objective).check(batch)
    except InputError as error:
        return {"taylor_refused": _line(error)}
    return {"taylor": taylor_error(objective, batch)}


def taylor_error(objective: Objective, batch: Batch) -> float:
    """First and second derivatives of the loss along a vector in each tensor, Taylor against reverse over reverse.

    Taylor gives those of the head's input h; logits are Wh + b and the loss their cross-entropy, in which both are put
    here exactly where villani draws labels. The largest difference, relative to the derivative or a thousandth of the
    largest.
    """
    graph, theta = trace_logits(objective, batch), objective.parameters.tensors
    vector = _normal(theta, 5)
    with objective.evaluating(), torch.no_grad():
        sweep = Sweep(graph, lambda i: Jet(theta[i].detach(), {i: vector[i]}), range(len(theta)))
        features = sweep.features(batch)
    derivatives = torch.tensor([_along(graph.head, features, theta, vector, batch, i) for i in range(len(theta))])
    loss = token_losses(objective.model, batch.ids).sum()
    first = torch.autograd.grad(loss, theta, create_graph=True, allow_unused=True)
    expected = []
    for g, t, v in zip(first, theta, vector, strict=True):
        slope = t.new_zeros(()) if g is None else (g * v).sum()
        second = torch.autograd.grad(slope, t, retain_graph=True, allow_unused=True)[0] if slope.requires_grad else None
        expected.append((float(slope.detach()), 0.0 if second is None else float((second * v).sum())))
    wanted = torch.tensor(expected)
    value = abs(float(_cross_entropy(graph.head, features.x, theta, batch).sum() / loss.detach()) - 1)
    scale = wanted.abs() + 1e-3 * wanted.abs().amax(0)
    return max(value, float(((derivatives - wanted).abs() / scale).max()))


def _map_of(head: Head, theta: Sequence[torch.Tensor]) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """W and b of the head, each from θ or a tensor that does not move; None where there is none."""
    given = [theta[part].detach() if isinstance(part, int) else part for part in (head.weight, head.bias)]
    return given[0], given[1]


def _logits(head: Head, features: torch.Tensor, theta: Sequence[torch.Tensor]) -> torch.Tensor:
    weight, bias = _map_of(head, theta)
    logits = features if weight is None else features @ weight.T
    return logits if bias is None else logits + bias


def _cross_entropy(head: Head, features: torch.Tensor, theta: Sequence[torch.Tensor], batch: Batch) -> torch.Tensor:
    logits = _logits(head, features, theta)[:, :-1].flatten(0, 1)
    return nn.functional.cross_entropy(logits, batch.ids[:, 1:].flatten(), reduction="none")


def _along(
    head: Head, features: Jet, theta: Sequence[torch.Tensor], vector: Sequence[torch.Tensor], batch: Batch, index: int
) -> tuple[float, float]:
    """(dL, d²L) along the vector in one tensor."""
    zero = torch.zeros_like(features.x)
    first, second = features.first.get(index, zero), features.second.get(index, zero)
    weight, _ = _map_of(head, theta)
    slope, bend = (first, second) if weight is None else (first @ weight.T, second @ weight.T)
    if index == head.weight:
        slope, bend = slope + features.x @ vector[index].T, bend + 2 * first @ vector[index].T
    if index == head.bias:
        slope = slope + vector[index]
    p = _logits(head, features.x, theta).softmax(-1)[:, :-1]
    slope, bend = slope[:, :-1], bend[:, :-1]
    residual = p - nn.functional.one_hot(batch.ids[:, 1:], p.shape[-1])
    variance = (p * slope.square()).sum(-1) - (p * slope).sum(-1).square()
    return float((residual * slope).sum()), float(variance.sum() + (residual * bend).sum())


def _symmetries(objective: Objective, batch: Batch, ids: torch.Tensor) -> Row:
    try:
        degrees = Degrees(trace_loss(objective, batch))
    except InputError as error:
        return {"symmetries_refused": _line(error)}
    basis = generators(degrees)
    counts = count_symmetries(objective.model, ids, degrees, [p.name for p in objective.parameters.parameters])
    return {
        "generators": len(basis), "rescaling": rescaling_error(objective, basis, ids), "violation": counts.violation,
        "channels": counts.channels, "tensors": counts.tensors, "gap": counts.gap, "complete": counts.complete,
        "missing": counts.missing, "skipped": [(s.operation, s.place) for s in degrees.skipped.all()],
    }  # fmt: skip


def rescaling_error(objective: Objective, basis: Sequence[Generator], ids: torch.Tensor) -> float:
    """The largest relative change of any token's loss as each symmetry rescales other weights by each of `FACTORS`."""
    theta = objective.parameters.tensors
    centre, worst = [t.detach().clone() for t in theta], 0.0
    start = [c + _NOISE * n for c, n in zip(centre, _normal(theta, 11), strict=True)]

    def losses(exponents: dict[int, torch.Tensor], factor: float) -> torch.Tensor:
        for index, (t, s) in enumerate(zip(theta, start, strict=True)):
            t.copy_(s * torch.tensor(factor) ** exponents[index].double() if index in exponents else s)
        return token_losses(objective.model, ids)

    with torch.no_grad():
        before = losses({}, 1.0)
        for generator in basis:
            for factor in FACTORS:
                change = (losses(generator.exponents, factor) - before).abs() / before.abs().mean()
                worst = max(worst, float(change.max()))
        for t, c in zip(theta, centre, strict=True):
            t.copy_(c)
    return worst
